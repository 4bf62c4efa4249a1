"""Frozen dataclasses from plain (YAML) mappings, with errors that name the key as the user spells it."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf

from sim.errors import UserError

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Return ``cls(**values)`` after checking names and types.

    ``where`` is the key of the mapping (``"engine"``; empty at the root), so that an error reads
    ``engine.max_loras``.
    Raises UserError for an unknown key, a missing one, or a value of the wrong type.
    """
    prefix = where and f"{where}."
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UserError(f"unknown key {prefix}{unknown[0]}; accepted: {', '.join(fields)}")
    missing = [name for name, f in fields.items() if name not in values and _is_required(f)]
    if missing:
        raise UserError(f"missing key {prefix}{missing[0]}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _checked(value, hints[name], prefix + name) for name, value in values.items()})


def plain_values(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration with nothing left to resolve, as plain dicts and lists.

    Raises omegaconf's errors for what cannot be resolved.
    """
    return cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True))


def as_mapping(value: object, where: str) -> Mapping[str, Any]:
    """Return ``value`` if it is a mapping with string keys, else raise UserError."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{where}={value!r}: expected a mapping of settings")
    return value


def require_positive(where: str, obj: object, *names: str) -> None:
    """Raise UserError unless every named attribute of ``obj`` is None or greater than zero."""
    for name in names:
        value = getattr(obj, name)
        if value is not None and not value > 0:
            raise UserError(f"{where}.{name}={value}: must be greater than 0")


def require_processes(where: str, number: int) -> None:
    """Raise UserError unless ``number`` of processes is what joblib understands: -1 is one for each core."""
    if number == 0:
        raise UserError(f"{where}=0: expected 1 or more, or -1 for as many as there are cores")


LONGEST = {"_s": 1e9, "_secs": 1e9, "_ms": 1e12}
"""By how a key ends that is a duration: 31 years, which are 1e18 ns."""


def require_finite(values: Mapping[str, Any], where: str = "") -> None:
    """Raise UserError for a number among ``values``, and what is in them, that is infinite or none at all, or
    a duration beyond `LONGEST`.
    """
    for key, value in values.items():
        name = f"{where}.{key}" if where else str(key)
        longest = next((most for end, most in LONGEST.items() if str(key).endswith(end)), math.inf)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                require_finite(item, name)
            elif isinstance(item, float) and not math.isfinite(item):
                raise UserError(f"{name}={value}: expected a finite number")
            elif isinstance(item, int | float) and item > longest:
                raise UserError(f"{name}={value}: must be at most {longest:g}")


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _checked(value: object, hint: Any, where: str) -> Any:
    """``value`` as one of the types that ``hint`` allows (an int is accepted where a float is)."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in allowed:
        if option is float and type(value) is int:
            return float(value)
        if option is float and type(value) is float and math.isfinite(value):
            return value
        if option in (int, str, bool, types.NoneType) and type(value) is option:
            return value
        if typing.get_origin(option) is list and isinstance(value, list):
            (entry,) = typing.get_args(option)
            return [_checked(item, entry, f"{where}[{index}]") for index, item in enumerate(value)]
        if option not in (int, float, str, bool, types.NoneType) and _fits_class(value, option):
            return value
    names = " or ".join(_type_name(option) for option in allowed)
    raise UserError(f"{where}={value!r}: expected {names}")


def _fits_class(value: object, option: Any) -> bool:
    return isinstance(value, typing.get_origin(option) or option)


def _type_name(option: Any) -> str:
    if isinstance(option, types.UnionType):
        return " or ".join(_type_name(part) for part in typing.get_args(option))
    if typing.get_origin(option) is list:
        return f"list of {_type_name(typing.get_args(option)[0])}"
    return "null" if option is types.NoneType else {float: "a number"}.get(option, option.__name__)
