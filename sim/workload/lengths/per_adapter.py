"""Every adapter has lengths of its own: one writes summaries, another one answers yes or no."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.errors import UserError
from sim.workload.streams import endless, stream


@dataclass(frozen=True)
class PerAdapter:
    """Each adapter draws its typical length from ``across`` once (a number of tokens, or settings with a
    kind); its requests vary around that by a lognormal factor with median 1 and ``sigma`` (0: not at all).

    Never below 1, nor above ``max`` (null: no limit).
    """

    across: Mapping[str, Any] | int
    sigma: float = 0.0
    max: int | None = None

    @property
    def least(self) -> int:
        """The smallest length that may be drawn."""
        return 1

    def check(self, where: str) -> None:
        """Raise UserError for impossible settings."""
        self._across(f"{where}.across")
        if self.sigma < 0 or (self.max is not None and self.max < 1):
            raise UserError(f"{where}: sigma={self.sigma} and max={self.max}: expected sigma >= 0, max >= 1")

    def sampler(self, seed: int, side: str) -> Callable[[str | None], int]:
        """Return a function that draws the length of one request after another, given its adapter."""
        across, rng, typical = self._across(f"{side}.across"), stream(seed, side), dict[str | None, int]()
        factors = endless(lambda size: np.exp(self.sigma * rng.standard_normal(size)))

        def draw(adapter: str | None) -> int:
            if adapter not in typical:
                # By name: it does not matter who asks first.
                typical[adapter] = across.sampler(seed, f"{side}/{adapter or ''}")(adapter)
            length: int = max(1, round(typical[adapter] * next(factors)))
            return length if self.max is None else min(length, self.max)

        return draw

    def _across(self, where: str) -> Any:
        from sim.workload.lengths import from_value  # noqa: PLC0415  The kinds contain this one.

        return from_value(self.across, where)
