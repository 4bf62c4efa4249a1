"""Prefetch of what is asked for most."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import islice
from math import inf, log2

from policies.parameters import checked_count, duration_ns
from policies.prefetch.queue import QueuePrefetch
from policies.view import RequestView


class PopularPrefetch(QueuePrefetch):
    """What waits, then the `top_k` most popular adapters, the most popular first.

    An adapter's popularity is the number of requests for it, of which each counts for half as much after
    `half_life_s` (frequency with exponential decay, as in LRFU, Lee et al., IEEE ToC 2001). No more are
    wanted than the host cache has entries beside those for what waits and runs; `top_k=None`: as many.
    """

    def __init__(self, half_life_s: float = 60, top_k: int | None = None) -> None:
        """Raises ValueError for a parameter out of its range."""
        super().__init__()
        self._half_life_ns = duration_ns("half_life_s", half_life_s, positive=True)
        self._top_k = None if top_k is None else checked_count("top_k", top_k)
        self._scores: dict[str, float] = {}
        """Logarithm to base 2 of the popularity at time 0: all decay alike, so that their order stays."""
        self._last_ns: dict[str, int] = {}
        self._ranking: list[tuple[float, str]] = []
        """Minus the score, and the adapter, sorted."""

    def on_arrival(self, request: RequestView) -> None:
        """Its adapter is more popular. A preempted request is not new."""
        super().on_arrival(request)
        adapter, time_ns = request.adapter, request.arrival_ns
        if adapter is None or time_ns < self._last_ns.get(adapter, 0):
            return
        self._last_ns[adapter] = time_ns
        score, newest = self._scores.get(adapter, -inf), time_ns / self._half_life_ns
        if adapter in self._scores:
            del self._ranking[bisect_left(self._ranking, (-score, adapter))]
        self._scores[adapter] = score = newest + log2(1 + 2 ** (score - newest))
        insort(self._ranking, (-score, adapter))

    def wanted(self) -> Iterator[str]:
        """Yield what waits, then what is popular, as far as there is room."""
        yield from self._num_waiting
        others = (adapter for _, adapter in self._ranking[: self._top_k] if adapter not in self._num_waiting)
        yield from islice(others, max(0, self._num_spare()))
