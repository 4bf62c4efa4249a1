"""What will arrive: for policies that are bounds, and could not exist."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from math import inf

from sim.workload import RequestSpec, WorkloadConfig, requests

FARTHEST = 100_000
"""Requests beyond so many more are never."""


class WorkloadFuture:
    """Reads a workload ahead of its client, and again from its beginning.

    In a closed loop nobody knows when a request will be sent, but in which order: the n-th from now counts as
    n ns from now.
    """

    def __init__(self, config: WorkloadConfig, seed: int, num_sent: Callable[[], int]) -> None:
        self._config = config
        self._seed = seed
        self._num_sent = num_sent
        self._specs: Iterator[RequestSpec] | None = None
        self._num_read = 0
        self._times: defaultdict[str | None, deque[int]] = defaultdict(deque)

    def next_arrival_ns(self, adapter: str, now_ns: int) -> float:
        """When the next request for `adapter` arrives after `now_ns`; infinity: never, or very late."""
        closed = self._config.mode == "closed"
        sent = self._num_sent()
        passed = sent - 1 if closed else now_ns
        times = self._times[adapter]
        while times and times[0] <= passed:
            times.popleft()
        while not times and self._num_read < sent + FARTHEST:
            if not self._read():
                return inf
            while times and times[0] <= passed:
                times.popleft()
        if not times:
            return inf
        return now_ns + times[0] - passed if closed else times[0]

    def _read(self) -> bool:
        """Read one more request; returns whether there is one."""
        if self._specs is None:
            self._specs = requests(self._config, self._seed)
        spec = next(self._specs, None)
        if spec is None:
            return False
        closed = self._config.mode == "closed"
        self._times[spec.adapter].append(self._num_read if closed else spec.arrival_ns)
        self._num_read += 1
        return True
