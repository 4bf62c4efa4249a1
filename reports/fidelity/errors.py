"""Simulated against measured: each replay, and the errors of all of them against their targets."""

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes

from reports.experiments.document import markdown_table
from reports.numbers import number
from reports.svg import Plot, draw_grid, draw_scatter

QUANTITIES = {
    "output_throughput": ("output throughput, tokens/s", 3.0),
    "median_tpot_ms": ("TPOT p50, ms", 3.0),
    "median_ttft_ms": ("TTFT p50, ms", 10.0),
    "p99_ttft_ms": ("TTFT p99, ms", 10.0),
    "adapter_loads": ("loads", 5.0),
    "adapter_activations": ("activations", 5.0),
}
"""Title, and the target for the median absolute error in percent."""
WORST_THROUGHPUT_PCT = 10.0


def targets_section(rows: pd.DataFrame) -> list[str]:
    """Return the errors over all replays against their targets."""
    lines = [_errors(rows[rows.quantity == name], name) for name in QUANTITIES]
    one = rows[rows.quantity == "output_throughput"]
    throughput = dict(zip(one.model + ", " + one.workload, one.error_pct, strict=True))
    worst = max(throughput, key=lambda replay: abs(throughput[replay]))
    is_met = "met" if abs(throughput[worst]) <= WORST_THROUGHPUT_PCT else "missed"
    head = ["median absolute error", "target", "", "all", "closed loop", "below saturation", "worst"]
    head += ["given the replay's own host", "hardware's spread"]
    closed, below = (one["mode"] == "closed").sum(), one.below_saturation.sum()
    return [
        "## Errors",
        "",
        f"{len(throughput)} replays of 30 s or more, {closed} of them closed loops and {below} open loops "
        "that the engine kept up with: there, throughput is what is asked for, and nobody's merit. "
        "Predictions know the host's speed from the other replays of the same engine. The column before the "
        "last one knows the replay's own mean load, activation and host's work in a step, which tells an "
        "error of the simulated mechanism from one of the host's speed; the last one is by how much two runs "
        "of the same work on the same engine differ (median, and how many). Targets are for all replays; "
        "those for TTFT, below saturation.",
        "",
        *markdown_table(head, lines),
        "",
        f"Worst throughput: {worst}, {throughput[worst]:+.1f} % "
        f"(target {WORST_THROUGHPUT_PCT:.0f} %, {is_met}).",
        "",
        "![Predicted against measured](predicted-against-measured.svg)",
        "",
        "Median absolute errors by host and by how adapters came in. Loads tensor by tensor take most of the "
        "engine's thread there, and vary most from minute to minute, unless torch has one thread for them:",
        "",
        *markdown_table(
            ["", "adapters", "replays", *(title for title, _ in QUANTITIES.values()), "worst throughput"],
            _groups(rows),
        ),
        "",
    ]


def _groups(rows: pd.DataFrame) -> list[list[str]]:
    names = {"vllm": "tensor by tensor", "one_piece": "in one piece"}
    lines = []
    # 0: torch's own default.
    told = rows.assign(torch_threads=rows.torch_threads.fillna(0).astype(int))
    for (model, swaps, threads), group in told.groupby(["model", "swaps", "torch_threads"]):
        errors = group.error_pct.abs().groupby(group.quantity).median()
        worst = group[group.quantity == "output_throughput"].error_pct.abs().max()
        cells = [f"{error:.1f} %" for error in (*(errors[name] for name in QUANTITIES), worst)]
        how = names[str(swaps)] + (f", torch's threads: {threads}" if threads else "")
        lines.append([str(model), how, str(group.workload.nunique()), *cells])
    return lines


def _errors(rows: pd.DataFrame, name: str) -> list[str]:
    title, target = QUANTITIES[name]
    error, own = rows.error_pct.abs(), rows.error_given_host_pct.abs()
    below = error[rows.below_saturation].median()
    met = "met" if (below if name.endswith("ttft_ms") else error.median()) <= target else "missed"
    spread = rows.hardware_spread_pct.dropna()
    parts = (error.median(), error[rows["mode"] == "closed"].median(), below, error.max(), own.median())
    cells = [f"{part:.1f} %" for part in parts]
    return [title, f"{target:.0f} %", met, *cells, f"{spread.median():.1f} % ({len(spread)})"]


def replays_section(rows: pd.DataFrame) -> list[str]:
    """Return a row for each replay."""
    head = ["model, replay"]
    for name in ("output_throughput", "median_tpot_ms", "median_ttft_ms", "p99_ttft_ms"):
        head += [QUANTITIES[name][0], "error"]
    head += ["loads", "error", "activations", "error"]
    lines = []
    for (model, workload), part in rows.groupby(["model", "workload"]):
        group = part.set_index("quantity")
        line = [f"{model}, {workload}"]
        for name in QUANTITIES:
            line += [number(group.measured[name]), f"{group.error_pct[name]:+.1f} %"]
        lines.append(line)
    return ["## Every replay", "", *markdown_table(head, lines), ""]


def scatter_plot(rows: pd.DataFrame) -> Plot:
    """Return predicted against measured for each quantity, a point a replay."""
    paints = [_scatter(rows[rows.quantity == name], title) for name, (title, _) in QUANTITIES.items()]
    caption = "A point for each replay; colours and shapes: the policy."
    return draw_grid("Predicted against measured", caption, paints, 3, (3.2, 3.2))


def _scatter(rows: pd.DataFrame, title: str) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        shown = rows[(rows.measured > 0) & (rows.simulated > 0)]
        groups = shown.groupby("policy")
        draw_scatter(axes, ((str(name), it.measured, it.simulated) for name, it in groups), markersize=4)
        axes.set(ylabel="simulated", title=title)
        axes.legend(fontsize=6, loc="upper left", handletextpad=0.1)

    return paint
