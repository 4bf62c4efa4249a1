"""llmux's LoRA throughput experiment in its own form: a table of runs, what switching cost, its metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from calibrate.writeups.page import show
from calibrate.writeups.sources import profile_source, warnings
from sim.errors import UserError
from sim.fields import as_mapping, build
from sim.files import write_atomically
from sim.results import read_adapters, read_requests, to_json
from sim.sweep.runs import Run, load_jobs
from sim.tables import aligned

RESULT_FILE, PAGE_FILE = "llmux_simulated.json", "llmux.md"
COUNT, SECONDS = "llmux_switches_total", "llmux_switch_total_seconds_sum"
COLUMNS = {
    "request_throughput": ("Throughput (req/s)", ".4f"),
    "median_e2el_ms": ("p50 latency (ms)", ".2f"),
    "p95_e2el_ms": ("p95 latency (ms)", ".2f"),
    "switches": ("Switches", "d"),
}
AGGREGATE = {
    "single_throughput": ("Single-adapter average throughput (req/s)", ".4f"),
    "intertwined_throughput": ("Intertwined average throughput (req/s)", ".4f"),
    "drop_pct": ("Throughput drop (%)", ".2f"),
    "slowdown": ("Slowdown factor (x)", ".2f"),
    "switches_per_run": ("Intertwined average switches/run", ".1f"),
}


class Switch(NamedTuple):
    """One adapter made room for another."""

    end_s: float
    duration_s: float
    before: str
    after: str


@dataclass(frozen=True)
class Reported:
    """The write-up's figures, of one mechanism. `switches` has a mapping per pair: from, to, COUNT, SECONDS.

    `differences` says in words why ours differ, or that it is not explained.
    """

    source: str
    mechanism: str
    phases: Mapping[str, Any] = field(default_factory=dict)
    aggregate: Mapping[str, Any] = field(default_factory=dict)
    switches: list[Mapping[str, Any]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """How a run's requests, in order of arrival, make up the write-up's runs.

    `phases`: the number of requests of each. `single` and `intertwined` name those that are compared.
    """

    phases: Mapping[str, Any]
    single: list[str]
    intertwined: list[str]
    reported: Reported
    adapter_names: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from the callback's settings. Raises UserError."""
        reported = build(Reported, as_mapping(values.get("reported"), "reported"), "reported")
        found = build(cls, dict(values) | {"reported": reported}, "llmux")
        for side in ("single", "intertwined"):
            for name in getattr(found, side):
                if name not in found.phases:
                    raise UserError(f"llmux.{side}: {name}: expected one of {', '.join(found.phases)}")
        return found


class LlmuxCallback(Callback):
    """Hydra callback that makes the write-up's table for each job of a sweep, in which `swap` varies."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings.from_mapping(settings)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the file and print the tables. Raises UserError."""
        sweep_dir = Path(config.hydra.sweep.dir)
        runs = load_jobs(sweep_dir)
        found = {run.summary["config"]["swap"]["mechanism"]: measure(run, self.settings) for run in runs}
        path = sweep_dir / RESULT_FILE
        content = {"reported": asdict(self.settings.reported), "simulated": found, "measured": None}
        write_atomically(path, to_json(content).encode())
        tables = [table(mechanism, measured, self.settings) for mechanism, measured in found.items()]
        notes = [*self.settings.reported.differences, *warnings(runs)]
        show(sweep_dir / PAGE_FILE, tables, notes, [path])


def measure(run: Run, settings: Settings) -> dict[str, Any]:
    """Return the figures of one job: of each phase, the aggregate, and the switches of each pair."""
    requests = read_requests(run.path).to_pandas()
    expected = sum(settings.phases.values())
    if len(requests) != expected or not (requests["status"] == "completed").all():
        raise UserError(
            f"{run.path}: expected {expected} completed requests, as many as llmux.phases adds up to"
        )
    switches = find_switches(read_adapters(run.path).to_pylist(), settings.adapter_names)
    phases, first = {}, 0
    for name, number in settings.phases.items():
        part = requests.iloc[first : first + number]
        first += number
        begin_s, end_s = float(part["arrival_s"].min()), float(part["finish_s"].max())
        median, p95 = np.percentile(part["e2el_ms"], (50, 95))
        phases[name] = {
            "requests": number,
            "request_throughput": number / (end_s - begin_s),
            "median_e2el_ms": float(median),
            "p95_e2el_ms": float(p95),
            "switches": sum(begin_s < switch.end_s <= end_s for switch in switches),
        }
    swap = run.summary["config"]["swap"]
    return {
        "profile": profile_source(run.summary),
        "switch_cost": {"stop_s": swap["stop_s"], "start_s": swap["start_s"], "source": swap["source"]},
        "phases": phases,
        "aggregate": aggregate(phases, settings.single, settings.intertwined),
        "switches": per_pair(switches),
    }


def find_switches(events: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[Switch]:
    """Return the activations that followed an eviction from the same slot, given rows of adapters.parquet."""
    evicted: dict[int, str] = {}
    found = []
    for event in events:
        if event["kind"] == "evict_slot":
            evicted[event["slot"]] = event["adapter"]
        elif event["kind"] == "activate" and event["slot"] in evicted:
            pair = (names.get(adapter, adapter) for adapter in (evicted.pop(event["slot"]), event["adapter"]))
            found.append(Switch(event["time_s"], event["duration_ms"] / 1e3, *pair))
    return found


def per_pair(switches: Sequence[Switch]) -> list[dict[str, Any]]:
    """Return the number and the seconds of the switches of each pair, in order of first appearance."""
    pairs = dict.fromkeys((switch.before, switch.after) for switch in switches)
    rows = []
    for before, after in pairs:
        durations = [
            switch.duration_s for switch in switches if (switch.before, switch.after) == (before, after)
        ]
        rows.append({"from": before, "to": after, COUNT: len(durations), SECONDS: float(np.sum(durations))})
    return rows


def aggregate(
    phases: Mapping[str, Mapping[str, Any]], single: Sequence[str], intertwined: Sequence[str]
) -> dict[str, float]:
    """Return the write-up's comparison of the two kinds of runs, of means over runs."""
    alone, mixed = (
        float(np.mean([phases[name]["request_throughput"] for name in names]))
        for names in (single, intertwined)
    )
    return {
        "single_throughput": alone,
        "intertwined_throughput": mixed,
        "drop_pct": 100 * (1 - mixed / alone),
        "slowdown": alone / mixed,
        "switches_per_run": float(np.mean([phases[name]["switches"] for name in intertwined])),
    }


def table(mechanism: str, measured: Mapping[str, Any], settings: Settings) -> str:
    """Return the tables of one mechanism, with what is reported where the write-up is of that."""
    reported = settings.reported if settings.reported.mechanism == mechanism else None
    cost = measured["switch_cost"]
    lines = [f"--- swap={mechanism} ---", f"profile: {measured['profile']}"]
    if cost["source"]:
        lines.append(f"a switch: stop {cost['stop_s']:g} s, start {cost['start_s']:g} s ({cost['source']})")
    if reported is not None:
        lines.append(f"reported: {reported.source}")
    return "\n".join([*lines, "", _runs_table(measured, reported), "", _totals_table(measured, reported)])


def _runs_table(measured: Mapping[str, Any], reported: Reported | None) -> str:
    rows = []
    for name, phase in measured["phases"].items():
        sides = {"simulated": phase}
        if reported and name in reported.phases:
            sides = {"reported": reported.phases[name], **sides}
        for side, values in sides.items():
            cells = [_cell(values.get(key), form) for key, (_, form) in COLUMNS.items()]
            rows.append([name, side, str(phase["requests"]), *cells])
    head = ["Run", "", "Requests", *(title for title, _ in COLUMNS.values())]
    return "\n".join(aligned(head, rows, labels=2))


def _totals_table(measured: Mapping[str, Any], reported: Reported | None) -> str:
    theirs: Mapping[str, Any] = reported.aggregate if reported else {}
    rows = [
        [title, _cell(theirs.get(key), form), _cell(measured["aggregate"][key], form)]
        for key, (title, form) in AGGREGATE.items()
    ]
    of_pair = {(pair["from"], pair["to"]): pair for pair in (reported.switches if reported else [])}
    for key, form in ((COUNT, "d"), (SECONDS, ".4f")):
        for pair in measured["switches"]:
            before, after = pair["from"], pair["to"]
            known = of_pair.get((before, after), {})
            name = f'{key}{{from="{before}",to="{after}"}}'
            rows.append([name, _cell(known.get(key), form), _cell(pair[key], form)])
    if reported is None:
        return "\n".join(aligned(["", "simulated"], [[row[0], row[2]] for row in rows], labels=1))
    return "\n".join(aligned(["", "reported", "simulated"], rows, labels=1))


def _cell(value: float | None, form: str) -> str:
    if value is None:
        return "-"
    return f"{value:{form}}" if form == "d" else f"{round(value, int(form[1])) + 0.0:{form}}"
