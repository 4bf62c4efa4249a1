"""First come, first served from one queue, searched from its head in every step: vLLM 0.8.5's."""

from bisect import bisect_left
from collections.abc import Iterator

from policies.admission.adapter_lines import AdapterLines
from policies.admission.protocol import AdmissionView, R

STRIDE = 512
"""Places that are counted together."""


class OneQueue(AdapterLines[R]):
    """`Scheduler.waiting` of vLLM 0.8.5 (vllm/v1/core/sched/scheduler.py).

    A request whose adapter does not fit is taken out and, at the end of the step, put back where it was, so
    that every step passes over all that wait in front of what it admits: `AdmissionView.num_passed_over`
    counts them. A preempted request goes to the head of the queue.
    """

    def __init__(self) -> None:
        super().__init__()
        self._next_place = 0
        self._next_front = -1
        self._front: list[int] = []
        self._present = bytearray()
        self._counts: list[int] = []

    def add(self, request: R) -> None:
        """Append."""
        place = self._next_place
        self._next_place += 1
        self._present.append(1)
        if place % STRIDE == 0:
            self._counts.append(0)
        self._counts[-1] += 1
        self._insert(request, place)

    def overtakes(self, request: R) -> bool:
        """Never: it goes to the end."""
        return False

    def requeue(self, request: R) -> None:
        """Prepend."""
        place = self._next_front
        self._next_front -= 1
        self._front.insert(0, place)
        self._insert(request, place)

    def remove(self, request: R) -> None:
        """Forget a waiting request. Raises KeyError if it is not waiting."""
        place: int = self._entries.pop(request)[0]
        if place < 0:
            self._front.remove(place)
        else:
            self._present[place] = 0
            self._counts[place // STRIDE] -= 1

    def _matching(self, view: AdmissionView) -> Iterator[R]:
        """Count what lies in front of the last request that is tried; everything if none is left to try."""
        for request in super()._matching(view):
            view.num_passed_over = self._num_before(self._entries[request][0])
            yield request
        view.num_passed_over = len(self)

    def _num_before(self, place: int) -> int:
        """How many wait in front of `place`."""
        if place < 0:
            return bisect_left(self._front, place)
        stride = place // STRIDE
        in_stride = self._present.count(1, stride * STRIDE, place)
        return len(self._front) + sum(self._counts[:stride]) + in_stride
