"""Arrival processes of the open loop: when requests come. One file each; KINDS is the only list of them."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sim.workload.arrivals.diurnal import Diurnal
from sim.workload.arrivals.gamma import Gamma
from sim.workload.arrivals.mmpp import Mmpp
from sim.workload.arrivals.poisson import Poisson
from sim.workload.kinds import build_kind

__all__ = ["KINDS", "Arrivals", "Diurnal", "Gamma", "Mmpp", "Poisson", "from_mapping"]


@runtime_checkable
class Arrivals(Protocol):
    """A process with a mean of ``request_rate`` requests/s; its dataclass fields are its settings."""

    def times_ns(self, request_rate: float, rng: np.random.Generator) -> Iterator[int]:
        """Yield endless arrival times in ns from the start of the run, never going backwards."""
        ...


KINDS: dict[str, type[Arrivals]] = {"poisson": Poisson, "gamma": Gamma, "mmpp": Mmpp, "diurnal": Diurnal}


def from_mapping(values: Mapping[str, Any], where: str) -> Arrivals:
    """Build the process that ``values["kind"]`` names from the other values; raises UserError."""
    return build_kind(KINDS, values, where)
