"""What a sweep adds to its runs: a progress bar, ``sweep.csv`` and a table."""

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import TaskFunction
from omegaconf import DictConfig
from tqdm import tqdm

from sim.files import write_atomically

SWEEP_FILE = "sweep.csv"
TABLE_METRICS = ("output_throughput", "p99_ttft_ms", "median_tpot_ms", "adapter_loads", "adapter_activations")
# Parts of summary.json that describe a run and do not measure it.
_NOT_METRICS = ("schema_version", "status", "message", "config", "profile", "vllm_serve_command")


class SweepCallback(Callback):
    """Hydra callback that follows a sweep's jobs and writes ``sweep.csv`` in the sweep's folder at its end.

    An interrupted sweep leaves no ``sweep.csv``; the folders of the jobs that were done stay.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        # A dict for its order: the overrides of any job, as the columns of sweep.csv.
        self.override_columns: dict[str, None] = {}
        # The distinct warnings of the runs: where they leave what the profile has measured.
        self.warnings: dict[str, None] = {}
        self.num_jobs = 0
        self.progress: tqdm[Any] | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Take away the ``sweep.csv`` of an earlier sweep in the same folder."""
        (Path(config.hydra.sweep.dir) / SWEEP_FILE).unlink(missing_ok=True)
        self.num_jobs = _number_of_jobs(config)

    def on_job_start(self, config: DictConfig, *, task_function: TaskFunction, **kwargs: Any) -> None:
        """Show the progress bar, once Hydra has found every job of the sweep valid."""
        if self.num_jobs and self.progress is None:
            self.progress = tqdm(total=self.num_jobs, unit="run", desc="simulating", leave=False)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Add the job's row, whatever its status."""
        if self.progress is None:
            return
        summary_file = Path(config.hydra.runtime.output_dir) / "summary.json"
        if summary_file.exists():
            path = os.path.relpath(summary_file.parent, config.hydra.sweep.dir)
            summary = json.loads(summary_file.read_text(encoding="utf-8"))
            overrides = _override_values(job_return.overrides or [])
            self.override_columns.update(dict.fromkeys(overrides))
            self.warnings.update(dict.fromkeys(summary.get("profile", {}).get("outside_range", [])))
            self.rows.append({**overrides, **sweep_row(summary, path)})
        self.progress.update()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write ``sweep.csv`` and print the table."""
        if self.progress is not None:
            self.progress.close()
        sweep_dir = Path(config.hydra.sweep.dir)
        write_csv(self.rows, sweep_dir / SWEEP_FILE)
        print(table(self.rows, list(self.override_columns)))
        for warning in self.warnings:
            print(f"lorasim: warning: {warning}", file=sys.stderr)
        print(f"\n{sweep_dir / SWEEP_FILE}")


def sweep_row(summary: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return a row of ``sweep.csv``: status, message, the scalar metrics of ``summary.json``, the run's path.

    A metric inside a group is named with a dot: ``time_share.loading``.
    """
    metrics = {key: value for key, value in summary.items() if key not in _NOT_METRICS}
    return {
        "status": summary["status"],
        "message": summary["message"],
        **dict(_scalars(metrics, "")),
        "path": path,
    }


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write ``rows``, blank where a row has no such key, so that ``path`` is either complete or as it was."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def table(rows: Sequence[Mapping[str, Any]], override_columns: Sequence[str]) -> str:
    """Return an aligned plain-text table of a sweep: the overrides that vary, status, the main metrics.

    What a job that did not run said follows below, a line each.
    """
    varying = [name for name in override_columns if len({row.get(name) for row in rows}) > 1]
    header = [*varying, "status", *TABLE_METRICS]
    lines = [header, *([cell(row.get(name)) for name in header] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    text += [f"{row['path']}: {row['message']}" for row in rows if row["status"] != "ok"]
    return "\n".join(text)


def _number_of_jobs(config: DictConfig) -> int:
    """Count the jobs as Hydra's own sweeper does."""
    params = config.hydra.sweeper.get("params") or {}
    words = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides(words)
    return len(BasicSweeper.split_arguments(overrides, None)[0])


def _override_values(overrides: Sequence[str]) -> dict[str, str]:
    """Return ``{"engine.max_loras": "8"}`` for ``["engine.max_loras=8"]``; a leading ``+`` is left out."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {override.key_or_group: str(override.get_value_element_as_str()) for override in parsed}


def _scalars(group: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in group.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{key}.")
        elif value is None or isinstance(value, int | float):
            yield f"{prefix}{key}", value


def cell(value: object) -> str:
    """Return ``value`` as a cell of a table."""
    if isinstance(value, float):
        return f"{value:,.1f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
