"""Gamma arrivals: independent gaps, more or less regular than those of a Poisson process."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sim.fields import require_positive
from sim.workload.arrivals.whole_ns import whole_ns
from sim.workload.streams import CHUNK


@dataclass(frozen=True)
class Gamma:
    """Gaps with the coefficient of variation (standard deviation over mean) ``cv``.

    1 is Poisson, above is burstier, below more regular. ``vllm bench serve --burstiness B`` is cv = B**-0.5.
    """

    cv: float = 2.0

    def __post_init__(self) -> None:
        require_positive("workload.arrivals", self, "cv")

    def times_ns(self, request_rate: float, rng: np.random.Generator) -> Iterator[int]:
        """Yield arrival times in ns; as Poisson, two rates are the same arrivals played faster or slower."""
        elapsed = 0.0
        while True:
            times = elapsed + np.cumsum(rng.gamma(self.cv**-2, self.cv**2, CHUNK))
            elapsed = float(times[-1])
            yield from whole_ns(times * (1e9 / request_rate))
