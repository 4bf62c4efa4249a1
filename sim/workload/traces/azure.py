"""Azure's LLM inference traces (github.com/Azure/AzurePublicDataset), 2023 and 2024: CSV.

``TIMESTAMP`` (date and time; the first row is the start), ``ContextTokens``, ``GeneratedTokens``.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from sim.workload.traces.lines_of_csv import read_csv
from sim.workload.traces.row import BadField, BadLine, TraceRow, length, present

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read(path: Path) -> Iterator[TraceRow | BadLine]:
    """Yield a row for each line."""
    return read_csv(path, COLUMNS, _row)


def _row(place: str, record: Mapping[str, str | None]) -> TraceRow:
    return TraceRow(
        place, _time_ns(record), length(record, "ContextTokens"), length(record, "GeneratedTokens")
    )


def _time_ns(record: Mapping[str, str | None]) -> int:
    """Time since 1970; seven digits of a second, as the files have, are kept."""
    text = str(present(record, "TIMESTAMP"))
    whole, _, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    try:
        time = datetime.fromisoformat(whole + rest[len(digits) :])
    except ValueError as error:
        raise BadField(f"TIMESTAMP={text!r}: expected date and time") from error
    since = (time if time.tzinfo else time.replace(tzinfo=UTC)) - EPOCH
    return (since.days * 86400 + since.seconds) * 10**9 + int(f"{digits[:9]:0<9}")
