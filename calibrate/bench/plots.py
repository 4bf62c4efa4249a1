"""A run, or two of them side by side, as one picture of six panels."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calibrate.bench.metrics import LATENCIES, THROUGHPUTS, TOKEN_TIMES, Compared, measure
from calibrate.bench.record import COMPLETED, Run
from calibrate.bench.tables import signed_pct, value

# Okabe and Ito's colours, told apart by colour-blind readers.
BASELINE, MULTI, GAIN, LOSS, FAINT = "#0072b2", "#c24f00", "#008060", "#b5558d", "#5a6270"
MOST_ADAPTERS = 20
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dde0e5",
    "legend.frameon": False,
}
Panel = Callable[[Axes], None]


def comparison_png(
    baseline: Mapping[str, Any], multi: Mapping[str, Any], gains: Mapping[str, float | None]
) -> bytes:
    """Return the six panels of a comparison: latency, throughput, success rate, improvement, adapters, a
    table.
    """
    both = {"Baseline": baseline, "Multi-Adapter": multi}
    return _picture(
        "Baseline against multi-adapter",
        [
            lambda axes: _latency_bars(axes, both),
            lambda axes: _throughput_bars(axes, both),
            lambda axes: _success_bars(axes, both),
            lambda axes: _improvements(axes, gains),
            lambda axes: _requests_per_adapter(axes, multi["adapters"]),
            lambda axes: _summary(axes, both),
        ],
    )


def run_png(run: Run) -> bytes:
    """Return the six panels of one run: latency's distribution and course, times of tokens, adapters, a
    table.
    """
    measured = measure(run)
    name = {"baseline": "Baseline", "multi": "Multi-Adapter"}.get(run.mode, run.mode)
    return _picture(
        f"Benchmark: {run.mode}",
        [
            lambda axes: _latency_bars(axes, {name: measured}),
            lambda axes: _over_time(axes, run),
            lambda axes: _distributions(axes, run),
            lambda axes: _latency_per_adapter(axes, measured["adapters"]),
            lambda axes: _requests_per_adapter(axes, measured["adapters"]),
            lambda axes: _summary(axes, {name: measured}),
        ],
    )


def _picture(title: str, panels: Sequence[Panel]) -> bytes:
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)  # type: ignore[arg-type]
        figure = Figure(figsize=(15, 8.5), layout="constrained")
        figure.suptitle(title, fontsize=13)
        for place, panel in enumerate(panels, start=1):
            panel(figure.add_subplot(2, 3, place))
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _colours(runs: Mapping[str, Any]) -> list[str]:
    return [BASELINE if name == "Baseline" else MULTI for name in runs]


def _latency_bars(axes: Axes, runs: Mapping[str, Mapping[str, Any]]) -> None:
    places, width = np.arange(len(LATENCIES)), 0.8 / len(runs)
    for index, (name, colour) in enumerate(zip(runs, _colours(runs), strict=True)):
        heights = [(runs[name][metric.key] or 0) / 1e3 for metric in LATENCIES]
        bars = axes.bar(
            places + (index - (len(runs) - 1) / 2) * width, heights, width, color=colour, label=name
        )
        axes.bar_label(bars, [f"{height:.3g}" for height in heights], fontsize=8, padding=1)
    axes.set_xticks(places, [metric.label.split()[0] for metric in LATENCIES])
    axes.set(title="Latency", ylabel="s")
    axes.margins(y=0.15)
    if len(runs) > 1:
        axes.legend()


def _throughput_bars(axes: Axes, runs: Mapping[str, Mapping[str, Any]]) -> None:
    """Requests/s on the left axis, tokens/s on the right one: their sizes have nothing in common."""
    right = axes.twinx()
    right.spines["right"].set_visible(True)
    width = 0.8 / len(runs)
    for place, (side, metric) in enumerate(zip((axes, right), THROUGHPUTS, strict=True)):
        for index, (name, colour) in enumerate(zip(runs, _colours(runs), strict=True)):
            height = runs[name][metric.key] or 0
            offset = (index - (len(runs) - 1) / 2) * width
            bars = side.bar(place + offset, height, width, color=colour, label=name if place == 0 else None)
            side.bar_label(
                bars, [f"{height:.4g}" if height < 1000 else f"{height:,.0f}"], fontsize=8, padding=1
            )
        side.set_ylabel(metric.label)
        side.margins(y=0.15)
    axes.set_xticks([0, 1], ["Requests/sec (left)", "Tokens/sec (right)"])
    axes.set_title("Throughput")


def _success_bars(axes: Axes, runs: Mapping[str, Mapping[str, Any]]) -> None:
    rates = [100 * (run["success_rate"] or 0) for run in runs.values()]
    bars = axes.bar(list(runs), rates, width=0.6, color=_colours(runs))
    axes.bar_label(bars, [f"{rate:.2f}%" for rate in rates], padding=1)
    axes.set(title="Success rate", ylabel="% of the requests that ended", ylim=(0, 110))


def _improvements(axes: Axes, gains: Mapping[str, float | None]) -> None:
    shown = (*LATENCIES, TOKEN_TIMES[0], TOKEN_TIMES[4], *THROUGHPUTS)
    values = [gains[metric.key] for metric in shown]
    widths = [0.0 if gain is None else gain for gain in values]
    bars = axes.barh(
        [metric.label for metric in shown], widths, color=[GAIN if width >= 0 else LOSS for width in widths]
    )
    axes.bar_label(bars, [signed_pct(gain) for gain in values], fontsize=8, padding=3)
    axes.invert_yaxis()
    axes.axvline(0, color=FAINT, linewidth=1)
    axes.margins(x=0.25)
    axes.set(title="Improvement of multi-adapter (+ is better)", xlabel="%")


def _requests_per_adapter(axes: Axes, adapters: Mapping[str, Mapping[str, Any]]) -> None:
    _adapter_bars(axes, {name: run["total_requests"] for name, run in adapters.items()}, len(adapters))
    axes.set(title="Requests by adapter", ylabel="requests")


def _latency_per_adapter(axes: Axes, adapters: Mapping[str, Mapping[str, Any]]) -> None:
    means = {name: (run["mean_e2el_ms"] or 0) / 1e3 for name, run in adapters.items()}
    _adapter_bars(axes, means, len(adapters))
    axes.set(title="Mean latency by adapter", ylabel="s")


def _adapter_bars(axes: Axes, heights: Mapping[str, float], total: int) -> None:
    """The busiest adapters."""
    names = list(heights)[:MOST_ADAPTERS]
    axes.bar(range(len(names)), [heights[name] for name in names], color=MULTI)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    if total > len(names):
        axes.set_xlabel(f"the busiest {len(names)} of {total:,}", color=FAINT)


def _over_time(axes: Axes, run: Run) -> None:
    done = [record for record in run.records if record.status == COMPLETED]
    times, delays = [record.arrival_s for record in done], [(record.e2el_ms or 0) / 1e3 for record in done]
    axes.plot(times, delays, ".", color=MULTI, markersize=3, label="completed", rasterized=True)
    failed = [record.arrival_s for record in run.records if record.is_failed]
    if failed:
        axes.plot(failed, [0] * len(failed), "x", color=LOSS, markersize=5, label="failed", clip_on=False)
        axes.legend()
    axes.set(title="Latency over time", xlabel="meant to be sent at, s", ylabel="s")
    axes.set_ylim(bottom=0)


def _distributions(axes: Axes, run: Run) -> None:
    """Cumulative shares of latency and of time to first token."""
    for name, colour, label in (("e2el_ms", MULTI, "latency"), ("ttft_ms", BASELINE, "time to first token")):
        found = (getattr(record, name) for record in run.records if record.status == COMPLETED)
        values = sorted(delay / 1e3 for delay in found if delay is not None)
        if values:
            axes.step(values, 100 * np.arange(1, len(values) + 1) / len(values), color=colour, label=label)
    axes.set(title="Distribution", xlabel="s", ylabel="% of the requests are as fast")
    axes.grid(visible=True)
    if axes.get_lines():
        axes.legend()


def _summary(axes: Axes, runs: Mapping[str, Mapping[str, Any]]) -> None:
    def cell(run: Mapping[str, Any], metric: Compared) -> str:
        return value(metric, run[metric.key])

    metrics = (*LATENCIES, TOKEN_TIMES[0], TOKEN_TIMES[4], *THROUGHPUTS)
    rows = [[metric.label, *(cell(run, metric) for run in runs.values())] for metric in metrics]
    for label, key in (("Requests", "total_requests"), ("Successful", "completed"), ("Failed", "failed")):
        rows.append([label, *(f"{run[key]:,}" for run in runs.values())])
    rows.append(["Duration", *(f"{run['duration_s']:.2f}s" for run in runs.values())])
    axes.axis("off")
    table = axes.table(rows, colLabels=["Metric", *runs], loc="center", cellLoc="right")
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.scale(1, 1.35)
    axes.set_title("Summary")
