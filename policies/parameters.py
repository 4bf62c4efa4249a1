"""Checks of what users write as parameters of policies."""

from math import inf

NS_PER_S = 10**9
NS_PER_MS = 10**6


def checked(name: str, value: float, *, above: float = -inf, at_least: float = -inf) -> float:
    """Return `value`. Raises ValueError where it is not a number in the range that is asked for."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not at_least <= value < inf:
        raise ValueError(f"{name}={value!r}: expected a number of {at_least:g} or more")
    if value <= above:
        raise ValueError(f"{name}={value!r}: expected a number above {above:g}")
    return value


def checked_count(name: str, value: int) -> int:
    """Return `value`. Raises ValueError where it is not a whole number of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: expected a whole number of 1 or more")
    return value


def duration_ns(name: str, value: float, unit_ns: int = NS_PER_S, *, positive: bool = False) -> int:
    """Return `value` times `unit_ns`, in ns. Raises ValueError where it is negative (`positive`: or none)."""
    return max(
        round(checked(name, value, at_least=0, above=0 if positive else -inf) * unit_ns), int(positive)
    )
