"""Prompts of given lengths, made up where a workload has no texts."""

from collections.abc import Callable

from sim.errors import UserError
from sim.workload import RequestSpec
from sim.workload.streams import stream

TOKEN_IDS = range(1000, 30_000)
"""Ordinary tokens of any vocabulary of 30,000 and more."""

WORDS = (
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school"),
    *("state", "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week"),
    *("company", "system", "program", "question", "work", "number", "night", "point", "home", "water"),
    *("room", "mother", "area", "money", "story", "fact", "month", "lot", "right", "study", "book", "eye"),
    *("job", "word", "business", "issue", "side", "kind", "head", "house", "service", "friend", "father"),
    *("power", "hour", "game", "line", "end", "member", "law", "car", "city", "name"),
)
"""Common English words: with the space before it, each is one token of most tokenizers."""


def token_ids(spec: RequestSpec, seed: int, salt: str, hash_block_size: int) -> list[int]:
    """Return a prompt of exactly `spec.input_length` random tokens, its own but for `spec.hash_ids`.

    `salt` makes the prompts of one run differ from those of the next, which would find them cached.
    """

    def ids(name: str, size: int) -> list[int]:
        drawn: list[int] = (
            stream(seed, f"{salt}/{name}").integers(TOKEN_IDS.start, TOKEN_IDS.stop, size).tolist()
        )
        return drawn

    shared = [token for block in spec.hash_ids for token in ids(f"block/{block}", hash_block_size)]
    shared = shared[: spec.input_length]
    return shared + ids(f"prompt/{spec.request_id}", spec.input_length - len(shared))


def words(spec: RequestSpec, seed: int, salt: str, hash_block_size: int) -> str:
    """Return a prompt of `spec.input_length` words: about so many tokens."""
    return " ".join(WORDS[token % len(WORDS)] for token in token_ids(spec, seed, salt, hash_block_size))


Prompts = Callable[[RequestSpec, int, str, int], str | list[int]]
KINDS: dict[str, Prompts] = {"token_ids": token_ids, "words": words}


def prompts_of(kind: str | None, api: str) -> Prompts:
    """Return what makes the prompts: by default token ids where `api` takes them. Raises UserError."""
    kind = kind or ("token_ids" if api == "completions" else "words")
    if kind not in KINDS:
        raise UserError(f"prompts={kind!r}: expected one of {', '.join(KINDS)}")
    if kind == "token_ids" and api != "completions":
        raise UserError("prompts=token_ids: api=chat takes text alone; expected prompts=words")
    return KINDS[kind]
