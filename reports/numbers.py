"""How numbers are written on the page: three significant digits, commas between thousands, SI units."""

import json
import math

NONE = "–"
# A narrow space that does not break: between a number and its unit.
_THIN = "\u202f"


def number(value: float | None) -> str:
    """Return ``value`` with three significant digits and never less than its whole part; a dash for None."""
    if value is None or not math.isfinite(value):
        return NONE
    rounded = abs(float(f"{value:.3g}"))
    digits = 2 - math.floor(math.log10(rounded)) if rounded else 0
    return f"{value:,.{min(max(digits, 0), 4)}f}"


def whole(value: float | None) -> str:
    """Return ``value`` rounded to an integer; a dash for None."""
    return NONE if value is None or not math.isfinite(value) else f"{value:,.0f}"


def with_unit(value: float | None, unit: str) -> str:
    """Return ``value`` and its unit: ``1,234 tokens/s``."""
    return NONE if value is None else f"{number(value)}{_THIN}{unit}"


def duration(value_ms: float | None) -> str:
    """Return a time given in ms, in ms or in s: ``12.3 ms``, ``4.56 s``."""
    if value_ms is None or abs(value_ms) < 1000:
        return with_unit(value_ms, "ms")
    return with_unit(value_ms / 1000, "s")


def percent(fraction: float | None) -> str:
    """Return a fraction as a percentage: ``0.123`` is ``12 %``, ``0.0123`` is ``1.2 %``."""
    if fraction is None or not math.isfinite(fraction):
        return NONE
    digits = 1 if round(abs(fraction), 4) < 0.0995 and fraction else 0
    return f"{100 * fraction:,.{digits}f}{_THIN}%"


def signed(value: float) -> str:
    """Return ``value`` with its sign and one decimal."""
    return NONE if math.isnan(value) else f"{value:+.1f}".replace("-", "−")


def bare(value: object) -> str:
    """Return a setting in a sentence: integers with commas, floats as short as they are."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else exact(value)


def exact(value: object) -> str:
    """Return a setting as it is spelled in YAML and on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def listed(words: list[str]) -> str:
    """Return ``a, b and c``."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)
