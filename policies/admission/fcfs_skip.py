"""First come, first served, passing over requests whose adapter does not fit in the step: vLLM's default."""

from collections.abc import Iterator
from fractions import Fraction
from math import ceil

from policies.admission.adapter_lines import AdapterLines
from policies.admission.protocol import AdmissionView, R

Place = int | Fraction


class FcfsSkip(AdapterLines[R]):
    """vLLM's `waiting` and `skipped_waiting` queues with `policy=fcfs` (vllm/v1/core/sched/scheduler.py).

    vLLM tries `skipped_waiting` before `waiting` and moves what it passes over to the end of the former, one
    request after another. Neither queue ever changes its inner order, so both together are one line in which
    `skipped_waiting` is everything in front of a boundary. Here each request has a place in that line (an
    arrival an integer, a preempted request a fraction in between), and passing over a thousand requests only
    moves the boundary. It matters for one thing: a preempted request goes back to the front of `waiting`,
    which is the boundary.
    """

    def __init__(self) -> None:
        super().__init__()
        self._next_arrival = 1
        self._boundary: Place = 1
        self._requeued: list[Place] = []
        self._last_skipped: Place = 0

    def add(self, request: R) -> None:
        """Append to `waiting`."""
        self._insert(request, self._next_arrival)
        self._next_arrival += 1

    def overtakes(self, request: R) -> bool:
        """Never: it goes to the end."""
        return False

    def requeue(self, request: R) -> None:
        """Prepend to `waiting`, behind everything in `skipped_waiting`."""
        while self._requeued and self._requeued[-1] < self._boundary:
            self._last_skipped = self._requeued.pop()
        arrival_behind = ceil(self._boundary)
        behind = self._requeued[-1] if self._requeued else arrival_behind
        ahead = max(self._last_skipped, arrival_behind - 1)
        self._boundary = Fraction(ahead + behind) / 2
        self._requeued.append(self._boundary)
        self._insert(request, self._boundary)

    def remove(self, request: R) -> None:
        """Forget a waiting request. Raises KeyError if it is not waiting."""
        place = self._entries.pop(request)[0]
        if self._requeued and self._requeued[-1] == place:
            self._requeued.pop()

    def _matching(self, view: AdmissionView) -> Iterator[R]:
        """Move the boundary along."""
        for request in super()._matching(view):
            self._boundary = max(self._boundary, self._entries[request][0])
            yield request
        self._boundary = self._next_arrival
