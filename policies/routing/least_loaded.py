"""The replica with the fewest requests."""

from collections.abc import Sequence

from policies.routing.protocol import ReplicaView, RoutedRequest


def load(replica: ReplicaView) -> int:
    """Return the requests that a replica has, waiting or running."""
    return replica.num_waiting + replica.num_running


class LeastLoaded:
    """Fewest requests waiting or running; the first of several."""

    def route(self, request: RoutedRequest, replicas: Sequence[ReplicaView]) -> int:
        """Return the least loaded replica."""
        return min(range(len(replicas)), key=lambda index: load(replicas[index]))
