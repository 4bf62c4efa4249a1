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

SIDES = {"input_length": 0, "output_length": 1}


@dataclass(frozen=True)
class ShareGpt:
    """A conversation of ``path`` for each request, drawn with replacement: its first turn is the prompt, its
    second the output. ``input_length`` and ``output_length`` with the same settings stay paired.

    No tokenizer is at work: an entry's own ``input_length`` and ``output_length`` count where it has them,
    else its words, times ``tokens_per_word``. Conversations whose prompt is outside ``min_input_length`` to
    ``max_input_length``, or that have no answer, are left out.
    """

    path: str
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
            for pair in read(self.path, self.tokens_per_word)
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
def read(path: str, tokens_per_word: float) -> list[tuple[int, int]]:
    """Return prompt and output length of each conversation that has both. Raises UserError."""
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of conversations")
    pairs = []
    for number, entry in enumerate(entries):
        pair = _lengths(entry, tokens_per_word)
        if pair is None:
            raise UserError(
                f"{path}, entry {number}: expected conversations with values, or input_length and "
                "output_length"
            )
        pairs.append(pair)
    return [pair for pair in pairs if min(pair) > 0]


def _lengths(entry: Any, tokens_per_word: float) -> tuple[int, int] | None:
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
    words = [len(turn["value"].split()) for turn in turns[:2]]
    first, second = (*words, 0, 0)[:2]
    return round(first * tokens_per_word), round(second * tokens_per_word)
