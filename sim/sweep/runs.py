"""The runs in a result folder: one run, or the runs of a sweep."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.errors import UserError
from sim.policy.vllms_own import foreign_policies
from sim.results import SUMMARY_FILE, read_summary
from sim.sweep.rows import SWEEP_FILE, take_rows
from sim.sweep.settings import flat_settings


@dataclass(frozen=True)
class Run:
    """One run, as read from its folder."""

    path: Path
    columns: Mapping[str, str]
    """What names it in ``sweep.csv``: its overrides and the policies chosen; empty outside a sweep."""
    settings: Mapping[str, str]
    summary: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        """Whether it has an answer."""
        return bool(self.summary["status"] == "ok")

    @property
    def plain_vllm(self) -> bool:
        """Whether its policies are vLLM's own."""
        return not foreign_policies(self.summary["config"])


def load_runs(folder: Path) -> list[Run]:
    """Return the run in ``folder``, or those of the sweep in it, failed ones included. Raises UserError."""
    if (folder / SUMMARY_FILE).is_file():
        return [_run(folder, {})]
    file = folder / SWEEP_FILE
    if not file.is_file():
        raise UserError(f"{folder}: no {SUMMARY_FILE} and no {SWEEP_FILE} in it; expected a result folder")
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or "path" not in rows[0] or "status" not in rows[0]:
        raise UserError(f"{file}: expected a row for each run, with its status and path")
    return _runs_of(rows, folder)


def load_jobs(sweep_dir: Path) -> list[Run]:
    """Return the runs of a sweep at its end, for callbacks: jobs may have run in other processes, and
    ``sweep.csv`` is not whole yet. Raises UserError where one has failed.
    """
    rows = [row.cells for row in take_rows(sweep_dir, {}).values()]
    for row in rows:
        if row["status"] != "ok":
            raise UserError(f"{sweep_dir / row['path']}: {row['message']}")
    return _runs_of(rows, sweep_dir)


def _runs_of(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Run]:
    found = []
    for row in rows:
        names = list(row)[: list(row).index("status")]
        found.append(_run(folder / row["path"], {name: str(row[name]) for name in names}))
    return found


def _run(folder: Path, columns: Mapping[str, str]) -> Run:
    summary = read_summary(folder)
    if not isinstance(summary.get("config"), Mapping) or "status" not in summary:
        raise UserError(f"{folder / SUMMARY_FILE}: no status or no config in it; expected a run's summary")
    return Run(folder, columns, flat_settings(summary["config"]), summary)
