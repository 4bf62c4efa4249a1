"""What GPUs cost: a table of dollars an hour."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from sim.errors import UserError
from sim.fields import as_mapping, build


@dataclass(frozen=True)
class Prices:
    """``conf/prices``: assumptions of the user's. A GPU has the price of the first name found in its own."""

    usd_per_gpu_hour: Mapping[str, Any]
    source: str
    date: str

    @classmethod
    def from_mapping(cls, values: object) -> Self:
        """Build from the resolved ``prices`` section; raises UserError."""
        return build(cls, as_mapping(values, "prices"), "prices")

    def __post_init__(self) -> None:
        for gpu, price in self.usd_per_gpu_hour.items():
            if type(price) not in (int, float) or price < 0:
                raise UserError(f"prices.usd_per_gpu_hour.{gpu}={price!r}: expected dollars, at least 0")

    def of(self, gpu: str | None) -> float | None:
        """Return dollars for an hour of a GPU, named as in a profile; None where no name fits."""
        names = [name for name in self.usd_per_gpu_hour if name.lower() in (gpu or "").lower()]
        return float(self.usd_per_gpu_hour[names[0]]) if names else None
