"""Lengths of ShareGPT conversations, from the JSON file if the user has it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sim.errors import UserError
from sim.workload.streams import endless, stream

TOKENS_PER_WORD = 1.3
"""Tokens for a word between spaces: about what English prose takes where there are 128k tokens to choose
from; code takes more."""

Count = Callable[[str], int]
"""From a text to its number of tokens."""

SIDES = {"input_length": 0, "output_length": 1}


@dataclass(frozen=True)
class ShareGpt:
    """A conversation of ``path`` for each request, drawn with replacement: its first turn is the prompt, its
    second the output. ``input_length`` and ``output_length`` with the same settings stay paired.

    An entry's own ``input_length`` and ``output_length`` count where it has them, else what ``tokenizer``
    makes of it: a tokenizer.json, a folder with one, or a name on the Hugging Face hub. Without a tokenizer
    its words count, times ``tokens_per_word``. Conversations whose prompt is outside ``min_input_length`` to
    ``max_input_length``, or that have no answer, are left out.
    """

    path: str
    tokenizer: str | None = None
    tokens_per_word: float = TOKENS_PER_WORD
    min_input_length: int = 1
    max_input_length: int | None = None

    @property
    def least(self) -> int:
        """The smallest length that may be drawn."""
        return 1

    def check(self, where: str) -> None:
        """Raise UserError for impossible settings."""
        if self.tokens_per_word <= 0:
            raise UserError(f"{where}.tokens_per_word={self.tokens_per_word}: must be greater than 0")

    def sampler(self, seed: int, side: str) -> Callable[[str | None], int]:
        """Return a function that draws the length of one request after another."""
        longest = self.max_input_length
        lengths = [
            pair[SIDES[side.partition("/")[0]]]
            for pair in read(self.path, self.tokenizer or self.tokens_per_word)
            if pair[0] >= self.min_input_length and (longest is None or pair[0] <= longest)
        ]
        if not lengths:
            raise UserError(
                f"{self.path}: no conversation with a prompt of {self.min_input_length} to "
                f"{longest or 'any number of'} tokens and an answer"
            )
        # The same stream for both sides: a prompt keeps its answer.
        rng = stream(seed, f"sharegpt{side.partition('/')[2]}")
        drawn = endless(lambda size: rng.integers(0, len(lengths), size))
        return lambda adapter: lengths[next(drawn)]


@lru_cache(maxsize=2)
def read(path: str, tokens: str | float) -> list[tuple[int, int]]:
    """Return prompt and output length of each conversation that has both. Raises UserError.

    ``tokens``: a tokenizer, or tokens per word.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of conversations")
    count = _tokenizer(tokens) if isinstance(tokens, str) else _words(tokens)
    # Here, for all other workloads do without it.
    from tqdm import tqdm  # noqa: PLC0415

    pairs = []
    for number, entry in enumerate(tqdm(entries, unit="entry", desc="tokenizing", leave=False, delay=2)):
        pair = _lengths(entry, count)
        if pair is None:
            raise UserError(
                f"{path}, entry {number}: expected conversations with values, or input_length and "
                "output_length"
            )
        pairs.append(pair)
    return [pair for pair in pairs if min(pair) > 0]


def _words(tokens_per_word: float) -> Count:
    return lambda text: round(len(text.split()) * tokens_per_word)


def _tokenizer(name: str) -> Count:
    """Return what counts a text's tokens, those that a model's prompt begins with included."""
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415  Few have it, and few ask for it.
    except ImportError as error:
        raise UserError(
            f"tokenizer={name}: needs the package tokenizers; pip install 'lorasim[tokenizer]'"
        ) from error
    path = Path(name)
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_file(str(file)) if file.exists() else Tokenizer.from_pretrained(name)
    except Exception as error:  # The package raises plain Exceptions.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"tokenizer={name}: {reason}; expected a tokenizer.json, a folder with one, or a name on the hub"
        ) from error
    return lambda text: len(tokenizer.encode(text).ids)


def _lengths(entry: Any, count: Count) -> tuple[int, int] | None:
    """Return the two lengths of an entry, 0 where there is no such turn; None for what is no entry."""
    if not isinstance(entry, dict):
        return None
    own = entry.get("input_length"), entry.get("output_length")
    if all(type(length) is int for length in own):
        return own  # type: ignore[return-value]
    turns = entry.get("conversations")
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns
    ):
        return None
    counts = [count(turn["value"]) for turn in turns[:2]]
    first, second = (*counts, 0, 0)[:2]
    return first, second
