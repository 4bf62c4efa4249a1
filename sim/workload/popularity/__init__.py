"""Adapter popularity: which adapter a request asks for. One file each; KINDS is the only list of them."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError
from sim.fields import build
from sim.workload.popularity.uniform import Uniform
from sim.workload.popularity.zipf import Zipf

KINDS: dict[str, type["Popularity"]] = {"uniform": Uniform, "zipf": Zipf}


@runtime_checkable
class Popularity(Protocol):
    """A distribution over ``num_adapters`` adapters; its dataclass fields are its settings."""

    def adapters(self, uniforms: NDArray[np.float64], num_adapters: int) -> NDArray[np.int64]:
        """Map uniforms in [0, 1) to adapter indices in [0, num_adapters), one each, same shape."""
        ...


def from_mapping(values: Mapping[str, Any], where: str) -> Popularity:
    """Build the popularity that ``values["kind"]`` names from the other values; raises UserError."""
    settings = dict(values)
    kind = settings.pop("kind", None)
    if kind not in KINDS:
        raise UserError(f"{where}.kind={kind!r}: expected one of {', '.join(KINDS)}")
    return build(KINDS[kind], settings, where)
