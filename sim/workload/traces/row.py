"""What a row of a trace may say, and how its fields are checked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

NS_PER_MS = 1e6
LONGEST_NS = 2**62


@dataclass(frozen=True)
class BadLine:
    """A row that is not a possible request."""

    place: str
    """Where in the file: ``line 3``."""
    text: str
    """What is wrong, beginning with the field."""


class BadField(ValueError):
    """A field of a row that is missing or impossible; the message begins with its name."""


class Unsaid(Enum):
    """The adapter of a row that does not say which."""

    FROM_POPULARITY = "the workload's popularity draws it"


class TraceRow(NamedTuple):
    """A request as a trace has it; None is what it does not say."""

    place: str
    time_ns: int | None
    input_length: int
    output_length: int
    adapter: str | Unsaid | None = Unsaid.FROM_POPULARITY
    request_id: str | None = None
    priority: int = 0
    rank: int | None = None
    abort_ns: int | None = None
    hash_ids: tuple[int, ...] = ()


def present(record: Mapping[str, Any], field: str) -> Any:
    """Return the value of a field that must be there; raises BadField."""
    if record.get(field) is None:
        raise BadField(f"{field} is missing")
    return record[field]


def length(record: Mapping[str, Any], field: str) -> int:
    """Return a number of tokens; raises BadField."""
    return whole(record, field, least=1)


def whole(record: Mapping[str, Any], field: str, least: int | None = None) -> int:
    """Return a whole number; raises BadField. Text of digits and a float without a fraction are accepted."""
    value = present(record, field)
    found = value
    if isinstance(value, str):
        try:
            found = int(value)
        except ValueError:
            found = None
    elif isinstance(value, float) and value.is_integer():
        found = int(value)
    if type(found) is not int:
        raise BadField(f"{field}={_shown(value)}: expected a whole number")
    if least is not None and found < least:
        raise BadField(f"{field}={found}: must be at least {least}")
    if abs(found) >= 2**62:
        raise BadField(f"{field}={found}: expected a smaller number")
    return found


def time_ns(record: Mapping[str, Any], field: str, unit_ns: float) -> int:
    """Return a time in ns, rounded, of a field in units of ``unit_ns``; raises BadField."""
    value = present(record, field)
    number = value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise BadField(f"{field}={_shown(value)}: expected a number")
    if not math.isfinite(number) or number < 0:
        raise BadField(f"{field}={_shown(value)}: expected a time of 0 or more")
    if number * unit_ns >= LONGEST_NS:
        raise BadField(f"{field}={_shown(value)}: must be less than {LONGEST_NS / unit_ns:g}")
    return round(number * unit_ns)


def text_or_null(record: Mapping[str, Any], field: str) -> str | None:
    """Return text that is not empty, or None; raises BadField."""
    value = record[field]
    if value is not None and (not isinstance(value, str) or not value):
        raise BadField(f"{field}={_shown(value)}: expected text or null")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
