"""Each replica gets a share of the requests of its own."""

from collections.abc import Sequence
from random import Random

from policies.parameters import checked, checked_count
from policies.routing.protocol import ReplicaView, RoutedRequest


class Weighted:
    """Draws a replica for each request, with probabilities proportional to `weights`.

    A Poisson stream falls apart into independent Poisson streams. Weights beyond the replicas that there are
    count for nothing, and a replica beyond the weights gets nothing, unless no other does.
    """

    def __init__(self, weights: Sequence[float], seed: int = 0) -> None:
        if not _are_weights(weights):
            raise ValueError(f"weights={weights!r}: expected one for each replica, none below 0, one above")
        self._weights = list(weights)
        self._random = Random(checked_count("seed", seed, at_least=0))

    def route(self, request: RoutedRequest, replicas: Sequence[ReplicaView]) -> int:
        """Return the replica that is drawn."""
        weights = self._weights[: len(replicas)]
        weights += [0.0] * (len(replicas) - len(weights))
        if not any(weights):
            weights = [1.0] * len(replicas)
        return self._random.choices(range(len(replicas)), weights)[0]


def _are_weights(weights: object) -> bool:
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        return False
    try:
        return sum(checked("weight", weight, at_least=0) for weight in weights) > 0
    except ValueError:
        return False
