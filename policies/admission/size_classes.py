"""Chameleon's classes of request sizes, found in the requests of the last time."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple


class Arrival(NamedTuple):
    """What is remembered of a request."""

    time_ns: int
    num_prompt_tokens: int
    max_tokens: int
    adapter_bytes: int | None
    """None: the base model."""

    @property
    def num_tokens(self) -> int:
        """What it may need of the KV cache."""
        return self.num_prompt_tokens + self.max_tokens


@dataclass(frozen=True)
class SizeClasses:
    """Weighted request sizes and the bounds between classes of them (Chameleon, arXiv 2411.17741, 4.3).

    A size is (A * prompt / longest + B * output / longest) * adapter / largest. The output is predicted to be
    `max_tokens`, since a scheduler knows no more, and a request without an adapter counts with the factor 1.
    """

    input_weight: float
    output_weight: float
    max_prompt_tokens: int
    max_output_tokens: int
    max_adapter_bytes: int
    bounds: tuple[float, ...] = ()
    """A request of at least this size is in the next class."""

    @classmethod
    def of(
        cls, arrivals: Sequence[Arrival], max_classes: int, input_weight: float, output_weight: float
    ) -> "SizeClasses":
        """Cluster the sizes of `arrivals`; the bounds are half way between the centres of the clusters.

        Chameleon takes the number of clusters with the least sum of squares, which is the largest.
        """
        one = cls(
            input_weight,
            output_weight,
            max(arrival.num_prompt_tokens for arrival in arrivals),
            max(arrival.max_tokens for arrival in arrivals),
            max(arrival.adapter_bytes or 0 for arrival in arrivals),
        )
        centres = cluster(sorted(map(one.size, arrivals)), max_classes)
        return cls(**vars(one) | {"bounds": tuple(midpoints(centres))})

    def size(self, arrival: Arrival) -> float:
        """Weighted request size, between 0 and 1 for those that the classes were made of."""
        of_tokens = (
            self.input_weight * arrival.num_prompt_tokens / self.max_prompt_tokens
            + self.output_weight * arrival.max_tokens / self.max_output_tokens
        )
        if arrival.adapter_bytes is None or not self.max_adapter_bytes:
            return of_tokens
        return of_tokens * arrival.adapter_bytes / self.max_adapter_bytes

    def number(self, arrival: Arrival) -> int:
        """Number of the class, 0 for the smallest."""
        return bisect_right(self.bounds, self.size(arrival))

    def shares(self, arrivals: Sequence[Arrival], s_per_token: float, slo_s: float) -> list[float]:
        """What each class gets of all tokens: as much as it needs to keep the objective, in proportion.

        Each class is taken for an M/M/1 queue: it needs S * D * (1 / SLO + rate) tokens, where S are those of
        its largest request, and D the time that one takes.
        """
        span_s = max(arrivals[-1].time_ns - arrivals[0].time_ns, 1) / 1e9
        members: list[list[Arrival]] = [[] for _ in range(len(self.bounds) + 1)]
        for arrival in arrivals:
            members[self.number(arrival)].append(arrival)
        needed = []
        for of_class in members:
            largest = max((arrival.num_tokens for arrival in of_class), default=0)
            mean_s = fmean([arrival.max_tokens for arrival in of_class] or [0]) * s_per_token
            needed.append(largest * mean_s * (1 / slo_s + len(of_class) / span_s))
        return [tokens / sum(needed) for tokens in needed] if any(needed) else [1 / len(needed)] * len(needed)


def midpoints(values: Sequence[float]) -> list[float]:
    """Return what lies half way between each two neighbours."""
    return [(low + high) / 2 for low, high in pairwise(values)]


def cluster(values: Sequence[float], max_clusters: int) -> list[float]:
    """Return the centres of at most `max_clusters` clusters of sorted `values` (k-means from quantiles)."""
    distinct = sorted(set(values))
    count = min(max_clusters, len(distinct))
    centres = [distinct[(2 * number + 1) * len(distinct) // (2 * count)] for number in range(count)]
    for _ in range(100):
        ends = [bisect_right(values, bound) for bound in midpoints(centres)]
        parts = [values[begin:end] for begin, end in pairwise([0, *ends, len(values)])]
        moved = [fmean(part) for part in parts if part]
        if moved == centres:
            break
        centres = moved
    return centres
