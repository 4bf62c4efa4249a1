"""The router in front of several engines, and what its policy sees of them."""

import zlib
from collections.abc import Collection, Sequence

from policies.routing import RoutingPolicy
from sim.compiled.choice import AnyEngine
from sim.policy.supervision import WatchedRouting
from sim.request import Request


class ReplicaState:
    """What a routing policy may know of an engine."""

    def __init__(self, engine: AnyEngine) -> None:
        self._engine = engine
        self.num_unanswered = 0
        """Requests that it was given, and that it will not answer: it is lost, and nobody knows yet."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a place in the batch, or for their adapter."""
        return self._engine.num_waiting + self.num_unanswered

    @property
    def num_deferred(self) -> int:
        """Of those that wait: for their adapter to come, or for one of those that run to go."""
        return self._engine.num_deferred

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        return self._engine.num_running

    @property
    def num_in_flight(self) -> int:
        """Requests that it has."""
        return self.num_waiting + self.num_running

    @property
    def slots(self) -> Collection[str]:
        """The adapters in GPU slots."""
        return self._engine.slots

    @property
    def host_cache(self) -> Collection[str]:
        """The adapters in the host cache."""
        return self._engine.host_cache


class Router:
    """Asks the policy which engine gets a request."""

    def __init__(self, engines: Sequence[AnyEngine], policy: RoutingPolicy) -> None:
        self.engines = engines
        self._policy = WatchedRouting(policy)
        self.states = [ReplicaState(engine) for engine in engines]
        self.live = list(range(len(engines)))
        """The replicas that are known to be there; the policy sees these alone, and counts them anew."""

    def route(self, request: Request) -> int:
        """Return the index of a live engine. Raises PolicyError for a policy that returns none."""
        if len(self.live) == 1:
            return self.live[0]
        return self.live[self._policy.route(request, [self.states[index] for index in self.live])]

    def lose(self, replica: int) -> None:
        """Send nothing more to a replica."""
        self.live.remove(replica)


def replica_seed(seed: int, replica: int) -> int:
    """Return the seed of a replica's own chance (load times, order of loads); the first has the run's."""
    return zlib.crc32(f"{seed}/replica-{replica}".encode()) if replica else seed
