"""llmux's time slices: an adapter is served until nothing is left of it, or others have waited too long."""

from itertools import islice
from math import inf

from policies.admission.protocol import R
from policies.admission.turns import Turns
from policies.parameters import NS_PER_MS, checked_count, duration_ns


class TimeSlice(Turns[R]):
    """`policy_type: time_slice` of llmux (github.com/doublewordai/llmux, src/policy/time_slice.rs).

    `group_size` adapters at a time, each with a turn of its own; 1 is llmux, which serves one at a time. A
    background ticker looks every `tick_interval_ms`. A turn ends when nothing waits or runs for its adapter,
    but not within `min_active_secs`; the next is that of the adapter with most waiting requests. If a request
    of an adapter without a turn has waited for `max_wait_secs`, the oldest turn that has lasted
    `min_quantum_ms` too is closed, and ends when its last running request has finished (llmux drains before
    it switches). Adapters that have waited so long come before those with more requests.

    llmux answers a request that waits longer than `request_timeout_secs` with an error. Nothing is dropped
    here: for such a request a turn is closed at the next tick, however young the turn is.
    """

    def __init__(  # noqa: PLR0913  They are llmux's.
        self,
        *,
        group_size: int = 1,
        min_quantum_ms: float = 2000,
        max_wait_secs: float = 15,
        tick_interval_ms: float = 500,
        min_active_secs: float = 5,
        request_timeout_secs: float = 300,
    ) -> None:
        """Defaults are llmux's. Raises ValueError for a parameter out of its range."""
        super().__init__()
        self._group_size = checked_count("group_size", group_size)
        self._max_wait_ns = duration_ns("max_wait_secs", max_wait_secs)
        self._tick_ns = duration_ns("tick_interval_ms", tick_interval_ms, NS_PER_MS, positive=True)
        self._min_active_ns = duration_ns("min_active_secs", min_active_secs)
        self._min_quantum_ns = duration_ns("min_quantum_ms", min_quantum_ms, NS_PER_MS)
        self._timeout_ns = duration_ns("request_timeout_secs", request_timeout_secs)

    def overtakes(self, request: R) -> bool:
        """Never: those who have a turn are in order of arrival."""
        return False

    def _fall_due(self, now_ns: int) -> None:
        """Close, at a tick, every turn that has to end by now."""
        while (adapter := self._next_to_close(now_ns)) is not None:
            self._closed[adapter] = None

    def _settle(self, now_ns: int) -> int | None:
        self._end_closed(now_ns)
        while self._pending and len(self._places) < self._group_size:
            self._begin(self._next_in(now_ns), now_ns)
        times_ns = [self._close_ns(adapter) for adapter in self._places if adapter not in self._closed]
        due_ns = max(min(times_ns, default=inf), now_ns + 1)
        return None if due_ns == inf else -(-int(due_ns) // self._tick_ns) * self._tick_ns

    def _next_in(self, now_ns: int) -> str:
        """Whoever has waited too long, in order; else the adapter with most requests."""
        first = next(iter(self._pending))
        if self._waiting_since_ns(first) + min(self._max_wait_ns, self._timeout_ns) <= now_ns:
            return first
        return max(self._pending, key=lambda adapter: self._num_waiting[adapter])

    def _next_to_close(self, now_ns: int) -> str | None:
        """Of the turns that have to end by now, the oldest, but rather one that nobody needs."""
        due = [
            adapter
            for adapter in self._places
            if adapter not in self._closed and self._close_ns(adapter) <= now_ns
        ]
        return next(filter(self._is_idle, due), due[0]) if due else None

    def _close_ns(self, adapter: str) -> float:
        """When the turn of `adapter` may be closed for those who wait; infinity: not for them."""
        # Those before it in the line get the turns that are closed already.
        waiting = next(islice(self._pending, len(self._closed), None), None)
        if waiting is None:
            return inf
        since_ns, waiting_since_ns = self._places[adapter], self._waiting_since_ns(waiting)
        active_ns = since_ns + self._min_active_ns
        if self._is_idle(adapter):
            return min(active_ns, waiting_since_ns + self._timeout_ns)
        stale_ns = max(active_ns, since_ns + self._min_quantum_ns, waiting_since_ns + self._max_wait_ns)
        return min(stale_ns, waiting_since_ns + self._timeout_ns)

    def _waiting_since_ns(self, adapter: str) -> int:
        line = self._line(adapter)
        return line[0][2].arrival_ns
