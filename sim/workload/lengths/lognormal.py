"""Lognormal lengths: many short ones and a long tail, as in chat logs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sim.errors import UserError
from sim.workload.streams import endless, stream


@dataclass(frozen=True)
class Lognormal:
    """exp of a normal variable with standard deviation ``sigma``, whose mean is ``mean`` tokens.

    Rounded to whole tokens, then moved into ``min`` to ``max`` (null: no limit), which shifts the mean.
    """

    mean: float
    sigma: float = 1.0
    min: int = 1
    max: int | None = None

    @property
    def least(self) -> int:
        """The smallest length that may be drawn."""
        return self.min

    def check(self, where: str) -> None:
        """Raise UserError for impossible settings."""
        if self.mean <= 0 or self.sigma < 0:
            raise UserError(
                f"{where}: mean={self.mean} and sigma={self.sigma}: expected mean > 0, sigma >= 0"
            )
        if self.min < 1 or (self.max is not None and self.max < self.min):
            raise UserError(f"{where}: min={self.min} and max={self.max}: expected 1 <= min <= max")

    def sampler(self, seed: int, side: str) -> Callable[[str | None], int]:
        """Return a function that draws the length of one request after another."""
        rng = stream(seed, side)
        location = np.log(self.mean) - self.sigma**2 / 2
        drawn = endless(
            lambda size: (
                np.rint(rng.lognormal(location, self.sigma, size)).clip(self.min, self.max).astype(np.int64)
            )
        )
        return lambda adapter: next(drawn)
