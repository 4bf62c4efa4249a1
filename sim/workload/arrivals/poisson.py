"""Poisson arrivals: what ``vllm bench serve --request-rate R`` offers at its default burstiness of 1."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sim.workload.arrivals.whole_ns import whole_ns
from sim.workload.streams import CHUNK


@dataclass(frozen=True)
class Poisson:
    """Independent exponential gaps."""

    def times_ns(self, request_rate: float, rng: np.random.Generator) -> Iterator[int]:
        """Yield arrival times in ns whose gaps are exponential with mean ``1/request_rate`` s.

        The draws have unit rate and are scaled, so that two rates under one seed are the same arrivals played
        faster or slower.
        """
        elapsed = 0.0
        while True:
            times = elapsed + np.cumsum(rng.standard_exponential(CHUNK))
            elapsed = float(times[-1])
            yield from whole_ns(times * (1e9 / request_rate))
