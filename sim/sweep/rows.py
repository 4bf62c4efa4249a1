"""Rows of ``sweep.csv``: what they hold, and how they come from jobs in other processes to the sweep.

A job puts its row in a file of its own below the sweep's folder, which every launcher shares with its jobs.
"""

import csv
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.caveats import caveats_of
from sim.files import write_atomically

SWEEP_FILE = "sweep.csv"
ROWS_FOLDER = ".rows"
# Parts of summary.json that describe a run and do not measure it.
_NOT_METRICS = ("schema_version", "status", "message", "config", "profile", "vllm_serve_command")


@dataclass(frozen=True)
class JobRow:
    """What a sweep learns of a job that is done."""

    number: int
    cells: dict[str, Any]
    """Its row of ``sweep.csv``."""
    warnings: list[str]
    """`caveats_of` the run."""
    resumed: bool
    """Whether the result was there already."""


def sweep_row(columns: Mapping[str, Any], summary: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return a row of ``sweep.csv``: columns, status, message, the scalar metrics, the run's path.

    A metric inside a group is named with a dot: ``time_share.loading``.
    """
    metrics = {key: value for key, value in summary.items() if key not in _NOT_METRICS}
    return {
        **columns,
        "status": summary["status"],
        "message": summary["message"],
        **dict(scalars(metrics)),
        "path": path,
    }


def expect_rows(sweep_dir: Path) -> None:
    """Say that jobs are about to begin."""
    (sweep_dir / ROWS_FOLDER).mkdir(parents=True, exist_ok=True)


def are_expected(sweep_dir: Path) -> bool:
    """Say whether `expect_rows` was called."""
    return (sweep_dir / ROWS_FOLDER).exists()


def clear_rows(sweep_dir: Path) -> None:
    """Take away the files of the rows, of this sweep or an earlier one."""
    shutil.rmtree(sweep_dir / ROWS_FOLDER, ignore_errors=True)


def put_row(
    sweep_dir: Path, number: int, cells: Mapping[str, Any], summary: Mapping[str, Any], resumed: bool
) -> None:
    """Put the row of job ``number``. Raises OSError."""
    row = {"number": number, "cells": dict(cells), "warnings": caveats_of(summary), "resumed": resumed}
    write_atomically(sweep_dir / ROWS_FOLDER / f"{number:06d}.json", json.dumps(row).encode())


def take_rows(sweep_dir: Path, known: Mapping[int, JobRow]) -> dict[int, JobRow]:
    """Return the rows put so far by job number, reading those that are not ``known``."""
    found = dict(known)
    for file in sorted((sweep_dir / ROWS_FOLDER).glob("[0-9]*.json")):
        if int(file.stem) not in known:
            found[int(file.stem)] = JobRow(**json.loads(file.read_text(encoding="utf-8")))
    return dict(sorted(found.items()))


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write ``rows``, blank where a row has no such key, so that ``path`` is either complete or as it was."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _names(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns in the order of the rows that have most of them."""
    return list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))


def scalars(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the numbers of a group of metrics, and of the groups in it, with their names in ``sweep.csv``."""
    for key, value in group.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{key}.")
        elif value is None or isinstance(value, int | float):
            yield f"{prefix}{key}", value
