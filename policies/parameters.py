"""Checks of what users write as parameters of policies."""

from math import inf, isfinite

NS_PER_S = 10**9
NS_PER_MS = 10**6
LONGEST = 1e18
"""A duration, in whatever unit: more may be too much for a float in ns."""


def checked(  # noqa: PLR0913, a bound each
    name: str,
    value: float,
    *,
    above: float = -inf,
    below: float = inf,
    at_least: float = -inf,
    at_most: float = inf,
) -> float:
    """Return `value`. Raises ValueError where it is not a finite number in the range that is asked for."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and above < value < below and at_least <= value <= at_most:
        return value
    limits = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    wanted = " and ".join(
        f"{limit} {bound:g}" for limit, bound in limits.items() if isfinite(bound) and bound != LONGEST
    )
    raise ValueError(f"{name}={value!r}: expected a number{wanted and ' '}{wanted}")


def checked_count(name: str, value: int, at_least: int = 1) -> int:
    """Return `value`. Raises ValueError where it is not a whole number of `at_least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name}={value!r}: expected a whole number of {at_least} or more")
    return value


def checked_flag(name: str, value: bool) -> bool:
    """Return `value`. Raises ValueError where it is neither true nor false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: expected true or false")
    return value


def duration_ns(name: str, value: float, unit_ns: int = NS_PER_S, *, positive: bool = False) -> int:
    """Return `value` times `unit_ns`, in ns. Raises ValueError where it is negative (`positive`: or zero)."""
    if positive:
        return max(1, round(checked(name, value, above=0, at_most=LONGEST) * unit_ns))
    return round(checked(name, value, at_least=0, at_most=LONGEST) * unit_ns)
