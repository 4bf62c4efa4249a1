"""Our own ``requests.parquet``: the requests of a run, to be played again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sim.errors import UserError
from sim.workload.traces.row import BadField, BadLine, TraceRow, length, text_or_null, time_ns

COLUMNS = ("request_id", "adapter", "arrival_s", "input_length", "output_length")


def read(path: Path) -> Iterator[TraceRow | BadLine]:
    """Yield a row for each request."""
    import pyarrow as pa  # noqa: PLC0415  Only this format needs it.
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: cannot be read as parquet: {str(error).splitlines()[0]}") from error
    missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
    if missing:
        raise UserError(f"{path}: no column {missing[0]}; expected {', '.join(COLUMNS)}")
    for number, record in enumerate(file.read(columns=list(COLUMNS)).to_pylist(), start=1):
        yield _parsed(f"row {number}", record)


def _parsed(place: str, record: dict[str, Any]) -> TraceRow | BadLine:
    try:
        return TraceRow(
            place,
            time_ns(record, "arrival_s", 1e9),
            length(record, "input_length"),
            length(record, "output_length"),
            text_or_null(record, "adapter"),
            text_or_null(record, "request_id"),
        )
    except BadField as error:
        return BadLine(place, str(error))
