"""From which cost of a switch on it is worth while to serve two adapters in turn, and not in slots."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from tqdm import tqdm

from calibrate.writeups.curves import Curve, Panel, svg
from calibrate.writeups.page import show
from calibrate.writeups.sources import profile_source
from sim.errors import UserError
from sim.fields import as_mapping
from sim.files import write_atomically
from sim.simulation import simulate
from sim.sweep.rows import write_csv
from sim.sweep.runs import load_jobs

CSV_FILE, PLOT_FILE, PAGE_FILE = "break_even.csv", "break_even.svg", "break_even.md"
NUM_SLOTS = 2
_TURNS = "process_restart"


@dataclass(frozen=True)
class Point:
    """A time slice with switches of `switch_s` under a mix, against slots under the same."""

    mix: str
    switch_s: float
    output_throughput: float
    slots_output_throughput: float
    p99_e2el_ms: float | None
    slots_p99_e2el_ms: float | None
    adapter_activations: int

    @property
    def ratio(self) -> float:
        """How much of the slots' throughput the time slice has."""
        return self.output_throughput / self.slots_output_throughput


class BreakEvenCallback(Callback):
    """Hydra callback that sets one adapter at a time against slots, for each mix of requests and each cost.

    The policies are those of the sweep's jobs with swap=process_restart and swap=slots, all else is `base`.
    `mixes`: a title each, and what differs in `workload`, and in the time slice's `admission`.
    """

    def __init__(
        self, base: Mapping[str, Any], switch_s: Sequence[float], mixes: Sequence[Mapping[str, Any]]
    ):
        self.base = as_mapping(base, "break_even.base")
        self.switch_s = [float(cost) for cost in switch_s]
        self.mixes = [as_mapping(mix, "break_even.mixes") for mix in mixes]
        if sorted(set(self.switch_s)) != self.switch_s or len(self.switch_s) < 2:
            raise UserError(f"break_even.switch_s={self.switch_s}: expected two costs or more that rise")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Simulate, write the table and the plot, print where the break-even is. Raises UserError."""
        sweep_dir = Path(config.hydra.sweep.dir)
        jobs = {
            job.summary["config"]["swap"]["mechanism"]: job.summary["config"] for job in load_jobs(sweep_dir)
        }
        missing = [name for name in (_TURNS, "slots") if name not in jobs]
        if missing:
            raise UserError(
                f"swap: no job with {missing[0]}; break_even needs it (~hydra.callbacks.break_even: without)"
            )
        points, notes = self._points(jobs)
        rows = [asdict(point) | {"ratio": point.ratio} for point in points]
        write_csv(rows, sweep_dir / CSV_FILE)
        write_atomically(sweep_dir / PLOT_FILE, plot(points))
        files = [sweep_dir / CSV_FILE, sweep_dir / PLOT_FILE]
        show(sweep_dir / PAGE_FILE, [in_words(points)], notes, files)

    def _points(self, jobs: Mapping[str, Mapping[str, Any]]) -> tuple[list[Point], list[str]]:
        """Return the points, and what they rest on."""
        points: list[Point] = []
        notes: dict[str, None] = {}
        total = len(self.mixes) * (1 + len(self.switch_s))
        with tqdm(total=total, unit="run", desc="break-even", leave=False, file=sys.stderr) as bar:
            for mix in self.mixes:
                slots = simulate(self._slots(jobs["slots"], mix)).summary
                notes[f"profile: {profile_source(slots)}"] = None
                bar.update()
                for cost in self.switch_s:
                    turns = simulate(self._turns(jobs[_TURNS], mix, cost)).summary
                    bar.update()
                    points.append(_point(mix["title"], cost, turns, slots))
                    left = [*slots["profile"]["outside_range"], *turns["profile"]["outside_range"]]
                    notes |= dict.fromkeys(left)
        return points, list(notes)

    def _slots(self, job: Mapping[str, Any], mix: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of a run in which each adapter has a slot."""
        values = self._values(job, mix, NUM_SLOTS)
        return values | {"admission": dict(job["admission"]), "swap": dict(job["swap"])}

    def _turns(self, job: Mapping[str, Any], mix: Mapping[str, Any], cost_s: float) -> dict[str, Any]:
        """Return the configuration of a run in which one adapter at a time is served."""
        admission = dict(job["admission"]) | dict(mix.get("admission", {}))
        swap = {"mechanism": _TURNS, "stop_s": 0.0, "start_s": cost_s, "source": "varied"}
        return self._values(job, mix, 1) | {"admission": admission, "swap": swap}

    def _values(self, job: Mapping[str, Any], mix: Mapping[str, Any], num_slots: int) -> dict[str, Any]:
        values = {**job, "record": {}, **self.base}
        values["engine"] = {**self.base["engine"], "max_loras": num_slots, "max_cpu_loras": num_slots}
        values["workload"] = {**self.base["workload"], **mix.get("workload", {})}
        return values


def _point(mix: str, cost_s: float, turns: Mapping[str, Any], slots: Mapping[str, Any]) -> Point:
    if not slots["output_throughput"]:
        raise UserError(f"break_even.mixes: {mix}: no output in slots")
    throughputs = turns["output_throughput"], slots["output_throughput"]
    latencies = turns["p99_e2el_ms"], slots["p99_e2el_ms"]
    return Point(mix, cost_s, *throughputs, *latencies, turns["adapter_activations"])


def break_even_s(points: Sequence[Point]) -> float | None:
    """Return up to which cost of a switch a mix's time slices have the throughput of slots.

    Between two costs by a straight line, over the logarithm where the first is above 0. None: at no cost.
    Infinity: at every one.
    """
    if points[0].ratio < 1:
        return None
    for below, above in pairwise(points):
        if above.ratio < 1:
            share = (below.ratio - 1) / (below.ratio - above.ratio)
            if below.switch_s == 0:
                return share * above.switch_s
            return below.switch_s * math.exp(share * math.log(above.switch_s / below.switch_s))
    return math.inf


def by_mix(points: Sequence[Point]) -> Iterator[tuple[str, list[Point]]]:
    """Yield each mix with its points."""
    for mix in dict.fromkeys(point.mix for point in points):
        yield mix, [point for point in points if point.mix == mix]


def in_words(points: Sequence[Point]) -> str:
    """Return a line for each mix: up to which cost a time slice is worth it."""
    lines = ["--- When are time slices worth it? Output throughput against slots for both adapters ---"]
    for mix, of_mix in by_mix(points):
        found, last = break_even_s(of_mix), of_mix[-1]
        at_last = f"{last.ratio:.1%} of it at {last.switch_s:g} s"
        if found is None:
            text = f"never: {of_mix[0].ratio:.1%} of the slots' throughput where switches are free, {at_last}"
        elif found == math.inf:
            text = f"up to {last.switch_s:g} s a switch and beyond"
        else:
            free = f"{of_mix[0].ratio:.1%} of the slots' throughput where they are free"
            text = f"up to {found:.3g} s a switch ({free}, {at_last})"
        lines.append(f"{mix}: {text}")
    return "\n".join(lines)


def plot(points: Sequence[Point]) -> bytes:
    """Return throughput and latency, each over that of slots, over the cost of a switch, as SVG."""
    zero = min(point.switch_s for point in points if point.switch_s) / 3
    throughput, latency = [], []
    for mix, of_mix in by_mix(points):
        costs = [point.switch_s for point in of_mix]
        throughput.append(Curve(mix, costs, [point.ratio for point in of_mix]))
        known = [point for point in of_mix if point.p99_e2el_ms and point.slots_p99_e2el_ms]
        ratios = [(point.p99_e2el_ms or 0) / (point.slots_p99_e2el_ms or 1) for point in known]
        latency.append(Curve(mix, [point.switch_s for point in known], ratios))
    x_label = "seconds a switch takes"
    return svg(
        [
            Panel("Output throughput, slots = 1", x_label, "time slice / slots", throughput, 1.0, zero=zero),
            Panel(
                "p99 latency, slots = 1", x_label, "time slice / slots", latency, 1.0, log_y=True, zero=zero
            ),
        ]
    )
