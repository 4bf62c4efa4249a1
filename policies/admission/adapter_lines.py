"""Waiting requests in one order, held so that only those that a step can take are looked at."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Generic

from policies.admission.protocol import AdmissionView, R

Entry = tuple[Any, int, R]
"""Place in the order, a serial number that no two entries share, and the request."""


class AdapterLines(ABC, Generic[R]):
    """A waiting queue whose subclasses say which place a request takes; the smallest place is first.

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

    @abstractmethod
    def add(self, request: R) -> None:
        """Take in a request that has just arrived."""

    @abstractmethod
    def requeue(self, request: R) -> None:
        """Take back a request that was preempted."""

    def remove(self, request: R) -> None:
        """Forget a waiting request. Raises KeyError if it is not waiting."""
        del self._entries[request]

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

    def next_change_ns(self) -> int | None:
        """Return None: only what waits and runs decides."""
        return None

    def take_passed_over(self) -> int:
        """Return 0: requests of other adapters are not looked at."""
        return 0

    def _matching(self, view: AdmissionView) -> Iterator[R]:
        """Merge the lines of the step's adapters and of requests without one."""
        waiting = self._lines
        lines = [self._line(adapter) for adapter in (None, *view.scheduled_loras) if adapter in waiting]
        heads = [(line[0], line) for line in lines if line]
        heapify(heads)
        while heads:
            request = heads[0][0][2]
            yield request
            if line := self._line(request.adapter):
                heapreplace(heads, (line[0], line))
            else:
                heappop(heads)

    def _insert(self, request: R, place: Any) -> None:
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
        line = self._lines.get(adapter)
        if line is None:
            return []
        while line and self._entries.get(line[0][2]) is not line[0]:
            heappop(line)
        if not line:
            del self._lines[adapter]
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
