"""CSV files with a header, line by line, so that every line has its number."""

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sim.errors import UserError
from sim.workload.traces.opening import open_trace
from sim.workload.traces.row import BadField, BadLine, TraceRow

Parse = Callable[[str, Mapping[str, str | None]], TraceRow]


def read_csv(path: Path, columns: tuple[str, ...], parse: Parse) -> Iterator[TraceRow | BadLine]:
    """Yield ``parse(place, {column: text})`` for each line below the header. Raises UserError for a file
    without the ``columns``; an empty field is None.
    """
    with open_trace(path) as file:
        try:
            header = _fields(next(file, b""))
        except BadField as error:
            raise UserError(f"{path}, line 1: {error}") from error
        missing = [column for column in columns if column not in header]
        if missing:
            raise UserError(f"{path}, line 1: no column {missing[0]}; expected {', '.join(columns)}")
        for number, line in enumerate(file, start=2):
            if line.strip():
                place = f"line {number}"
                try:
                    fields = _fields(line)
                    if len(fields) != len(header):
                        raise BadField(f"{len(fields)} fields, the header has {len(header)}")
                    yield parse(
                        place, {name: text or None for name, text in zip(header, fields, strict=True)}
                    )
                except BadField as error:
                    yield BadLine(place, str(error))


def _fields(line: bytes) -> list[str]:
    try:
        (fields,) = list(csv.reader([line.decode("utf-8-sig").rstrip("\r\n")])) or [[]]
    except UnicodeDecodeError as error:
        raise BadField(f"not UTF-8 text: {error.reason} at byte {error.start}") from error
    except (csv.Error, ValueError) as error:
        raise BadField(f"not CSV: {error}") from error
    return [text.strip() for text in fields]
