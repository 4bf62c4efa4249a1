"""Result files and their schema: ``summary.json``, ``requests.parquet`` and what ``record`` asks for.

A folder holds a result if, and only if, it holds ``summary.json``, which is put in place last. Every file is
written beside its place and renamed, so that an interruption leaves a complete result or none.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sim.errors import UserError

SCHEMA_VERSION = 1
SUMMARY_FILE = "summary.json"
REQUESTS_FILE = "requests.parquet"
STEPS_FILE = "steps.parquet"
ADAPTERS_FILE = "adapters.parquet"
TRACE_FILE = "trace.pftrace"
POLICY_FILE = "policy.yaml"

REQUESTS_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("adapter", pa.string()),
        ("arrival_s", pa.float64()),
        ("scheduled_s", pa.float64()),
        ("first_token_s", pa.float64()),
        ("finish_s", pa.float64()),
        ("input_length", pa.int64()),
        ("output_length", pa.int64()),
        ("num_generated_tokens", pa.int64()),
        ("num_preemptions", pa.int64()),
        ("status", pa.string()),
        ("ttft_ms", pa.float64()),
        ("tpot_ms", pa.float64()),
        ("e2el_ms", pa.float64()),
    ]
)
"""A row per submitted request, in order of arrival; what has not happened is null. ``output_length`` is what
the request asks for, ``status`` one of completed, running, waiting, rejected, aborted, and behind a gateway
also degraded (the fallback answered) and failed (nobody did). Of a request that was sent again it is the
last attempt, with the arrival of the first."""

STEPS_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("request_id", pa.string()),
        ("num_tokens", pa.int64()),
    ]
)
"""A row per scheduled request per engine step, in vLLM's order; start and end are the GPU's."""

ADAPTERS_SCHEMA = pa.schema(
    [
        ("time_s", pa.float64()),
        ("duration_ms", pa.float64()),
        ("kind", pa.string()),
        ("adapter", pa.string()),
        ("slot", pa.int64()),
    ]
)
"""A row per thing that happened to an adapter, in order: ``load`` (disk to host cache), ``activate`` (host
cache to slot), ``evict_host`` and ``evict_slot`` (the ways back). ``time_s`` is when it was done,
``duration_ms`` is null for a load beside the engine's work, ``slot`` the one that is filled or vacated. What
has a slot from the start is activated at 0."""

REPLICA = pa.field("replica", pa.int64())
"""Last column of all tables of a run with several replicas: which of them, null for a request that none has
(rejected, degraded, failed). The steps of one replica, which count from 0, stand before those of the next."""


@dataclass(frozen=True)
class Result:
    """What one simulation answers; what ``record`` does not ask for is None. ``trace`` is a file's bytes."""

    summary: dict[str, Any]
    requests: pa.Table
    steps: pa.Table | None
    adapters: pa.Table | None = None
    trace: bytes | None = None
    policies: dict[str, Any] | None = None
    """For vLLM, where they are not its own (sim.policy.bridged)."""


def write(result: Result, out_dir: Path) -> None:
    """Write ``result`` to ``out_dir``, in place of an earlier one. Raises OSError."""
    tables = {REQUESTS_FILE: result.requests, STEPS_FILE: result.steps, ADAPTERS_FILE: result.adapters}
    with _replacing(out_dir) as partial:
        for name, table in tables.items():
            if table is not None:
                pq.write_table(table, partial(name), compression="zstd")
        if result.trace is not None:
            partial(TRACE_FILE).write_bytes(result.trace)
        if result.policies is not None:
            partial(POLICY_FILE).write_text(
                yaml.safe_dump(result.policies, sort_keys=False), encoding="utf-8"
            )
        partial(SUMMARY_FILE).write_text(to_json(result.summary), encoding="utf-8")


def write_failed(out_dir: Path, config: Mapping[str, Any], status: str, message: str) -> None:
    """Write the ``summary.json`` of a run that has no answer: ``status`` is ``oom`` or ``error``.

    Its configuration may be what was wrong: a number that JSON does not have is written as a word, ``nan``.
    """
    summary = {
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "message": message,
        "seed": config.get("seed"),
        "config": config,
    }
    with _replacing(out_dir) as partial:
        partial(SUMMARY_FILE).write_text(to_json(_in_words(summary)), encoding="utf-8")


def read_summary(path: Path) -> dict[str, Any]:
    """Read a ``summary.json`` (or the one in the folder ``path``).

    Raises UserError if it is missing, is no summary, or has another schema version.
    """
    file = path / SUMMARY_FILE if path.is_dir() else path
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as a summary.json: {error}") from error
    version = summary.get("schema_version") if isinstance(summary, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(f"{file}: schema_version {version}, expected {SCHEMA_VERSION}")
    return dict(summary)


def read_requests(folder: Path) -> pa.Table:
    """Read ``requests.parquet`` of a result, as REQUESTS_SCHEMA, maybe with REPLICA. Raises UserError."""
    return _read_table(folder / REQUESTS_FILE, REQUESTS_SCHEMA)


def read_steps(folder: Path) -> pa.Table:
    """Read ``steps.parquet`` of a result, as STEPS_SCHEMA, maybe with REPLICA. Raises UserError."""
    return _read_table(folder / STEPS_FILE, STEPS_SCHEMA)


def read_adapters(folder: Path) -> pa.Table:
    """Read ``adapters.parquet`` of a result, as ADAPTERS_SCHEMA, maybe with REPLICA. Raises UserError."""
    return _read_table(folder / ADAPTERS_FILE, ADAPTERS_SCHEMA)


def to_json(summary: Mapping[str, Any]) -> str:
    """Return the text of a ``summary.json``. Raises ValueError for a number that JSON does not have."""
    return json.dumps(summary, indent=2, allow_nan=False) + "\n"


def _in_words(value: Any) -> Any:
    """Return ``value`` with words in place of the numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _in_words(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_in_words(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read_table(file: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{file}: cannot be read as parquet: {str(error).splitlines()[0]}") from error
    if table.schema.names not in (schema.names, [*schema.names, REPLICA.name]):
        raise UserError(f"{file}: columns {table.schema.names}, expected {schema.names}")
    return table


@contextmanager
def _replacing(out_dir: Path) -> Iterator[Any]:
    """Give out temporary paths and put all in place at the end; after an error all is as it was."""
    out_dir.mkdir(parents=True, exist_ok=True)
    partials: dict[str, Path] = {}

    def partial(name: str) -> Path:
        return partials.setdefault(name, out_dir / f".{name}.{os.getpid()}")

    try:
        yield partial
        _swap(out_dir, partials)
    finally:
        for path in partials.values():
            path.unlink(missing_ok=True)


def _swap(out_dir: Path, partials: Mapping[str, Path]) -> None:
    """Replace the result in ``out_dir``: the old summary goes first and the new one comes last."""
    for name in (SUMMARY_FILE, REQUESTS_FILE, STEPS_FILE, ADAPTERS_FILE, TRACE_FILE, POLICY_FILE):
        (out_dir / name).unlink(missing_ok=True)
    try:
        for name in sorted(partials, key=lambda name: name == SUMMARY_FILE):
            partials[name].replace(out_dir / name)
    except BaseException:
        for name in partials:
            (out_dir / name).unlink(missing_ok=True)
        raise
