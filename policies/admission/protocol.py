"""What an admission policy is given and what it must offer."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from policies.view import EngineView, RequestView

WaitingRequest = RequestView


@dataclass(slots=True)
class AdmissionView:
    """State of the step that is being scheduled; it changes as candidates are admitted."""

    max_loras: int
    """Most distinct adapters that one step may use."""
    scheduled_loras: Collection[str]
    """The adapters that the step uses so far, in order of first appearance."""
    num_passed_over: int = 0
    """Waiting requests that were looked at in vain so far, in front of the last one that was tried. A policy
    says so whose engine looks at each of them (`OneQueue`); to others it costs nothing."""

    def accepts(self, adapter: str | None) -> bool:
        """Whether a request for `adapter` would keep the step within `max_loras`."""
        return (
            adapter is None or len(self.scheduled_loras) < self.max_loras or adapter in self.scheduled_loras
        )


R = TypeVar("R", bound=RequestView)


class AdmissionPolicy(Protocol[R]):
    """The waiting queue itself: it holds every request that is not running, and says which to try next."""

    def bind(self, engine: EngineView) -> None:
        """Get to know the engine, once, before anything else."""
        ...

    def add(self, request: R) -> None:
        """Take in a request that has just arrived."""
        ...

    def requeue(self, request: R) -> None:
        """Take back a request that was preempted."""
        ...

    def overtakes(self, request: R) -> bool:
        """Whether `request`, which arrives now, might be tried before one that waits already."""
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

    def on_finish(self, request: R) -> None:
        """`request`, which was running, has left the engine: complete, or aborted."""
        ...

    def next_change_ns(self) -> int | None:
        """When a step like the last one might be given other candidates, though no request came or went.

        None: never. A policy that looks at the clock, or at the tokens that running requests generate, must
        say when; the steps until then may be simulated at once, without asking for candidates. A time that is
        not after now means the very next step. When nothing runs, the engine asks for candidates again then.
        """
        ...

    def __len__(self) -> int:
        """Number of waiting requests."""
        ...
