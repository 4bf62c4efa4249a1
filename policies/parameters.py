"""Checks of what users write as parameters of policies."""

from math import inf, isfinite

NS_PER_S = 10**9
NS_PER_MS = 10**6


def checked(
    name: str, value: float, *, above: float = -inf, at_least: float = -inf, at_most: float = inf
) -> float:
    """Return `value`. Raises ValueError where it is not a finite number in the range that is asked for."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and above < value < inf and at_least <= value <= at_most:
        return value
    limits = {"above": above, "at least": at_least, "at most": at_most}
    wanted = " and ".join(f"{limit} {bound:g}" for limit, bound in limits.items() if isfinite(bound))
    raise ValueError(f"{name}={value!r}: expected a number{wanted and ' '}{wanted}")


def checked_count(name: str, value: int) -> int:
    """Return `value`. Raises ValueError where it is not a whole number of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: expected a whole number of 1 or more")
    return value


def duration_ns(name: str, value: float, unit_ns: int = NS_PER_S, *, positive: bool = False) -> int:
    """Return `value` times `unit_ns`, in ns. Raises ValueError where it is negative (`positive`: or zero)."""
    if positive:
        return max(1, round(checked(name, value, above=0) * unit_ns))
    return round(checked(name, value, at_least=0) * unit_ns)
