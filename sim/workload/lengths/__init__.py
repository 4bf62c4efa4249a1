"""Lengths of prompts and of outputs, in tokens. One file each; KINDS is the only list of them."""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from sim.errors import UserError
from sim.fields import as_mapping
from sim.workload.kinds import build_kind
from sim.workload.lengths.fixed import Fixed
from sim.workload.lengths.lognormal import Lognormal
from sim.workload.lengths.per_adapter import PerAdapter
from sim.workload.lengths.sharegpt import ShareGpt
from sim.workload.lengths.uniform import Uniform

__all__ = ["KINDS", "Fixed", "Lengths", "Lognormal", "PerAdapter", "ShareGpt", "Uniform", "from_value"]


@runtime_checkable
class Lengths(Protocol):
    """A distribution of lengths; its dataclass fields are its settings."""

    @property
    def least(self) -> int:
        """The smallest length that may be drawn."""
        ...

    def check(self, where: str) -> None:
        """Raise UserError for impossible settings; ``where`` is their key."""
        ...

    def sampler(self, seed: int, side: str) -> Callable[[str | None], int]:
        """Return a function that draws the length of one request after another, given its adapter.

        ``side`` is ``"input_length"`` or ``"output_length"``: the two draw independently.
        """
        ...


KINDS: dict[str, type[Lengths]] = {
    "fixed": Fixed,
    "uniform": Uniform,
    "lognormal": Lognormal,
    "per_adapter": PerAdapter,
    "sharegpt": ShareGpt,
}


def from_value(value: object, where: str) -> Lengths:
    """Build from a number of tokens, or from the settings of the kind they name; raises UserError."""
    lengths: Lengths
    if type(value) is int:
        lengths = Fixed(value)
    elif not isinstance(value, Mapping):
        raise UserError(f"{where}={value!r}: expected int or a mapping of settings with a kind")
    else:
        lengths = build_kind(KINDS, as_mapping(value, where), where)
    lengths.check(where)
    return lengths
