"""Denning's working sets: adapters keep their places for as long as they are in demand."""

from collections.abc import Iterator
from itertools import islice

from policies.admission.protocol import AdmissionView, R
from policies.admission.turns import Turns
from policies.parameters import duration_ns


class WorkingSet(Turns[R]):
    """The working-set policy for main memory (P. J. Denning, CACM 11(5), 1968), with adapters for pages.

    An adapter is referenced when a request for it arrives and when it gets one of the `max_loras` places, and
    is in the working set for `window_s` from then. Adapters of the working set keep their places, so that
    they are not switched to and fro. Others wait outside, in order, for a place that nobody needs, or whose
    adapter has left the working set. Where the working set does not fit, waiting is bounded: for an adapter
    that has waited for `max_wait_s`, the least recently referenced one gives up its place. A place that is
    given up in use takes nobody more, and is free when its last running request has finished. What is
    admitted is grouped by adapter, the one whose first request came first in front.
    """

    def __init__(self, window_s: float = 10, max_wait_s: float = 5) -> None:
        """Raises ValueError for a time that is not above 0."""
        super().__init__()
        self._window_ns = duration_ns("window_s", window_s, positive=True)
        self._max_wait_ns = duration_ns("max_wait_s", max_wait_s, positive=True)
        self._referenced_ns: dict[str | None, int] = {}

    def add(self, request: R) -> None:
        """Append; its adapter is in the working set now."""
        self._advance()
        self._referenced_ns[request.adapter] = self._engine.now_ns
        super().add(request)

    def candidates(self, view: AdmissionView) -> Iterator[R]:
        """Yield requests for the base model, then those for one adapter after another."""
        self._advance()
        yield from self._merge((None,), view)
        firsts = [self._first(adapter) for adapter in self._places if adapter not in self._closed]
        for entry in sorted(entry for entry in firsts if entry is not None):
            yield from self._merge((entry[2].adapter,), view)

    def _settle(self, now_ns: int) -> int | None:
        self._end_closed(now_ns)
        while len(self._pending) > len(self._closed):
            if len(self._places) < self._engine.max_loras:
                adapter = next(iter(self._pending))
                self._begin(adapter, now_ns)
                self._referenced_ns[adapter] = now_ns
                continue
            free = next(filter(self._is_idle, self._places), None)
            if free is not None:
                self._end(free, now_ns)
                continue
            in_use = [adapter for adapter in self._places if adapter not in self._closed]
            if not in_use:
                return None
            least_recent = min(in_use, key=lambda adapter: self._referenced_ns[adapter])
            due_ns = self._give_up_ns(least_recent)
            if due_ns > now_ns:
                return due_ns
            self._closed[least_recent] = None
            self._end_closed(now_ns)
        return None

    def _give_up_ns(self, adapter: str) -> int:
        """When `adapter` leaves the working set, or somebody has waited too long for its place."""
        # Those before it in the line get the places that are given up already.
        since_ns = next(islice(self._pending.values(), len(self._closed), None))
        return min(self._referenced_ns[adapter] + self._window_ns, since_ns + self._max_wait_ns)
