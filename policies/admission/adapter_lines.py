"""Waiting requests in one order, held so that only those that a step can take are looked at."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Generic

from policies.admission.protocol import AdmissionView, R
from policies.view import EngineView

Entry = tuple[Any, int, R]
"""Place in the order, a serial number that no two entries share, and the request."""


class AdapterLines(ABC, Generic[R]):
    """A waiting queue whose subclasses say which place a request takes; the smallest place is first.

    Requests wait in one heap per adapter, and the adapters in a heap by their first request's place. Once
    `max_loras` adapters are in the step, only the heaps of those adapters are looked at, so the cost of a
    step does not grow with the number of waiting requests or of adapters. A candidate that the scheduler
    passes over closes its adapter's line until the next step: what it lacks, all requests of the line lack.
    """

    def __init__(self) -> None:
        self._entries: dict[R, Entry[R]] = {}
        self._lines: dict[str | None, list[Entry[R]]] = {}
        self._heads: list[Entry[R]] = []
        self._listed: dict[str | None, Entry[R]] = {}
        self._aside: list[Entry[R]] = []
        self._passed_over: set[str | None] = set()
        self._num_entries = 0

    def bind(self, engine: EngineView) -> None:
        """Only what waits decides."""

    @abstractmethod
    def add(self, request: R) -> None:
        """Take in a request that has just arrived."""

    @abstractmethod
    def requeue(self, request: R) -> None:
        """Take back a request that was preempted."""

    def overtakes(self, request: R) -> bool:
        """It might, for all that is known here."""
        return True

    def remove(self, request: R) -> None:
        """Forget a waiting request. Raises KeyError if it is not waiting."""
        del self._entries[request]

    def admit(self, request: R) -> None:
        """Take a candidate out of the line."""
        self.remove(request)

    def candidates(self, view: AdmissionView) -> Iterator[R]:
        """Yield in order of place, and once the step has `max_loras` adapters only requests for those."""
        if self._aside:
            self._bring_back()
        full = len(view.scheduled_loras) >= view.max_loras
        return self._matching(view) if full else self._in_line(view)

    def _in_line(self, view: AdmissionView) -> Iterator[R]:
        """Go along the heads until the step has `max_loras` adapters."""
        while len(view.scheduled_loras) < view.max_loras:
            head = self._head()
            if head is None:
                return
            # Where a line has had another first, its head may be listed twice.
            entry = None if head[2].adapter in self._passed_over else self._first(head[2].adapter)
            if entry is not None:
                yield entry[2]
            if entry is None or self._waits(entry):
                self._set_aside(head)
        yield from self._matching(view)

    def on_finish(self, request: R) -> None:
        """Only what waits decides."""

    def next_change_ns(self) -> int | None:
        """Return None: only what waits and runs decides."""
        return None

    def _matching(self, view: AdmissionView) -> Iterator[R]:
        """Merge the lines of the step's adapters and of requests without one."""
        return self._merge((None, *view.scheduled_loras), view)

    def _merge(self, adapters: Iterable[str | None], view: AdmissionView) -> Iterator[R]:
        """Yield from the lines of `adapters` in order of place, as far as the step can take them."""
        waited_for = self._lines.keys() & adapters
        if self._passed_over:
            waited_for -= self._passed_over
        # Places tell entries apart: the order of the set makes no difference to that of the heap.
        heap = [entry for adapter in waited_for if (entry := self._first(adapter)) is not None]
        return self._merged(heap, view) if heap else iter(())

    def _merged(self, heap: list[Entry[R]], view: AdmissionView) -> Iterator[R]:
        """Yield from the lines whose first entries are given."""
        heapify(heap)
        while heap:
            entry = heap[0]
            following = None
            if view.accepts(entry[2].adapter):
                yield entry[2]
                if not self._waits(entry):
                    following = self._first(entry[2].adapter)
            if following is None:
                heappop(heap)
            else:
                heapreplace(heap, following)

    def _first(self, adapter: str | None) -> Entry[R] | None:
        """Which request of an adapter's line is tried next; None: nobody."""
        line = self._lines.get(adapter)
        if line is None:
            return None
        if self._entries.get(line[0][2]) is not line[0]:
            line = self._line(adapter)
        return line[0] if line else None

    def _waits(self, entry: Entry[R]) -> bool:
        return self._entries.get(entry[2]) is entry

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

    def _set_aside(self, head: Entry[R]) -> None:
        """Let `head`, the first of the whole line, and its adapter wait for `_bring_back`."""
        if self._heads[0] is head:
            self._aside.append(heappop(self._heads))
            self._passed_over.add(head[2].adapter)

    def _bring_back(self) -> None:
        """Undo what a walk along the heads has set aside, which may have ended anywhere."""
        for entry in self._aside:
            heappush(self._heads, entry)
        self._aside.clear()
        self._passed_over.clear()

    def is_first(self, request: R) -> bool:
        """Whether `request` is the first of all, but for those that were passed over in this step."""
        head = self._head()
        return head is not None and head[2] is request

    def __iter__(self) -> Iterator[R]:
        """Iterate over the waiting requests, in order."""
        return (entry[2] for entry in sorted(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)
