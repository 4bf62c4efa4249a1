"""All requests alike."""

from collections.abc import Callable
from dataclasses import dataclass

from sim.errors import UserError


@dataclass(frozen=True)
class Fixed:
    """``tokens``, always. A plain number in the configuration is the same."""

    tokens: int

    @property
    def least(self) -> int:
        """The smallest length that may be drawn."""
        return self.tokens

    def check(self, where: str) -> None:
        """Raise UserError for impossible settings."""
        if self.tokens <= 0:
            raise UserError(f"{where}={self.tokens}: must be greater than 0")

    def sampler(self, seed: int, side: str) -> Callable[[str | None], int]:
        """Return a function that draws the length of one request after another."""
        return lambda adapter: self.tokens
