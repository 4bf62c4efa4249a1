"""Adapter popularity: which adapter a request asks for. One file each; KINDS is the only list of them."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sim.workload.kinds import build_kind
from sim.workload.popularity.hot_set import HotSet
from sim.workload.popularity.order import Order
from sim.workload.popularity.rates import Rates
from sim.workload.popularity.uniform import Uniform
from sim.workload.popularity.zipf import Zipf

__all__ = ["KINDS", "HotSet", "Order", "Popularity", "Rates", "Uniform", "Zipf", "from_mapping"]


@runtime_checkable
class Popularity(Protocol):
    """A distribution over ``num_adapters`` adapters; its dataclass fields are its settings."""

    def adapters(self, uniforms: NDArray[np.float64], num_adapters: int) -> NDArray[np.int64]:
        """Map uniforms in [0, 1) to adapter indices in [0, num_adapters), one each, same shape.

        What draws nothing may return more, or fewer, but not none.
        """
        ...


KINDS: dict[str, type[Popularity]] = {
    "uniform": Uniform,
    "zipf": Zipf,
    "hot_set": HotSet,
    "rates": Rates,
    "order": Order,
}


def from_mapping(values: Mapping[str, Any], where: str) -> Popularity:
    """Build the popularity that ``values["kind"]`` names from the other values; raises UserError."""
    return build_kind(KINDS, values, where)
