"""Zipf popularity: the adapter of rank k (from 1) has a probability proportional to k**-exponent."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError


@dataclass(frozen=True)
class Zipf:
    """Zipf over a finite number of adapters; adapter 0 is the most popular. ``exponent`` 0 is uniform."""

    exponent: float = 1.0

    def __post_init__(self) -> None:
        if self.exponent < 0:
            raise UserError(f"workload.popularity.exponent={self.exponent}: must not be negative")

    def probabilities(self, num_adapters: int) -> NDArray[np.float64]:
        """Return the probability of each adapter index, shape (num_adapters,)."""
        weights = np.arange(1, num_adapters + 1, dtype=np.float64) ** -self.exponent
        return np.asarray(weights / weights.sum())

    def adapters(self, uniforms: NDArray[np.float64], num_adapters: int) -> NDArray[np.int64]:
        """Map uniforms in [0, 1) to adapter indices in [0, num_adapters), by inverting the distribution."""
        upper_bounds = np.cumsum(self.probabilities(num_adapters))[:-1]
        return np.searchsorted(upper_bounds, uniforms, side="right").astype(np.int64)
