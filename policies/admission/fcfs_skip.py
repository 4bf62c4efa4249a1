"""First come, first served, passing over requests whose adapter does not fit in the step: vLLM's default."""

from collections.abc import Iterator
from fractions import Fraction
from heapq import heapify, heappop, heappush, heapreplace
from math import ceil
from typing import Generic

from policies.admission.protocol import AdmissionView, R

Place = int | Fraction
Entry = tuple[Place, int, R]
"""Place in the line, a serial number that no two entries share, and the request."""


class FcfsSkip(Generic[R]):
    """vLLM's `waiting` and `skipped_waiting` queues with `policy=fcfs` (vllm/v1/core/sched/scheduler.py).

    vLLM tries `skipped_waiting` before `waiting` and moves what it passes over to the end of the former, one
    request after another. Neither queue ever changes its inner order, so both together are one line in which
    `skipped_waiting` is everything in front of a boundary. Here each request has a place in that line (an
    arrival an integer, a preempted request a fraction in between), and passing over a thousand requests only
    moves the boundary. It matters for one thing: a preempted request goes back to the front of `waiting`,
    which is the boundary.

    Requests wait in one heap per adapter, and the adapters in a heap by their first request's place. Once
    `max_loras` adapters are in the step, only the heaps of those adapters are looked at, so the cost of a
    step does not grow with the number of waiting requests or of adapters.
    """

    def __init__(self) -> None:
        self._entries: dict[R, Entry[R]] = {}
        self._lines: dict[str | None, list[Entry[R]]] = {}
        self._heads: list[Entry[R]] = []
        self._listed: dict[str | None, Entry[R]] = {}
        self._num_entries = 0
        self._next_arrival = 1
        self._boundary: Place = 1
        self._requeued: list[Place] = []
        self._last_skipped: Place = 0

    def add(self, request: R) -> None:
        """Append to `waiting`."""
        self._insert(request, self._next_arrival)
        self._next_arrival += 1

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

    def admit(self, request: R) -> None:
        """Take a candidate out of the line."""
        self.remove(request)

    def candidates(self, view: AdmissionView) -> Iterator[R]:
        """Yield in order of place, and once the step has `max_loras` adapters only requests for those."""
        while len(view.scheduled_loras) < view.max_loras:
            head = self._head()
            if head is None:
                return
            yield head[2]
        yield from self._matching(view)

    def _matching(self, view: AdmissionView) -> Iterator[R]:
        """Merge the lines of the step's adapters and of requests without one, moving the boundary along."""
        lines = (self._line(adapter) for adapter in (None, *view.scheduled_loras))
        heads = [(line[0], line) for line in lines if line]
        heapify(heads)
        while heads:
            (place, _, request), _ = heads[0]
            self._boundary = max(self._boundary, place)
            yield request
            if line := self._line(request.adapter):
                heapreplace(heads, (line[0], line))
            else:
                heappop(heads)
        self._boundary = self._next_arrival

    def _insert(self, request: R, place: Place) -> None:
        self._num_entries += 1
        entry = self._entries[request] = (place, self._num_entries, request)
        heappush(self._lines.setdefault(request.adapter, []), entry)
        listed = self._listed.get(request.adapter)
        if listed is None or entry < listed:
            self._list(entry)

    def _list(self, entry: Entry[R]) -> None:
        self._listed[entry[2].adapter] = entry
        heappush(self._heads, entry)

    def _line(self, adapter: str | None) -> list[Entry[R]]:
        """The heap of an adapter's waiting requests, cleared of removed ones in front."""
        line = self._lines.get(adapter, [])
        while line and self._entries.get(line[0][2]) is not line[0]:
            heappop(line)
        return line

    def _head(self) -> Entry[R] | None:
        """The first of the whole line. A listed entry may be gone, but none of its adapter is before it."""
        while self._heads:
            entry = self._heads[0]
            adapter = entry[2].adapter
            line = self._line(adapter)
            if line and line[0] is entry:
                return entry
            heappop(self._heads)
            if self._listed.get(adapter) is entry:
                del self._listed[adapter]
                if line:
                    self._list(line[0])
        return None

    def __len__(self) -> int:
        return len(self._entries)
