"""Any length of a range."""

from collections.abc import Callable
from dataclasses import dataclass

from sim.errors import UserError
from sim.workload.streams import endless, stream


@dataclass(frozen=True)
class Uniform:
    """A whole number from ``min`` to ``max``, both included."""

    min: int
    max: int

    @property
    def least(self) -> int:
        """The smallest length that may be drawn."""
        return self.min

    def check(self, where: str) -> None:
        """Raise UserError for impossible settings."""
        if not 1 <= self.min <= self.max:
            raise UserError(f"{where}: min={self.min} and max={self.max}: expected 1 <= min <= max")

    def sampler(self, seed: int, side: str) -> Callable[[str | None], int]:
        """Return a function that draws the length of one request after another."""
        rng = stream(seed, side)
        drawn = endless(lambda size: rng.integers(self.min, self.max, size, endpoint=True))
        return lambda adapter: next(drawn)
