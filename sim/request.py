"""A request and its state in the engine."""

from dataclasses import dataclass, field
from enum import IntEnum, auto


class RequestStatus(IntEnum):
    """As vLLM's (vllm/v1/request.py), as far as they occur here; those after PREEMPTED are finished."""

    WAITING = auto()
    RUNNING = auto()
    PREEMPTED = auto()
    FINISHED_STOPPED = auto()
    FINISHED_LENGTH_CAPPED = auto()
    FINISHED_ABORTED = auto()


@dataclass(slots=True, eq=False)
class Request:
    """One request, compared and hashed by identity. Times are ns of simulated time, lengths tokens."""

    request_id: str
    arrival_ns: int
    num_prompt_tokens: int
    output_length: int
    """Tokens that it generates before it stops by itself; the scheduler does not know this."""
    max_tokens: int = 0
    """Most tokens that it may generate, which the scheduler knows; 0 stands for `output_length`."""
    adapter: str | None = None
    priority: int = 0
    """The smaller, the more urgent (`scheduling_policy=priority`)."""
    prefix_hashes: tuple[int, ...] = ()
    """For each of its first full blocks that another prompt may have too: what stands for the prompt up to
    the end of that block, as the `hash_ids` of a Mooncake trace do. What follows is its own."""

    status: RequestStatus = field(default=RequestStatus.WAITING, init=False)
    num_tokens: int = field(init=False)
    """Prompt and the output that is known so far."""
    final_num_tokens: int = field(init=False)
    """`num_tokens` at which it ends, unless the model's context does first."""
    num_computed_tokens: int = field(default=0, init=False)
    """Tokens whose KV is computed, or is being computed in a scheduled step."""
    num_output_placeholders: int = field(default=0, init=False)
    """Tokens of scheduled steps that are not known yet (asynchronous scheduling)."""
    num_kv_blocks: int = field(default=0, init=False)
    num_cached_blocks: int = field(default=0, init=False)
    """The first of its blocks, all full, which are in the prefix cache."""
    num_preemptions: int = field(default=0, init=False)
    scheduled_ns: int | None = field(default=None, init=False)
    """When it was scheduled for the first time."""
    first_token_ns: int | None = field(default=None, init=False)
    last_token_ns: int | None = field(default=None, init=False)
    finish_ns: int | None = field(default=None, init=False)
    """When it was complete."""
    abort_ns: int | None = field(default=None, init=False)
    """When its client gave it up."""

    def __post_init__(self) -> None:
        self.max_tokens = self.max_tokens or self.output_length
        self.num_tokens = self.num_prompt_tokens
        self.final_num_tokens = self.num_prompt_tokens + min(self.output_length, self.max_tokens)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated and known so far."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def is_finished(self) -> bool:
        """Whether it has left the engine."""
        return self.status > RequestStatus.PREEMPTED
