"""One replica after another."""

from collections.abc import Sequence

from policies.routing.protocol import ReplicaView, RoutedRequest


class RoundRobin:
    """What a plain load balancer does; it looks neither at the request nor at the replicas."""

    def __init__(self) -> None:
        self._next = 0

    def route(self, request: RoutedRequest, replicas: Sequence[ReplicaView]) -> int:
        """Return the replica after the one before."""
        chosen = self._next % len(replicas)
        self._next = chosen + 1
        return chosen
