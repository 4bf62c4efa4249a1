"""The simulated engines of a server: as a simulation makes them, with no future."""

from collections.abc import Sequence

from simpy import Environment

from sim.engine import Observer, Place, Turn
from sim.policy.objects import policy
from sim.replica import Observe, Replica, Shared, naming_the_step
from sim.router import Router
from sim.serve.config import ServeConfig


def make_replicas(env: Environment, config: ServeConfig, observers: Sequence[Observer]) -> list[Replica]:
    """Return an engine for each observer. Raises UserError and DoesNotFit."""
    turn, shared = Turn(), Shared(env, config, config.ranks, compiled=False)

    def told(observer: Observer) -> Observe:
        return lambda slots: observer

    with naming_the_step(env, ()):
        return [Replica(shared, Place(rank, turn), told(observer)) for rank, observer in enumerate(observers)]


def make_router(config: ServeConfig, replicas: Sequence[Replica]) -> Router:
    """Return the router in front of the replicas."""
    return Router([replica.engine for replica in replicas], policy(config.routing, "routing"))
