"""One request as the client sends it."""

from typing import NamedTuple


class RequestSpec(NamedTuple):
    """One request as the client sends it. Lengths in tokens.

    ``arrival_ns`` counts from the start of the run; in a closed loop it is 0, for "as soon as one of the
    ``concurrency`` places is free".
    """

    request_id: str
    arrival_ns: int
    adapter: str | None
    """Null asks for the base model, without LoRA."""
    input_length: int
    output_length: int
    priority: int = 0
    """The smaller, the more urgent, as in vLLM."""
    abort_ns: int | None = None
    """The client gives up so long after the arrival."""
    hash_ids: tuple[int, ...] = ()
    """Identities of the prompt's first blocks of ``hash_block_size`` tokens, each with all before it."""
