"""The laboratory's plots: policies against traffic shapes, throughput against latency, sensitivity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from reports import svg
from reports.lab.data import FREE_ADAPTERS, FREE_SWAPS, Case, Lab
from reports.numbers import duration, number, percent, whole
from reports.svg import MARKERS, SERIES, Plot
from sim.sweep.objective import higher_is_better
from sim.sweep.paired import PairedDifference, paired_difference

THROUGHPUT, LATENCY = "output_throughput", "p99_ttft_ms"
_LOG_FROM = 3
"""Ratio of the largest to the smallest value from which on an axis is logarithmic."""
_FULL_TINT_AT = 1.0
"""A relative difference that is drawn in the deepest tint."""
_PALEST, _DEEPEST = 0.12, 0.42
"""Tints on which the ink can be read, on a light and on a dark page."""


def heat_map(lab: Lab, title: str = "Policies and traffic shapes") -> Plot:
    """Return the objective of each policy under each traffic shape, relative to the baseline."""

    def paint(axes: Axes) -> None:
        for row, policy in enumerate(lab.policies):
            for column, traffic in enumerate(lab.traffics):
                _cell(axes, lab, (column, row), traffic, policy)
        axes.set_xlim(0, len(lab.traffics))
        axes.set_ylim(len(lab.policies), 0)
        axes.set_xticks([column + 0.5 for column in range(len(lab.traffics))], list(lab.traffics))
        axes.set_yticks([row + 0.5 for row in range(len(lab.policies))], list(lab.policies))
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)

    caption = (
        f"Mean {lab.objective} over the seeds relative to {lab.baseline}, each policy at its own best engine "
        "settings for the traffic. Green is better, orange worse. In brackets and without colour: the 95 % "
        "interval of the paired difference holds 0, or there is one seed alone. A dash: every run failed."
    )
    height_in = 0.7 + 0.34 * len(lab.policies)
    return svg.draw(title, caption, _heat_alt(lab), paint, (_wide(lab), height_in))


def _cell(axes: Axes, lab: Lab, corner: tuple[int, int], traffic: str, policy: str) -> None:
    """Draw one cell: tint by the relative difference, text in words."""
    column, row = corner
    found = lab.against_baseline(traffic, policy)
    if found is not None and found.relative is not None and _is_sure(lab, found):
        good = (found.relative > 0) == higher_is_better(lab.objective)
        tint = _PALEST + (_DEEPEST - _PALEST) * min(1.0, abs(found.relative) / _FULL_TINT_AT)
        colour = svg.GOOD if good else svg.POOR
        axes.add_patch(Rectangle((column, row), 1, 1, color=colour, alpha=tint, linewidth=0))
    text = _cell_text(lab, lab.case(traffic, policy), found)
    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=svg.INK, size=8.5)


def _is_sure(lab: Lab, found: PairedDifference) -> bool:
    return found.verdict(higher_is_better(lab.objective)) in ("better", "worse")


def _cell_text(lab: Lab, case: Case | None, found: PairedDifference | None) -> str:
    if case is None:
        return "–"
    if case.policy == lab.baseline:
        return write_metric(lab.objective, case.mean(lab.objective))
    if found is None or found.relative is None:
        return "–"
    text = signed_percent(found.relative)
    return text if _is_sure(lab, found) else f"({text})"


def _heat_alt(lab: Lab) -> list[str]:
    return [
        f"{policy} under {traffic}: {_cell_text(lab, lab.case(traffic, policy), found)}."
        for policy in lab.policies
        for traffic in lab.traffics
        for found in [lab.against_baseline(traffic, policy)]
    ]


def _wide(lab: Lab) -> float:
    """Width in inches that the names and columns of the heat map need."""
    longest = max(len(policy) for policy in lab.policies)
    return max(svg.WIDTH_IN, 0.085 * longest + 0.95 * len(lab.traffics))


def pareto_plots(lab: Lab) -> list[Plot]:
    """Return, for each traffic shape, throughput against p99 TTFT, with the front that nothing beats."""
    return [plot for traffic in lab.traffics if (plot := _pareto(lab, traffic)) is not None]


@dataclass(frozen=True)
class Point:
    """A policy's means: output tokens/s, and p99 TTFT in s."""

    policy: str
    throughput: float
    latency_s: float

    def beats(self, other: "Point") -> bool:
        """Say whether it is at least as good in both and better in one."""
        mine, its = (self.throughput, -self.latency_s), (other.throughput, -other.latency_s)
        return mine != its and mine[0] >= its[0] and mine[1] >= its[1]


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats, by throughput."""
    kept = [point for point in points if not any(other.beats(point) for other in points)]
    return sorted(kept, key=lambda point: (point.throughput, point.latency_s))


def _pareto(lab: Lab, traffic: str) -> Plot | None:
    points = [point for policy in lab.policies if (point := _point(lab.case(traffic, policy))) is not None]
    if not points:
        return None
    best = front(points)
    ceiling = lab.ceiling(traffic, THROUGHPUT)
    references = [
        (point, marker, title)
        for which, marker, title in _REFERENCES
        if (point := _point(lab.reference(traffic, which))) is not None
    ]

    def paint(axes: Axes) -> None:
        colours = {point.policy: index for index, point in enumerate(best)}
        axes.plot([it.throughput for it in best], [it.latency_s for it in best], "-", color=svg.FAINT, lw=1)
        for point in points:
            index = colours.get(point.policy)
            look = _look(index) if index is not None else {"color": svg.IDLE, "marker": "o", "ms": 4.5}
            label = point.policy if index is not None else None
            axes.plot(point.throughput, point.latency_s, linestyle="", label=label, **look)
        for point, marker, title in references:
            place = point.throughput, point.latency_s
            axes.plot(*place, linestyle="", label=title, color=svg.FAINT, marker=marker, ms=7)
        if ceiling:
            most = sum(ceiling.values()) / len(ceiling)
            axes.axvline(most, color=svg.FAINT, linestyle=":", lw=1.2, label="nothing can exceed")
        axes.set_xlabel("output tokens/s")
        axes.set_ylabel("p99 time to first token, s")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        latencies_s = [point.latency_s for point in points]
        if min(latencies_s) > 0 and max(latencies_s) / min(latencies_s) > _LOG_FROM:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            svg.log_ticks(axes.yaxis, high / low)
        axes.figure.legend(loc="outside upper left", ncols=1, handlelength=1.4, labelspacing=0.25)

    caption = (
        "Means over the seeds; right and down is better. Named: those that no other policy beats in both. "
        "Grey dots: the others. Crosses: vLLM’s order on an engine to which adapters, or only their swaps, "
        "are free. The dotted line is a ceiling of the throughput."
    )
    alt = [
        f"{it.policy}: {whole(it.throughput)} tokens/s, p99 {duration(1000 * it.latency_s)}." for it in points
    ]
    height_in = 2.7 + 0.19 * (len(best) + len(references) + bool(ceiling))
    return svg.draw(f"Throughput against latency, {traffic}", caption, alt, paint, (svg.WIDTH_IN, height_in))


_REFERENCES = ((FREE_ADAPTERS, "x", "reference: free adapters"), (FREE_SWAPS, "+", "reference: free swaps"))


def _look(index: int) -> dict[str, Any]:
    return {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)], "ms": 6.5}


def _point(case: Case | None) -> Point | None:
    if case is None:
        return None
    throughput, latency_ms = case.mean(THROUGHPUT), case.mean(LATENCY)
    if throughput is None or latency_ms is None:
        return None
    return Point(case.policy, throughput, latency_ms / 1000)


def sensitivity_plot(lab: Lab, axis: str, values: Sequence[float]) -> Plot:
    """Return the objective over one numeric setting, a line for each policy, with 95 % intervals of its mean.

    ``values`` are those of the axis; the lab's traffic shapes are in their order.
    """

    def paint(axes: Axes) -> None:
        for index, policy in enumerate(lab.policies):
            _sensitivity_line(axes, lab, policy, index, values)
        for index, (label, x, y) in enumerate(_bound_line(lab, values)):
            axes.plot(x, y, ":" if not index else "--", color=svg.FAINT, label=label)
        if min(values) > 0 and max(values) / min(values) >= 8:
            axes.set_xscale("log")
            svg.log_ticks(axes.xaxis, max(values) / min(values))
        axes.set_xlabel(axis)
        axes.set_ylabel(lab.objective)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        if higher_is_better(lab.objective):
            axes.set_ylim(bottom=0)
        axes.figure.legend(loc="outside upper left", ncols=1, handlelength=2, labelspacing=0.25)

    fewest = min(len(seeds) for seeds in lab.seeds.values())
    bars = "bars are 95 % intervals of the mean (Student’s t)" if fewest > 1 else "one seed: no intervals"
    caption = f"Mean {lab.objective} over the seeds, each policy at its own best engine settings; {bars}."
    alt = [
        f"{policy}: "
        + ", ".join(f"{axis} {value:g}: {_mean_text(lab, traffic, policy)}"
                    for traffic, value in zip(lab.traffics, values, strict=True))
        + "."
        for policy in lab.policies
    ]  # fmt: skip
    height_in = 2.7 + 0.19 * (len(lab.policies) + 1)
    return svg.draw(f"Sensitivity to {axis}", caption, alt, paint, (svg.WIDTH_IN, height_in))


def _sensitivity_line(axes: Axes, lab: Lab, policy: str, index: int, values: Sequence[float]) -> None:
    points = [
        (x, found)
        for traffic, x in zip(lab.traffics, values, strict=True)
        if (found := _mean_interval(lab.case(traffic, policy), lab.objective)) is not None
    ]
    heights = [found.difference for _, found in points]
    reach = [0.0 if found.high is None else found.high - found.difference for _, found in points]
    colour, marker = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
    looks: Any = {"color": colour, "marker": marker, "ms": 5, "capsize": 2.5, "elinewidth": 1}
    axes.errorbar([x for x, _ in points], heights, yerr=reach, label=policy, **looks)


def _mean_interval(case: Case | None, name: str) -> PairedDifference | None:
    """Return a mean with its interval: the difference from nothing."""
    values = [] if case is None else list(case.values(name).values())
    return paired_difference([0.0] * len(values), values) if values else None


def _bound_line(lab: Lab, values: Sequence[float]) -> list[tuple[str, list[float], list[float]]]:
    points = [
        (x, sum(found.values()) / len(found))
        for traffic, x in zip(lab.traffics, values, strict=True)
        if (found := lab.bound(traffic))
    ]
    return [("bound", [x for x, _ in points], [y for _, y in points])] if points else []


def _mean_text(lab: Lab, traffic: str, policy: str) -> str:
    case = lab.case(traffic, policy)
    return "failed" if case is None else write_metric(lab.objective, case.mean(lab.objective))


def write_metric(name: str, value: float | None) -> str:
    """Return a metric with its unit where the name says it."""
    return duration(value) if name.endswith("_ms") else number(value)


def signed_percent(fraction: float) -> str:
    """Return a fraction as a percentage with its sign."""
    sign = "+" if fraction > 0 else "−" if fraction < 0 else "±"
    return f"{sign}{percent(abs(fraction))}"
