"""BurstGPT (github.com/HPMLL/BurstGPT): CSV.

``Timestamp`` (s since the start), ``Request tokens``, ``Response tokens``; other columns are passed over. A
request that failed has 0 response tokens, which is a bad line: use the files without failures, or
``on_bad_line: skip``.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from sim.workload.traces.lines_of_csv import read_csv
from sim.workload.traces.row import BadLine, TraceRow, length, time_ns

COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def read(path: Path) -> Iterator[TraceRow | BadLine]:
    """Yield a row for each line."""
    return read_csv(path, COLUMNS, _row)


def _row(place: str, record: Mapping[str, str | None]) -> TraceRow:
    return TraceRow(
        place,
        time_ns(record, "Timestamp", 1e9),
        length(record, "Request tokens"),
        length(record, "Response tokens"),
    )
