"""What policies see of a simulated engine."""

from collections.abc import Collection
from dataclasses import dataclass
from math import inf
from typing import Protocol

from simpy import Environment

from policies.view import Costs, RequestView
from sim.adapters import AdapterTiers
from sim.config import EngineConfig
from sim.policy.limits import Limits
from sim.scheduler import Scheduler


class Future(Protocol):
    """Who knows what will arrive."""

    def next_arrival_ns(self, adapter: str, now_ns: int) -> float:
        """When the next request for `adapter` arrives after `now_ns`; infinity: never."""
        ...


class _Unknown:
    def next_arrival_ns(self, adapter: str, now_ns: int) -> float:
        return inf


NO_FUTURE: Future = _Unknown()
"""Of a server: nobody knows what will arrive."""


@dataclass(frozen=True, eq=False)
class LiveEngine(Limits):
    """`policies.view.EngineView` of a simulated engine: nothing here is a copy."""

    env: Environment
    config: EngineConfig
    scheduler: Scheduler
    tiers: AdapterTiers
    costs: Costs
    future: Future

    @property
    def now_ns(self) -> int:
        """The simulated clock."""
        return int(self.env.now)

    @property
    def slots(self) -> Collection[str]:
        """The adapters in GPU slots."""
        return self.tiers.slots.keys()

    @property
    def host_cache(self) -> Collection[str]:
        """The adapters in the host cache."""
        return self.tiers.host_cache

    @property
    def running(self) -> Collection[RequestView]:
        """The running requests, in vLLM's order."""
        return self.scheduler.running

    def num_running(self, adapter: str) -> int:
        """Running requests that ask for `adapter`."""
        return self.scheduler.running_loras.get(adapter, 0)

    def num_waiting(self, adapter: str) -> int:
        """Waiting requests that ask for `adapter`."""
        return self.scheduler.waiting_loras.get(adapter, 0)

    def num_output_tokens(self, request: RequestView) -> int:
        """Tokens that `request` has generated, as far as results are known."""
        return self.scheduler.num_output_tokens(request)  # type: ignore[arg-type]

    def next_arrival_ns(self, adapter: str) -> float:
        """When the next request for `adapter` will arrive."""
        return self.future.next_arrival_ns(adapter, self.now_ns)
