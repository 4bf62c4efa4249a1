"""JSON lines: Mooncake's keys and some more.

``timestamp`` (ms since the start; not needed in a closed loop), ``input_length`` and ``output_length``
(tokens); optional: ``request_id``, ``adapter`` (null: the base model; not there: from the popularity),
``priority`` (the smaller, the more urgent), ``rank`` (of the adapter), ``abort_ms`` (the client gives up so
long after the arrival), ``hash_ids`` (see sim.workload.prefixes). Other keys and blank lines are passed over.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sim.workload.traces.opening import open_trace
from sim.workload.traces.row import (
    NS_PER_MS,
    BadField,
    BadLine,
    TraceRow,
    Unsaid,
    length,
    text_or_null,
    time_ns,
    whole,
)


def read(path: Path) -> Iterator[TraceRow | BadLine]:
    """Yield a row for each line."""
    with open_trace(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"line {number}"
                try:
                    yield _row(place, _object(line))
                except BadField as error:
                    yield BadLine(place, str(error))


def _object(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadField(f"not UTF-8 text: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise BadField(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadField("expected a JSON object")
    return record


def _row(place: str, record: dict[str, Any]) -> TraceRow:
    def optional(field: str, read_field: Any, *arguments: Any) -> Any:
        return None if record.get(field) is None else read_field(record, field, *arguments)

    request_id = record.get("request_id")
    return TraceRow(
        place,
        optional("timestamp", time_ns, NS_PER_MS),
        length(record, "input_length"),
        length(record, "output_length"),
        text_or_null(record, "adapter") if "adapter" in record else Unsaid.FROM_POPULARITY,
        str(request_id) if type(request_id) is int else optional("request_id", text_or_null),
        optional("priority", whole) or 0,
        optional("rank", whole, 1),
        optional("abort_ms", time_ns, NS_PER_MS),
        _hash_ids(record),
    )


def _hash_ids(record: dict[str, Any]) -> tuple[int, ...]:
    ids = record.get("hash_ids")
    if ids is None:
        return ()
    if not isinstance(ids, list) or not all(type(number) is int and number >= 0 for number in ids):
        raise BadField("hash_ids: expected a list of whole numbers of 0 or more")
    return tuple(ids)
