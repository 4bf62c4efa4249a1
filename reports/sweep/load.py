"""Reading a sweep: ``sweep.csv`` says which runs there are, each run's ``summary.json`` what it found."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.numbers import exact
from sim.errors import UserError
from sim.results import read_summary

SWEEP_FILE = "sweep.csv"
MAKE_SWEEP = "lorasim -m engine.max_loras=4,8,16,32,64 workload=uniform,zipf"
_MAX_LORAS = "engine.max_loras"


@dataclass(frozen=True)
class Row:
    """One run of a sweep."""

    traffic: str
    """The traffic shape: the ``workload`` chosen, with the workload's keys and the seed where they vary."""
    max_loras: int | None
    """None if what was given is no integer, which only a failed run can have."""
    max_loras_given: str
    others: tuple[tuple[str, str], ...]
    """The other overrides that vary over the sweep: (key, value)."""
    path: str
    summary: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        """Whether the run has an answer."""
        return bool(self.summary["status"] == "ok") and self.metric("output_throughput") is not None

    @property
    def setting(self) -> str:
        """What a user would set, the traffic apart: ``max_loras 16, admission fcfs_skip``."""
        return ", ".join(
            f"{key} {value}" for key, value in (("max_loras", self.max_loras_given), *self.others)
        )

    def metric(self, name: str) -> float | None:
        """Return a number of ``summary.json``, ``group.key`` for one inside a group; None if it has none."""
        value: Any = self.summary
        for key in name.split("."):
            value = mapping(value).get(key)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def config(self, group: str) -> Mapping[str, Any]:
        """Return a group of the run's configuration; empty if it has no such group."""
        return mapping(self.summary["config"].get(group))

    @property
    def profile(self) -> Mapping[str, Any]:
        """Name, hash and warnings of the profile; empty if the run failed."""
        return mapping(self.summary.get("profile"))


def mapping(value: object) -> Mapping[str, Any]:
    """Return ``value`` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def load_sweep(folder: Path) -> list[Row]:
    """Return the runs of the sweep in ``folder`` in its order, failed ones included. Raises UserError."""
    if not folder.is_dir():
        raise UserError(
            f"dir={folder}: no such folder; accepted: the folder of a sweep, as `{MAKE_SWEEP}` makes it"
        )
    jobs, override_names = _read_jobs(folder / SWEEP_FILE)
    varying = [name for name in override_names if len({job[name] for job in jobs}) > 1]
    return [_row(folder, job, varying) for job in jobs]


def _read_jobs(file: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Return the rows of ``sweep.csv`` and its columns of overrides: those before ``status``."""
    if not file.is_file():
        raise UserError(f"{file}: no such file; `{MAKE_SWEEP}` writes one at the end of a sweep")
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            jobs, columns = list(reader), list(reader.fieldnames or [])
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as CSV: {error}") from error
    missing = [name for name in ("status", "path") if name not in columns]
    if missing:
        raise UserError(f"{file}: no column {missing[0]!r}; expected a sweep.csv as `{MAKE_SWEEP}` writes it")
    if not jobs or any(None in job or None in job.values() for job in jobs):
        what = "a row has not as many cells as there are columns" if jobs else "no rows"
        raise UserError(f"{file}: {what}; expected a row for each run of a sweep")
    return jobs, columns[: columns.index("status")]


def _row(folder: Path, job: Mapping[str, str], varying: Sequence[str]) -> Row:
    file = folder / job["path"] / "summary.json"
    summary = read_summary(file)
    if summary.get("status") not in ("ok", "oom", "error") or not isinstance(summary.get("config"), Mapping):
        raise UserError(
            f"{file}: no status (ok, oom, error) or no config in it; expected a run's summary.json"
        )
    if summary["status"] == "ok" and not isinstance(summary.get("vllm_serve_command"), str):
        raise UserError(f"{file}: no vllm_serve_command in it; expected a run's summary.json")
    max_loras = mapping(summary["config"].get("engine")).get("max_loras")
    others = [name for name in varying if name != _MAX_LORAS and not _is_of_traffic(name)]
    return Row(
        traffic=_traffic(job, varying, summary["config"]),
        max_loras=max_loras if isinstance(max_loras, int) else None,
        max_loras_given=exact(max_loras),
        others=tuple((name.removeprefix("engine."), job[name]) for name in others),
        path=job["path"],
        summary=summary,
    )


def _is_of_traffic(override: str) -> bool:
    """Say whether an override changes what is asked of the server; a seed is one more draw of that."""
    return override in ("workload", "seed") or override.startswith("workload.")


def _traffic(job: Mapping[str, str], varying: Sequence[str], config: Mapping[str, Any]) -> str:
    parts = [job["workload"] if job.get("workload") else popularity(config)]
    parts += [
        f"{name.removeprefix('workload.')} {job[name]}"
        for name in varying
        if _is_of_traffic(name) and name != "workload"
    ]
    return ", ".join(parts)


def popularity(config: Mapping[str, Any]) -> str:
    """Return the kind of adapter popularity in a run's configuration: ``uniform``, ``zipf``, ..."""
    found: Any = config
    for key in ("workload", "popularity", "kind"):
        found = mapping(found).get(key)
    return str(found or "traffic")
