"""Prefetch of what will be asked for next, as far as the intervals between arrivals tell."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from policies.parameters import checked, duration_ns
from policies.prefetch.queue import QueuePrefetch
from policies.view import RequestView


class LookaheadPrefetch(QueuePrefetch):
    """What waits, then the adapters whose next request is expected within `horizon_s`, the next one first.

    The next request for an adapter is expected a mean interval after the last one. The mean is a moving one,
    in which the newest interval has the weight `newest_weight`. An adapter that is overdue by another mean
    interval is not expected any more. No more are wanted than the host cache has entries beside those for
    what waits and runs. (Intervals between arrivals decide what to bring in ahead of need in Shahrad et al.,
    Serverless in the Wild, USENIX ATC 2020, which Chameleon, arXiv 2411.17741, follows.)
    """

    def __init__(self, horizon_s: float = 10, newest_weight: float = 0.2) -> None:
        """Raises ValueError for a parameter out of its range."""
        super().__init__()
        self._horizon_ns = duration_ns("horizon_s", horizon_s)
        self._newest_weight = checked("newest_weight", newest_weight, above=0, at_most=1)
        self._last_ns: dict[str, int] = {}
        self._interval_ns: dict[str, float] = {}
        self._begins: list[tuple[int, str, int]] = []
        """Heap: when an adapter comes within the horizon, its name, and when it is expected."""
        self._ends: list[tuple[int, str, int]] = []
        """Heap: when an adapter is overdue, its name, and when it was expected."""
        self._expected_ns: dict[str, int] = {}
        """Of the adapters within the horizon."""

    def on_arrival(self, request: RequestView) -> None:
        """Learn from the interval since the last request for its adapter. A preempted one is not new."""
        super().on_arrival(request)
        adapter, time_ns = request.adapter, request.arrival_ns
        if adapter is None:
            return
        interval_ns = time_ns - self._last_ns.get(adapter, time_ns)
        if interval_ns > 0:
            mean_ns = self._interval_ns.get(adapter, interval_ns)
            mean_ns += self._newest_weight * (interval_ns - mean_ns)
            self._interval_ns[adapter] = mean_ns
            self._expected_ns.pop(adapter, None)
            expected_ns = time_ns + round(mean_ns)
            heappush(self._begins, (expected_ns - self._horizon_ns, adapter, expected_ns))
        if interval_ns >= 0:
            self._last_ns[adapter] = time_ns

    def wanted(self) -> Iterator[str]:
        """Yield what waits, then what is expected, as far as there is room."""
        yield from self._num_waiting
        self._advance()
        expected = [(time_ns, adapter) for adapter, time_ns in self._expected_ns.items()]
        heapify(expected)
        num_spare = self._num_spare()
        while expected and num_spare > 0:
            adapter = heappop(expected)[1]
            if adapter not in self._num_waiting:
                yield adapter
                num_spare -= 1

    def next_change_ns(self) -> int | None:
        """When an adapter comes within the horizon, or is overdue."""
        self._advance()
        while self._begins and not self._is_next(*self._begins[0][1:]):
            heappop(self._begins)
        while self._ends and not self._is_expected(*self._ends[0][1:]):
            heappop(self._ends)
        return min((heap[0][0] for heap in (self._begins, self._ends) if heap), default=None)

    def _advance(self) -> None:
        now_ns = self._engine.now_ns
        while self._begins and self._begins[0][0] <= now_ns:
            _, adapter, time_ns = heappop(self._begins)
            if self._is_next(adapter, time_ns):
                self._expected_ns[adapter] = time_ns
                heappush(self._ends, (time_ns + round(self._interval_ns[adapter]), adapter, time_ns))
        while self._ends and self._ends[0][0] <= now_ns:
            _, adapter, time_ns = heappop(self._ends)
            if self._is_expected(adapter, time_ns):
                del self._expected_ns[adapter]

    def _is_next(self, adapter: str, time_ns: int) -> bool:
        """Whether nothing has arrived since the next request was expected at `time_ns`."""
        return self._last_ns[adapter] + round(self._interval_ns[adapter]) == time_ns

    def _is_expected(self, adapter: str, time_ns: int) -> bool:
        return self._expected_ns.get(adapter) == time_ns
