"""Settings that name their kind: ``{kind: zipf, exponent: 1.0}``."""

from collections.abc import Mapping
from typing import Any, TypeVar

from sim.errors import UserError
from sim.fields import build

T = TypeVar("T")


def build_kind(kinds: Mapping[str, type[T]], values: Mapping[str, Any], where: str) -> T:
    """Build the class of ``kinds`` that ``values["kind"]`` names from the other values; raises UserError."""
    settings = dict(values)
    kind = settings.pop("kind", None)
    if kind not in kinds:
        raise UserError(f"{where}.kind={kind!r}: expected one of {', '.join(kinds)}")
    return build(kinds[kind], settings, where)
