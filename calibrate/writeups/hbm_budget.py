"""Time to first token over the number of adapters that the GPU holds: a CSV that grows, and the curves."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from calibrate.writeups.curves import Curve, Panel, svg
from calibrate.writeups.measured import Held, held_plays, measured_note
from calibrate.writeups.page import show
from calibrate.writeups.regimes import regime_of
from calibrate.writeups.sources import profile_source, warnings
from sim.errors import UserError
from sim.fields import as_mapping, build
from sim.files import write_atomically
from sim.results import read_requests
from sim.sweep.runs import Run, load_jobs
from sim.tables import aligned

PLOT_FILE, PAGE_FILE = "hbm_budget.svg", "hbm_budget.md"
S_PER_MS = 1e-3


class Row(NamedTuple):
    """A line of the CSV, which begins as the write-up's; latencies in s. Swaps are adapters' activations."""

    run_timestamp: str
    total_loras: int
    gpu_loras: int
    prompt_regime: str
    arrival_rate: float
    num_requests: int
    ttft_median: float | None
    ttft_p99: float | None
    ttft_mean: float | None
    latency_median: float | None
    latency_p99: float | None
    success_rate: float
    prompt_tokens_mean: float
    init_swap_calls: int
    init_swap_count: int
    runtime_swap_calls: int
    runtime_swap_count: int
    source: str


@dataclass(frozen=True)
class Reported:
    """Points of the write-up: of each regime and number of adapters, `gpu_loras` and the median TTFT in s."""

    source: str
    prompt_regime: str
    total_loras: int
    gpu_loras: list[int]
    ttft_median: list[float]
    ttft_p99: list[float]
    differences: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        lengths = {len(self.gpu_loras), len(self.ttft_median), len(self.ttft_p99)}
        if len(lengths) > 1 or not self.gpu_loras:
            raise UserError("reported: expected as many gpu_loras as ttft_median and ttft_p99, one or more")


class HbmBudgetCallback(Callback):
    """Hydra callback that adds a row for each job to `ttft_<regime>_total<adapters>.csv`, and draws them."""

    def __init__(self, reported: Mapping[str, Any], measured: Sequence[str] = ()) -> None:
        self.reported = build(Reported, as_mapping(reported, "reported"), "reported")
        self.measured = measured

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Append to the files, print the tables, write the plot. Raises UserError."""
        sweep_dir = Path(config.hydra.sweep.dir)
        jobs = load_jobs(sweep_dir)
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        rate = jobs[0].summary["config"]["workload"]["request_rate"]
        plays = [play for play in held_plays(self.measured) if play.arrival_rate == rate]
        rows, measured = [row_of(job, now) for job in jobs], [measured_row(play, now) for play in plays]
        files = append(sweep_dir, rows + measured)
        plot = sweep_dir / PLOT_FILE
        write_atomically(plot, svg(panels(rows, measured, self.reported)))
        notes = [*self.reported.differences, measured_note(plays), *warnings(jobs)]
        tables = [table(rows), *([f"--- Measured ---\n{table(measured)}"] if measured else [])]
        tables.append(shape_table(rows, self.reported))
        show(sweep_dir / PAGE_FILE, tables, notes, [*files, plot])


def row_of(job: Run, run_timestamp: str) -> Row:
    """Return the row of a job. Raises UserError."""
    requests = read_requests(job.path).to_pandas()
    config, adapters = job.summary["config"], job.summary["adapters"]
    done = requests[requests["status"] == "completed"]
    ttft_s, latency_s = done["ttft_ms"] * S_PER_MS, done["e2el_ms"] * S_PER_MS
    preloaded = num_preloaded(config)
    return Row(
        run_timestamp=run_timestamp,
        total_loras=config["workload"]["num_adapters"],
        gpu_loras=config["engine"]["max_loras"],
        prompt_regime=regime_of(job),
        arrival_rate=config["workload"]["request_rate"],
        num_requests=len(requests),
        ttft_median=_percentile(ttft_s, 50),
        ttft_p99=_percentile(ttft_s, 99),
        ttft_mean=float(ttft_s.mean()) if len(done) else None,
        latency_median=_percentile(latency_s, 50),
        latency_p99=_percentile(latency_s, 99),
        success_rate=len(done) / len(requests),
        prompt_tokens_mean=float(requests["input_length"].mean()),
        init_swap_calls=int(preloaded > 0),
        init_swap_count=preloaded,
        runtime_swap_calls=adapters["swap_steps"],
        runtime_swap_count=job.summary["adapter_activations"],
        source=f"simulated: {profile_source(job.summary)}",
    )


def measured_row(play: Held, run_timestamp: str) -> Row:
    """Return the row of a play on the real engine; every step that swaps is a call."""
    ttft_s, latency_s = play.ttft_s, play.latency_s
    return Row(
        run_timestamp=run_timestamp,
        total_loras=play.total_loras,
        gpu_loras=play.gpu_loras,
        prompt_regime=play.regime,
        arrival_rate=play.arrival_rate,
        num_requests=len(play.requests),
        ttft_median=_percentile(ttft_s, 50),
        ttft_p99=_percentile(ttft_s, 99),
        ttft_mean=float(ttft_s.mean()),
        latency_median=_percentile(latency_s, 50),
        latency_p99=_percentile(latency_s, 99),
        success_rate=1.0,  # What is unanswered at the end has not failed.
        prompt_tokens_mean=float(play.requests["input_length"].mean()),
        init_swap_calls=int(play.gpu_loras > 0),
        init_swap_count=play.gpu_loras,
        runtime_swap_calls=play.swap_steps,
        runtime_swap_count=play.activations,
        source=f"measured: {play.source}",
    )


def num_preloaded(config: Mapping[str, Any]) -> int:
    """Return how many adapters have a slot when a run starts, all of them by one call."""
    initial: list[str] | int = config["engine"]["initial_slots"]
    return min(initial, config["workload"]["num_adapters"]) if isinstance(initial, int) else len(initial)


def append(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Add each row to the CSV of its regime and number of adapters; returns the files. Raises UserError."""
    of_file: dict[Path, list[Row]] = {}
    for row in rows:
        path = folder / f"ttft_{row.prompt_regime}_total{row.total_loras}.csv"
        of_file.setdefault(path, []).append(row)
    for path, added in of_file.items():
        before = path.read_text(encoding="utf-8") if path.exists() else f"{','.join(Row._fields)}\n"
        if before.splitlines()[:1] != [",".join(Row._fields)]:
            raise UserError(f"{path}: other columns than {','.join(Row._fields)}; move it away")
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(
            [round(value, 6) if isinstance(value, float) else value for value in row] for row in added
        )
        write_atomically(path, (before + text.getvalue()).encode())
    return list(of_file)


def table(rows: Sequence[Row]) -> str:
    """Return the columns that matter, a line a row."""
    head = ["prompts", "adapters", "gpu_loras", "TTFT median", "TTFT p99", "latency median", "success"]
    head += ["init swaps", "runtime calls", "runtime swaps"]
    lines = [
        [
            row.prompt_regime,
            str(row.total_loras),
            str(row.gpu_loras),
            *(_ms(value) for value in (row.ttft_median, row.ttft_p99, row.latency_median)),
            f"{row.success_rate:.1%}",
            *map(str, (row.init_swap_count, row.runtime_swap_calls, row.runtime_swap_count)),
        ]
        for row in rows
    ]
    return "\n".join(aligned(head, lines, labels=1))


def shape_table(rows: Sequence[Row], reported: Reported) -> str:
    """Return the reported points beside ours, each also over that of the most `gpu_loras` reported."""
    ours = {row.gpu_loras: row for row in rows if _is_alike(row, reported)}
    most = max(reported.gpu_loras)
    first = reported.gpu_loras.index(most)
    lines = []
    for gpu_loras, median, p99 in zip(
        reported.gpu_loras, reported.ttft_median, reported.ttft_p99, strict=True
    ):
        row, base = ours.get(gpu_loras), ours.get(most)
        of_ours = [_ms(row.ttft_median), _ms(row.ttft_p99)] if row else ["-", "-"]
        ratio = _ratio(row.ttft_median if row else None, base.ttft_median if base else None)
        theirs = [_ms(median), _ms(p99), _ratio(median, reported.ttft_median[first])]
        lines.append([str(gpu_loras), *theirs, *of_ours, ratio])
    head = ["gpu_loras", "TTFT median", "TTFT p99", f"over {most}"]
    head += ["simulated median", "simulated p99", f"simulated over {most}"]
    title = f"--- Reported: {reported.source} ---"
    return "\n".join([title, *aligned(head, lines)])


def panels(rows: Sequence[Row], measured: Sequence[Row], reported: Reported) -> list[Panel]:
    """Return a panel a regime, with the level of our TTFT, and one of the shape beside what is reported."""
    found = []
    for regime in dict.fromkeys(row.prompt_regime for row in rows):
        curves = []
        for total in dict.fromkeys(row.total_loras for row in rows if row.prompt_regime == regime):
            points = _points([row for row in rows if (row.prompt_regime, row.total_loras) == (regime, total)])
            curves.append(Curve(f"{total} adapters", list(points), list(points.values())))
        points = _points([row for row in measured if row.prompt_regime == regime])
        if points:
            curves.append(Curve("128 adapters, measured", list(points), list(points.values()), True))
        title = f"Median TTFT, {regime} prompts"
        found.append(Panel(title, "adapters in GPU slots", "ms", curves, x_from_high=True))
    ours = _points([row for row in rows if _is_alike(row, reported)])
    most = max(reported.gpu_loras)
    median = dict(zip(reported.gpu_loras, reported.ttft_median, strict=True))
    curves = [Curve("reported", list(median), [value / median[most] for value in median.values()], True)]
    gpu = _points([row for row in measured if _is_alike(row, reported)])
    if most in gpu:
        curves.append(Curve("measured", list(gpu), [value / gpu[most] for value in gpu.values()], True))
    if most in ours:
        curves.append(Curve("simulated", list(ours), [value / ours[most] for value in ours.values()]))
    title = f"Its shape: {reported.prompt_regime} prompts, {reported.total_loras} adapters"
    x_label = "adapters in GPU slots"
    return [*found, Panel(title, x_label, f"over {most} slots", curves, level=1.0, x_from_high=True)]


def _is_alike(row: Row, reported: Reported) -> bool:
    return (row.prompt_regime, row.total_loras) == (reported.prompt_regime, reported.total_loras)


def _points(rows: Sequence[Row]) -> dict[int, float]:
    known = sorted(rows, key=lambda row: -row.gpu_loras)
    return {row.gpu_loras: row.ttft_median / S_PER_MS for row in known if row.ttft_median is not None}


def _percentile(values: Any, level: int) -> float | None:
    return float(np.percentile(values, level)) if len(values) else None


def _ms(value_s: float | None) -> str:
    return "-" if value_s is None else f"{value_s / S_PER_MS:.1f}ms"


def _ratio(value: float | None, base: float | None) -> str:
    return f"{value / base:.2f}" if value is not None and base else "-"
