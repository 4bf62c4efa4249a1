"""What an admission policy is given and what it must offer."""

from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar


class WaitingRequest(Hashable, Protocol):
    """What a policy may know of a request. Requests are otherwise opaque, and compared by identity."""

    @property
    def request_id(self) -> str:
        """Its name, unique in a run."""
        ...

    @property
    def arrival_ns(self) -> int:
        """When it arrived, in ns."""
        ...

    @property
    def priority(self) -> int:
        """The smaller, the more urgent, as in vLLM."""
        ...

    @property
    def adapter(self) -> str | None:
        """The LoRA adapter that it asks for, or None for the base model."""
        ...


@dataclass(slots=True)
class AdmissionView:
    """State of the step that is being scheduled; it changes as candidates are admitted."""

    max_loras: int
    """Most distinct adapters that one step may use."""
    scheduled_loras: Collection[str]
    """The adapters that the step uses so far, in order of first appearance."""

    def accepts(self, adapter: str | None) -> bool:
        """Whether a request for `adapter` would keep the step within `max_loras`."""
        return (
            adapter is None or len(self.scheduled_loras) < self.max_loras or adapter in self.scheduled_loras
        )


R = TypeVar("R", bound=WaitingRequest)


class AdmissionPolicy(Protocol[R]):
    """The waiting queue itself: it holds every request that is not running, and says which to try next."""

    def add(self, request: R) -> None:
        """Take in a request that has just arrived."""
        ...

    def requeue(self, request: R) -> None:
        """Take back a request that was preempted."""
        ...

    def remove(self, request: R) -> None:
        """Forget a waiting request. Raises KeyError if it is not waiting."""
        ...

    def candidates(self, view: AdmissionView) -> Iterator[R]:
        """Yield the requests to try in this step, in order.

        The scheduler calls `admit` on each one that fits before it asks for the next, and stops asking when a
        request does not fit in the KV cache, or when the step is full. What is not admitted stays waiting.
        The scheduler passes over a candidate that `view` does not accept.
        """
        ...

    def admit(self, request: R) -> None:
        """Give up the candidate that was yielded last: it runs now."""
        ...

    def next_change_ns(self) -> int | None:
        """When a step like the last one might be given other candidates, though no request came or went.

        None: never. A policy that looks at the clock must say when; the steps until then may be simulated at
        once, without asking for candidates.
        """
        ...

    def take_passed_over(self) -> int:
        """Requests that were looked at and left waiting since this was last asked, where that costs time.

        0 for a queue that does not look at requests whose adapter does not fit.
        """
        ...

    def __len__(self) -> int:
        """Number of waiting requests."""
        ...
