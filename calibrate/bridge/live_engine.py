"""What policies see of a running vLLM engine."""

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from typing import Any

from calibrate.bridge.live_request import LiveRequest
from policies.view import Costs
from sim.config import EngineConfig
from sim.policy.limits import Limits


class LiveEngine(Limits):
    """A `policies.view.EngineView`, kept up to date by the waiting queue and by the adapter tiers.

    `make_costs` is given the host cache.
    """

    def __init__(
        self,
        config: EngineConfig,
        make_costs: Callable[[Collection[str]], Costs],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.config = config
        self.slots: OrderedDict[str, None] = OrderedDict()
        """The adapters in GPU slots, the one used longest ago first."""
        self.host_cache: OrderedDict[str, None] = OrderedDict()
        """The adapters in the host cache, the one used longest ago first."""
        self._costs = make_costs(self.host_cache)
        self._clock = clock
        self._running: dict[LiveRequest, None] = {}
        self._num_running: Counter[str | None] = Counter()
        self._num_waiting: Counter[str | None] = Counter()

    @property
    def now_ns(self) -> int:
        """The engine's monotonic clock."""
        return self._clock()

    @property
    def running(self) -> Collection[LiveRequest]:
        """The running requests, in order of admission."""
        return self._running.keys()

    @property
    def costs(self) -> Costs:
        """What the profile expects."""
        return self._costs

    def num_running(self, adapter: str) -> int:
        """Running requests that ask for `adapter`."""
        return self._num_running[adapter]

    def num_waiting(self, adapter: str) -> int:
        """Waiting requests that ask for `adapter`."""
        return self._num_waiting[adapter]

    def num_output_tokens(self, request: Any) -> int:
        """Tokens of `request` that the scheduler knows."""
        return int(request.request.num_output_tokens)

    def next_arrival_ns(self, adapter: str) -> float:
        """Return infinity: an engine does not know."""
        return math.inf

    def is_in_use(self, adapter: str) -> bool:
        """Whether any request that runs or waits asks for `adapter`."""
        return self._num_running[adapter] > 0 or self._num_waiting[adapter] > 0

    def on_wait(self, request: LiveRequest) -> None:
        """`request` waits now: it has arrived, or was preempted."""
        self._num_waiting[request.adapter] += 1

    def on_run(self, request: LiveRequest) -> None:
        """`request`, which waited, runs now."""
        self.on_give_up(request)
        self._running[request] = None
        self._num_running[request.adapter] += 1

    def on_give_up(self, request: LiveRequest) -> None:
        """`request` waits no longer."""
        _count_down(self._num_waiting, request.adapter)

    def on_stop(self, request: LiveRequest) -> None:
        """`request`, which ran, runs no longer."""
        del self._running[request]
        _count_down(self._num_running, request.adapter)


def _count_down(counter: Counter[str | None], adapter: str | None) -> None:
    """Keep no zeros: there are any number of adapters."""
    counter[adapter] -= 1
    if not counter[adapter]:
        del counter[adapter]
