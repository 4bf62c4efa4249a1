"""The JSON that ``vllm bench serve --save-result --save-detailed`` writes.

``input_lens``, ``output_lens`` and ``start_times`` (s; the first is the start), an entry per request. They
are sorted by time: the client's tasks start in an order of their own. A file without ``start_times`` has no
times. A request that failed has an output of 0 tokens, which is a bad line.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sim.errors import UserError
from sim.workload.traces.opening import open_trace
from sim.workload.traces.row import BadField, BadLine, TraceRow, length, time_ns

COLUMNS = ("input_lens", "output_lens")


def read(path: Path) -> Iterator[TraceRow | BadLine]:
    """Yield a row for each request, in order of time."""
    record = _record(path)
    names = [name for name in (*COLUMNS, "start_times") if record.get(name) or name in COLUMNS]
    columns = {name: record.get(name) for name in names}
    for name, values in columns.items():
        if not isinstance(values, list) or len(values) != len(columns[COLUMNS[0]] or ()):
            raise UserError(f"{path}: {name}: expected a list with an entry per request (--save-detailed)")
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    parsed = [_parsed(f"request {number}", row) for number, row in enumerate(rows)]
    # A bad line stays at its end: it has no place in time.
    return iter(
        sorted(parsed, key=lambda row: row.time_ns or 0 if isinstance(row, TraceRow) else float("inf"))
    )


def _record(path: Path) -> dict[str, Any]:
    try:
        with open_trace(path) as file:
            record = json.load(file)
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}: expected a JSON object with {', '.join(COLUMNS)}")
    return record


def _parsed(place: str, row: dict[str, Any]) -> TraceRow | BadLine:
    try:
        start_ns = time_ns(row, "start_times", 1e9) if "start_times" in row else None
        return TraceRow(place, start_ns, length(row, "input_lens"), length(row, "output_lens"))
    except BadField as error:
        return BadLine(place, str(error))
