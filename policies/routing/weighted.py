"""Each replica gets a share of the requests of its own."""

from collections.abc import Sequence
from random import Random

from policies.routing.protocol import ReplicaView, RoutedRequest


class Weighted:
    """Draws a replica for each request, with probabilities proportional to `weights`.

    A Poisson stream falls apart into independent Poisson streams. Weights beyond the replicas that there are
    count for nothing, and a replica beyond the weights gets nothing, unless no other does.
    """

    def __init__(self, weights: Sequence[float], seed: int = 0) -> None:
        if not weights or min(weights) < 0 or not any(weights):
            raise ValueError(
                f"weights={list(weights)}: expected one for each replica, none below 0, one above"
            )
        self._weights = list(weights)
        self._random = Random(seed)

    def route(self, request: RoutedRequest, replicas: Sequence[ReplicaView]) -> int:
        """Return the replica that is drawn."""
        weights = self._weights[: len(replicas)]
        weights += [0.0] * (len(replicas) - len(weights))
        if not any(weights):
            weights = [1.0] * len(replicas)
        return self._random.choices(range(len(replicas)), weights)[0]
