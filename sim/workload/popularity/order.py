"""Adapters are asked for in a given order."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError


@dataclass(frozen=True)
class Order:
    """The n-th request asks for adapter ``order[n]``, over and over; nothing is drawn."""

    order: list[int]

    def __post_init__(self) -> None:
        if not self.order or min(self.order) < 0:
            raise UserError(
                f"workload.popularity.order={self.order}: expected one or more adapters, by number from 0 on"
            )

    def adapters(self, uniforms: NDArray[np.float64], num_adapters: int) -> NDArray[np.int64]:
        """Return whole rounds, one at least, so that another call goes on where this one ends."""
        if max(self.order) >= num_adapters:
            raise UserError(
                f"workload.popularity.order: adapter {max(self.order)} is none of "
                f"workload.num_adapters={num_adapters}, which count from 0"
            )
        return np.tile(np.array(self.order, np.int64), max(1, len(uniforms) // len(self.order)))
