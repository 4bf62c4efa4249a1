"""LoRAX's adapter cycle: places are exchanged, but not while they are in use."""

from collections.abc import Iterator

from policies.admission.protocol import AdmissionView, R
from policies.admission.turns import Turns
from policies.parameters import duration_ns


class AdapterCycle(Turns[R]):
    """LoRAX's `AdapterQueuesState` (github.com/predibase/lorax, router/src/queue.rs).

    There are `max_loras` places (LoRAX: `max_active_adapters`), and a queue of adapters that wait for one.
    While it is not empty, the place of an adapter for which nothing waits or runs is given to its first, and
    so is the oldest place once it has been held for `adapter_cycle_time_s` and nobody runs for its adapter.
    Requests for adapters within their time come before those for adapters over it, each in order of arrival.

    As in LoRAX an adapter in use keeps its place, and what arrives for it is let in as long as there is room.
    So an adapter whose traffic never pauses is never exchanged, and others may wait as long as it lasts.
    """

    def __init__(self, adapter_cycle_time_s: float = 2) -> None:
        """Raises ValueError for a time that is not above 0."""
        super().__init__()
        self._cycle_ns = duration_ns("adapter_cycle_time_s", adapter_cycle_time_s, positive=True)

    def candidates(self, view: AdmissionView) -> Iterator[R]:
        """Yield requests for the base model and adapters within their time, then for those over it."""
        self._advance()
        over_ns = self._engine.now_ns - self._cycle_ns
        within = [adapter for adapter, since_ns in self._places.items() if since_ns > over_ns]
        yield from self._merge((None, *within), view)
        yield from self._merge([adapter for adapter in self._places if adapter not in within], view)

    def _settle(self, now_ns: int) -> int | None:
        while self._pending:
            if len(self._places) < self._engine.max_loras:
                self._begin(next(iter(self._pending)), now_ns)
            elif (adapter := self._next_out(now_ns)) is not None:
                self._end(adapter, now_ns)
            else:
                break
        ends_ns = (since_ns + self._cycle_ns for since_ns in self._places.values())
        return min((end_ns for end_ns in ends_ns if end_ns > now_ns), default=None)

    def _next_out(self, now_ns: int) -> str | None:
        """An adapter that nobody needs, or the one with the oldest place where its time is over."""
        for adapter in self._places:
            if self._is_idle(adapter):
                return adapter
        oldest = next(iter(self._places))
        over = self._places[oldest] + self._cycle_ns <= now_ns
        return oldest if over and oldest not in self._running else None
