"""Diurnal arrivals: a Poisson process whose rate follows the hours of a day."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sim.errors import UserError
from sim.fields import require_positive
from sim.workload.arrivals.whole_ns import whole_ns
from sim.workload.streams import CHUNK


@dataclass(frozen=True)
class Diurnal:
    """The rate at t is ``request_rate * (1 + amplitude * sin(2 pi t / period_s + phase))``.

    ``amplitude`` is between 0 (Poisson) and 1 (no requests at night), ``phase`` in radians.
    """

    amplitude: float = 0.8
    period_s: float = 86400.0
    phase: float = 0.0

    def __post_init__(self) -> None:
        require_positive("workload.arrivals", self, "period_s")
        if not 0 <= self.amplitude <= 1:
            raise UserError(f"workload.arrivals.amplitude={self.amplitude}: must be between 0 and 1")

    def times_ns(self, request_rate: float, rng: np.random.Generator) -> Iterator[int]:
        """Yield arrival times in ns, by thinning: arrivals at the peak rate, each kept with rate / peak."""
        peak_rate = request_rate * (1 + self.amplitude)
        elapsed_s = 0.0
        while True:
            times_s = elapsed_s + np.cumsum(rng.standard_exponential(CHUNK)) / peak_rate
            elapsed_s = float(times_s[-1])
            wave = np.sin(2 * np.pi * times_s / self.period_s + self.phase)
            kept = rng.random(CHUNK) * (1 + self.amplitude) < 1 + self.amplitude * wave
            yield from whole_ns(times_s[kept] * 1e9)
