"""Which arrival rate to measure at: a table of rates, a verdict on each, the highest that is acceptable."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
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

PLOT_FILE, PAGE_FILE = "arrival_rate.svg", "arrival_rate.md"
MOST_ERRORS, MOST_TTFT_MS, MOST_SPREAD = 0.01, 10_000.0, 5.0
LEAST_SERVED = 0.95
"""Below it more arrives than is served. No rule of the write-up's: p99 and median grow together then."""
OK, UNSTABLE, SLOW, TOO_HIGH = "OK", "UNSTABLE", "SLOW", "TOO HIGH"
_WIDTHS = (8, 8, 8, 10, 10, 10, 12)
_HEAD = ("Rate", "Success%", "Tokens", "TTFT Med", "TTFT P99", "Lat Med", "Status")
_RULE = "=" * 80


@dataclass(frozen=True)
class Probe:
    """What one rate came to; times in ms, None where no request was answered."""

    arrival_rate: float
    success_rate: float
    prompt_tokens_mean: float
    ttft_median_ms: float | None
    ttft_p99_ms: float | None
    latency_median_ms: float | None
    arrived_rate: float | None = None
    """Requests/s from the first arrival to the last, a draw around `arrival_rate`."""
    served_rate: float | None = None
    """Requests/s from the first arrival to the last answer; None: not known."""

    @property
    def status(self) -> str:
        """The write-up's verdict; of several the one that its table would rather show is first.

        TOO HIGH: over 1 % errors and time-outs. SLOW: a p99 TTFT over 10 s. UNSTABLE: a p99 of over five
        times the median.
        """
        if self.ttft_p99_ms is None or self.ttft_median_ms is None:
            return TOO_HIGH
        if round(1 - self.success_rate, 9) > MOST_ERRORS:
            return TOO_HIGH
        if self.ttft_p99_ms > MOST_TTFT_MS:
            return SLOW
        return UNSTABLE if self.ttft_p99_ms > MOST_SPREAD * self.ttft_median_ms else OK

    @property
    def is_overload(self) -> bool:
        """Whether more arrives than is served, so that the queue grows for as long as requests come."""
        return self.served_rate is not None and self.served_rate < LEAST_SERVED * (
            self.arrived_rate or self.arrival_rate
        )


@dataclass(frozen=True)
class Reported:
    """The write-up's table: a mapping a row with the fields of Probe, and the `status` that it shows."""

    source: str
    prompt_regime: str
    rows: list[Mapping[str, Any]]
    differences: list[str] = field(default_factory=list)

    def probes(self) -> list[Probe]:
        """Return the rows, without their status. Raises UserError."""
        rows = [{name: value for name, value in row.items() if name != "status"} for row in self.rows]
        return [build(Probe, row, f"reported.rows[{index}]") for index, row in enumerate(rows)]


class ArrivalRateCallback(Callback):
    """Hydra callback that judges a sweep's rates, for each prompt regime and number of slots.

    Writes `probe_<regime>_gpu<slots>.jsonl`, a line a rate with `metadata` and `summary`, and the curves.
    """

    def __init__(self, reported: Mapping[str, Any], measured: Sequence[str] = ()) -> None:
        self.reported = build(Reported, as_mapping(reported, "reported"), "reported")
        self.measured = measured
        self.reported.probes()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the files, print the tables. Raises UserError."""
        sweep_dir = Path(config.hydra.sweep.dir)
        jobs = load_jobs(sweep_dir)
        files, tables, probes = [], [], {}
        for (regime, gpu_loras), of_group in groups(jobs):
            probes[regime, gpu_loras] = [probe(job) for job in of_group]
            path = sweep_dir / f"probe_{regime}_gpu{gpu_loras}.jsonl"
            write_atomically(path, "".join(line(job, regime) for job in of_group).encode())
            files.append(path)
            where = f"{gpu_loras} in GPU slots, simulated"
            tables.append(table(probes[regime, gpu_loras], regime, where))
        plays = held_plays(self.measured)
        on_gpu = measured_probes(plays)
        tables += [
            table(of_group, regime, f"{gpu_loras} in GPU slots, measured")
            for (regime, gpu_loras), of_group in on_gpu.items()
        ]
        statuses = [row.get("status", "-") for row in self.reported.rows]
        tables.append(table(self.reported.probes(), self.reported.prompt_regime, "reported", statuses))
        plot = sweep_dir / PLOT_FILE
        write_atomically(plot, svg(panels(probes, on_gpu, self.reported)))
        bases = [f"reported: {self.reported.source}", f"profile: {profile_source(jobs[0].summary)}"]
        notes = [*bases, *self.reported.differences, measured_note(plays), *warnings(jobs)]
        show(sweep_dir / PAGE_FILE, tables, notes, [*files, plot])


def groups(jobs: Sequence[Run]) -> Iterator[tuple[tuple[str, int], list[Run]]]:
    """Yield prompt regime and number of slots with their jobs, in order of the rate. Raises UserError."""
    found: dict[tuple[str, int], list[Run]] = {}
    for job in jobs:
        config = job.summary["config"]
        if config["workload"]["mode"] != "open" or config["workload"]["request_rate"] is None:
            raise UserError(f"{job.path}: no workload.request_rate; expected workload.mode=open and a rate")
        found.setdefault((regime_of(job), config["engine"]["max_loras"]), []).append(job)
    for key, of_group in found.items():
        yield key, sorted(of_group, key=rate_of)


def rate_of(job: Run) -> float:
    """Return a job's requests/s."""
    return float(job.summary["config"]["workload"]["request_rate"])


def probe(job: Run) -> Probe:
    """Return what a job came to."""
    requests = read_requests(job.path).to_pandas()
    if requests.empty:
        raise UserError(f"{job.path}: no request arrived; expected a larger workload.duration_s")
    done = requests[requests["status"] == "completed"]
    return Probe(
        rate_of(job),
        len(done) / len(requests),
        float(requests["input_length"].mean()),
        _percentile(done["ttft_ms"], 50),
        _percentile(done["ttft_ms"], 99),
        _percentile(done["e2el_ms"], 50),
        *_rates(requests, done),
    )


def measured_probes(plays: Sequence[Held]) -> dict[tuple[str, int], list[Probe]]:
    """Return what plays on the real engine came to, by regime and number of slots."""
    found: dict[tuple[str, int], list[Probe]] = {}
    for play in plays:
        ttft_ms, latency_ms = 1e3 * play.ttft_s, 1e3 * play.latency_s
        figures = (_percentile(ttft_ms, 50), _percentile(ttft_ms, 99), _percentile(latency_ms, 50))
        tokens = float(play.requests.input_length.mean())
        # A play is cut off, so that a request which has begun to be answered by then counts as served.
        begun = play.requests[play.requests.first_token_s.notna()]
        found.setdefault((play.regime, play.gpu_loras), []).append(
            # None was lost: what had no answer when the play was cut off was still under way.
            Probe(play.arrival_rate, 1.0, tokens, *figures, *_rates(play.requests, begun, "first_token_s"))
        )
    return found


def _rates(
    requests: pd.DataFrame, served: pd.DataFrame, served_at: str = "finish_s"
) -> tuple[float | None, float | None]:
    first_s, last_s = requests["arrival_s"].min(), requests["arrival_s"].max()
    if served.empty or first_s == last_s:
        return None, None
    return len(requests) / (last_s - first_s), len(served) / (served[served_at].max() - first_s)


def line(job: Run, regime: str) -> str:
    """Return a job's line of JSON: what was asked, and what came of it. Times in ms."""
    requests = read_requests(job.path).to_pandas()
    done = requests[requests["status"] == "completed"]
    config, found = job.summary["config"], probe(job)
    metadata = {
        "source": "simulated",
        "profile": job.summary["profile"],
        "model": config["model"]["name"],
        "total_loras": config["workload"]["num_adapters"],
        "gpu_loras": config["engine"]["max_loras"],
        "prompt_regime": regime,
        "arrival_rate": found.arrival_rate,
        "duration_seconds": config["workload"]["duration_s"],
        "timeout_ms": config["workload"]["abort_ms"],
        "max_tokens": config["workload"]["output_length"],
        "seed": config["seed"],
    }
    summary: dict[str, Any] = {
        "num_requests": len(requests),
        "completed": len(done),
        "success_rate": found.success_rate,
        "error_rate": 1 - found.success_rate,
        "timeout_rate": float((requests["status"] == "aborted").mean()),
        "prompt_tokens_mean": found.prompt_tokens_mean,
        "served_rate": found.served_rate,
    }
    for name, column in (("ttft", "ttft_ms"), ("latency", "e2el_ms")):
        for key, level in (("median", 50), ("p90", 90), ("p99", 99)):
            summary[f"{name}_{key}_ms"] = _percentile(done[column], level)
    return json.dumps({"metadata": metadata, "summary": summary | {"status": found.status}}) + "\n"


def table(probes: Sequence[Probe], regime: str, where: str, shown: Sequence[str] | None = None) -> str:
    """Return the write-up's table and, below it, the highest rate that is OK.

    `shown`: the statuses that the write-up itself shows; where the rules say otherwise, they follow.
    """
    rows = []
    for number, found in enumerate(probes):
        own = found.status
        status = own if shown is None or shown[number] == own else f"{shown[number]} (rules: {own})"
        cells = (f"{found.arrival_rate:.1f}", f"{found.success_rate:.1%}", f"{found.prompt_tokens_mean:.0f}")
        times = (_ms(value) for value in (found.ttft_median_ms, found.ttft_p99_ms, found.latency_median_ms))
        rows.append(_line((*cells, *times, status)))
    dashes = "-+-".join("-" * width for width in _WIDTHS)
    title = f"COMPARATIVE SUMMARY ({regime} prompts; {where})"
    return "\n".join([_RULE, title, _RULE, _line(_HEAD), dashes, *rows, _RULE, *verdict(probes)])


def verdict(probes: Sequence[Probe]) -> list[str]:
    """Return the highest rate that is OK, and which of those that are OK are so for want of a rule."""
    acceptable = [found for found in probes if found.status == OK]
    lines = [f"Highest rate that is OK: {_highest(acceptable)}"]
    over = [found for found in acceptable if found.is_overload]
    if over:
        rates = ", ".join(f"{found.arrival_rate:g} ({found.served_rate:.1f} are served)" for found in over)
        others = [found for found in acceptable if not found.is_overload]
        lines.append(
            f"OK by the rules, though more arrives than is served: {rates}. Without: {_highest(others)}"
        )
    return lines


def _highest(probes: Sequence[Probe]) -> str:
    return f"{max(found.arrival_rate for found in probes):g} requests/s" if probes else "none of these"


def panels(
    probes: Mapping[tuple[str, int], Sequence[Probe]],
    measured: Mapping[tuple[str, int], Sequence[Probe]],
    reported: Reported,
) -> list[Panel]:
    """Return a panel a regime: median TTFT over its value at the lowest rate, and the p99's spread."""
    found = []
    for regime in dict.fromkeys(regime for regime, _ in probes):
        curves = [
            _curve(f"{gpu_loras} in GPU slots", of_group)
            for (name, gpu_loras), of_group in probes.items()
            if name == regime
        ]
        curves += [
            _curve(f"{gpu_loras}, measured", of_group, True)
            for (name, gpu_loras), of_group in measured.items()
            if name == regime
        ]
        if regime == reported.prompt_regime:
            curves.append(_curve("reported", reported.probes(), True))
        title = f"Median TTFT, {regime} prompts"
        found.append(Panel(title, "requests/s", "ms", curves, log_y=True))
    return found


def _curve(label: str, probes: Sequence[Probe], reported: bool = False) -> Curve:
    known = [found for found in probes if found.ttft_median_ms is not None]
    rates = [found.arrival_rate for found in known]
    return Curve(label, rates, [found.ttft_median_ms or 0.0 for found in known], reported)


def _line(cells: Sequence[str]) -> str:
    return " | ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True))


def _percentile(values: Any, level: int) -> float | None:
    return float(np.percentile(values, level)) if len(values) else None


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}ms"
