"""What every policy's parameters have to keep to: what is no value for one is refused by name."""

import inspect
from collections.abc import Callable
from math import inf, nan
from typing import Any

import pytest

NOT_A_NUMBER = (nan, inf, -inf, -1, -0.5, True, "abc", "1", [1], {})
NOT_A_FLAG = (7, 0, "yes", nan, None, [True])
NOT_A_NAME = ("nonsense", 3, None, True)


def assert_refuses_bad_parameters(make: Callable[..., object], **others: Any) -> None:
    """Give each parameter of `make` that has a default, or is among `others`, every wrong value in turn."""
    for parameter in inspect.signature(make).parameters.values():
        default = others.get(parameter.name, parameter.default)
        if default is inspect.Parameter.empty:
            continue
        for value in wrong(default):
            with pytest.raises(ValueError) as raised:
                make(**{**others, parameter.name: value})
            (line,) = str(raised.value).splitlines()
            assert line.startswith(f"{parameter.name}={value!r}: expected ")


def wrong(default: object) -> tuple[Any, ...]:
    """Values that a parameter with this default cannot have."""
    if isinstance(default, bool):
        return NOT_A_FLAG
    if isinstance(default, str):
        return NOT_A_NAME
    if isinstance(default, list):
        return (None, 3, "abc", [], *([value] for value in NOT_A_NUMBER))
    return NOT_A_NUMBER if default is None else (*NOT_A_NUMBER, None)
