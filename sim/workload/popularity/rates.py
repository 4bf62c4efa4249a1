"""Each adapter has a rate of its own: with Poisson arrivals, one Poisson process per adapter."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError


@dataclass(frozen=True)
class Rates:
    """The first ``rate_counts[0]`` adapters have ``rate_values[0]`` requests/s each, and so on.

    Where the workload's ``request_rate`` is null it offers the sum of them; else they are shares of that.
    """

    rate_values: list[float]
    rate_counts: list[int]

    def __post_init__(self) -> None:
        where = "workload.popularity"
        if len(self.rate_values) != len(self.rate_counts):
            raise UserError(
                f"{where}.rate_values has {len(self.rate_values)} entries and {where}.rate_counts "
                f"{len(self.rate_counts)}: expected the same number"
            )
        for name, values in (("rate_values", self.rate_values), ("rate_counts", self.rate_counts)):
            if any(value < 0 for value in values):
                raise UserError(f"{where}.{name}={values}: expected none below 0")
        if not self.request_rate > 0:
            raise UserError(f"{where}.rate_values={self.rate_values}: their sum must be greater than 0")

    @property
    def num_adapters(self) -> int:
        """The number of adapters."""
        return sum(self.rate_counts)

    @property
    def request_rate(self) -> float:
        """Requests/s of all adapters together."""
        return sum(value * count for value, count in zip(self.rate_values, self.rate_counts, strict=True))

    def adapters(self, uniforms: NDArray[np.float64], num_adapters: int) -> NDArray[np.int64]:
        """Map uniforms in [0, 1) to adapter indices, by inverting the distribution."""
        rates = np.repeat(self.rate_values, self.rate_counts)
        upper_bounds = np.cumsum(rates / rates.sum())[:-1]
        return np.searchsorted(upper_bounds, uniforms, side="right").astype(np.int64)
