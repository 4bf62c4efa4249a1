"""A hot set: a few adapters get most of the traffic, evenly, and all others the rest, evenly."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError


@dataclass(frozen=True)
class HotSet:
    """The first ``size`` adapters get the fraction ``share`` of the requests."""

    size: int = 32
    share: float = 0.9

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"workload.popularity.size={self.size}: must be greater than 0")
        if not 0 <= self.share <= 1:
            raise UserError(f"workload.popularity.share={self.share}: must be between 0 and 1")

    def adapters(self, uniforms: NDArray[np.float64], num_adapters: int) -> NDArray[np.int64]:
        """Map uniforms in [0, 1) to adapter indices in [0, num_adapters). A hot set of all is uniform."""
        size = min(self.size, num_adapters)
        if size == num_adapters:
            return (uniforms * num_adapters).astype(np.int64)
        hot = uniforms < self.share
        within_hot = uniforms / (self.share or 1)
        within_cold = (uniforms - self.share) / (1 - self.share or 1)
        index = np.where(hot, within_hot * size, size + within_cold * (num_adapters - size))
        # The division may round up to 1.
        last = np.where(hot, size, num_adapters) - 1
        return np.asarray(np.minimum(index.astype(np.int64), last))
