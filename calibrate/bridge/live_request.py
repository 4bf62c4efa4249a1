"""What policies see of one of vLLM's requests."""

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True, eq=False)
class LiveRequest:
    """A `policies.view.RequestView` of a request of vLLM's; compared by identity."""

    request: Any
    """vLLM's own (vllm/v1/request.py)."""
    request_id: str
    arrival_ns: int
    """On the clock of `LiveEngine.now_ns`."""
    priority: int
    adapter: str | None
    num_prompt_tokens: int
    max_tokens: int
    waiting: bool = True
    """Whether it waits; else it runs."""
