"""A thousand adapters on one GPU: evenly spread against skewed, slots, total against active adapters."""

from collections.abc import Mapping, Sequence
from typing import Any

from reports.experiments.callback import ExperimentCallback, Findings
from reports.experiments.document import Section
from reports.experiments.grid import ACTIVE, SKEWED, UNIFORM, Grid, Point, cache_in_words
from reports.experiments.reported import NOT_MEASURED, Reported
from reports.experiments.thousand_measured import Measured, measured_points, measured_section
from reports.experiments.thousand_plots import active_plot, slots_plots
from reports.numbers import NONE, duration, number, percent, whole
from sim.sweep.runs import Run

COLUMNS = ("reported",)
ROWS: Mapping[str, str] = {
    "uniform_tokens_per_s": "output tokens/s, evenly spread",
    "skewed_tokens_per_s": "output tokens/s, skewed",
    "ratio": "skewed over evenly spread",
    "other_ratios": "the same for other skews: so many adapters with 95 % of the requests",
    "too_low_ttft_ms": "p50 time to first token with the fewest slots, evenly spread",
    "too_high_loss": "output tokens/s lost with the most slots against the best",
}
"""Rows of the first table."""


class ThousandAdaptersCallback(ExperimentCallback):
    """Writes the tables and plots of ``experiment=thousand_adapters``.

    ``reported`` is what somebody's thread says; ``measured``, the replays on real engines, the first of which
    stand beside it: ``title``, ``check`` and ``replays`` as in `measured_points`.
    """

    name = "thousand_adapters"

    def __init__(
        self,
        reported: Mapping[str, Any],
        measured: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.reported = Reported.from_mapping(reported, tuple(ROWS), COLUMNS)
        self.measured = measured

    def findings(self, runs: Sequence[Run]) -> Findings:
        """Return the tables and the plots. Raises UserError where the grid has no uniform or skewed runs."""
        grid = Grid([Point(run) for run in runs])
        ours = {cache: compared(grid, cache) for cache in grid.caches}
        played = {of["title"]: measured_points(of["check"], of["replays"]) for of in self.measured}
        on_gpu = {
            title: figures(points[UNIFORM], points[SKEWED])
            for title, points in played.items()
            if len(points) == len((UNIFORM, SKEWED))
        }
        sections = [self._comparison(ours, next(iter(on_gpu.values()), None), grid)]
        sections += [measured_section(title, points) for title, points in played.items() if points]
        sections += [_slots_section(grid, cache) for cache in grid.caches]
        sections += [active_section(grid, cache) for cache in grid.caches if grid.actives]
        values = {
            "reported": {"source": self.reported.source, "rows": self.reported.rows},
            "simulated": ours,
            "measured": on_gpu,
            "runs": [point.to_mapping() for point in grid.points],
        }
        plots = [*slots_plots(grid), *([active_plot(grid)] if grid.actives else [])]
        return Findings("A thousand adapters", self._intro(grid), sections, values, plots)

    def _intro(self, grid: Grid) -> str:
        outside = "; ".join(grid.outside_range)
        return (
            f"Reported: {self.reported.source}. Simulated: profile {grid.profile}, {grid.total:,} adapters."
            + (f" Outside of what the profile measured: {outside}." if outside else "")
        )

    def _comparison(
        self, ours: Mapping[str, Mapping[str, Any]], on_gpu: Mapping[str, Any] | None, grid: Grid
    ) -> Section:
        caches = [f"simulated: {cache_in_words(cache)}" for cache in grid.caches]
        rows = [
            [
                label,
                self.reported.cell(row, "reported", _ratio if row == "ratio" else whole),
                *(_cell(row, ours[cache]) for cache in grid.caches),
                NOT_MEASURED if on_gpu is None or row not in on_gpu else _cell(row, on_gpu),
            ]
            for row, label in ROWS.items()
        ]
        notes = [
            "In brackets: max_loras. Tokens/s are those with the best one for each traffic, and the ratio is "
            "theirs; in brackets then the range of ratios with the same max_loras for both."
        ]
        head = ["", "reported", *caches, "measured on our GPU"]
        title = f"{grid.total:,} adapters: evenly spread against skewed"
        return Section(title, head, rows, notes + self.reported.notes(ROWS))


def compared(grid: Grid, cache: str) -> dict[str, Any]:
    """Return our figures of ROWS, all with one rule for the host cache."""
    uniform, skewed = (grid.over_slots(traffic, cache) for traffic in (UNIFORM, SKEWED))
    most = max(map(_tokens_per_s, uniform))
    others = {
        active: max(map(_tokens_per_s, hot)) / most
        for active in grid.actives
        if (hot := grid.over_slots(f"{ACTIVE}{active}", cache))
    }
    return figures(uniform, skewed) | {"other_ratios": others}


def figures(uniform: Sequence[Point | Measured], skewed: Sequence[Point | Measured]) -> dict[str, Any]:
    """Return the figures of ROWS that two kinds of traffic have, each by slots."""
    best = {UNIFORM: max(uniform, key=_tokens_per_s), SKEWED: max(skewed, key=_tokens_per_s)}
    with_skew = {point.max_loras: point.tokens_per_s for point in skewed}
    ratios = {
        point.max_loras: with_skew[point.max_loras] / point.tokens_per_s
        for point in uniform
        if point.tokens_per_s and point.max_loras in with_skew
    }
    return {
        "uniform_tokens_per_s": best[UNIFORM].tokens_per_s,
        "uniform_max_loras": best[UNIFORM].max_loras,
        "skewed_tokens_per_s": best[SKEWED].tokens_per_s,
        "skewed_max_loras": best[SKEWED].max_loras,
        "ratio": best[SKEWED].tokens_per_s / best[UNIFORM].tokens_per_s,
        "ratio_by_max_loras": ratios,
        "too_low_ttft_ms": uniform[0].median_ttft_ms,
        "too_low_max_loras": uniform[0].max_loras,
        "too_high_loss": {
            UNIFORM: 1 - uniform[-1].tokens_per_s / best[UNIFORM].tokens_per_s,
            SKEWED: 1 - skewed[-1].tokens_per_s / best[SKEWED].tokens_per_s,
        },
        "too_high_max_loras": skewed[-1].max_loras,
    }


def _tokens_per_s(point: Point | Measured) -> float:
    return point.tokens_per_s


def _ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _cell(row: str, ours: Mapping[str, Any]) -> str:
    if row == "ratio":
        low, high = (pick(ours["ratio_by_max_loras"].values()) for pick in (min, max))
        return f"{ours['ratio']:.2f} ({low:.2f} to {high:.2f})"
    if row == "too_low_ttft_ms":
        return f"{duration(ours[row])} ({ours['too_low_max_loras']})"
    if row == "too_high_loss":
        even, skewed = (percent(ours[row][traffic]) for traffic in (UNIFORM, SKEWED))
        return f"evenly {even}, skewed {skewed} ({ours['too_high_max_loras']})"
    if row == "other_ratios":
        return ", ".join(f"{active}: {_ratio(ratio)}" for active, ratio in ours[row].items()) or NONE
    return f"{whole(ours[row])} ({ours[row.replace('tokens_per_s', 'max_loras')]})"


def _slots_section(grid: Grid, cache: str) -> Section:
    head = ["max_loras", "evenly: tokens/s", "p50 TTFT", "active in a step", "skewed: tokens/s", "p50 TTFT"]
    rows = [
        [
            str(low.max_loras),
            *(whole(low.tokens_per_s), duration(low.median_ttft_ms), number(low.mean_active)),
            *(whole(high.tokens_per_s), duration(high.median_ttft_ms), number(high.mean_active)),
            _ratio(high.tokens_per_s / low.tokens_per_s if low.tokens_per_s else None),
        ]
        for low, high in zip(grid.over_slots(UNIFORM, cache), grid.over_slots(SKEWED, cache), strict=True)
    ]
    return Section(
        f"max_loras from too low to too high, {cache_in_words(cache)}",
        [*head, "active in a step", "ratio"],
        rows,
    )


def active_section(grid: Grid, cache: str) -> Section:
    """Total against active adapters, with the slots that are shown."""
    head = ["asked for by 95 %", *(f"of {total:,}: tokens/s" for total in grid.totals)]
    by_active = {active: grid.over_totals(active, cache) for active in grid.actives}
    rows = [[str(active), *(whole(p.tokens_per_s) for p in points)] for active, points in by_active.items()]
    first, last = by_active[grid.actives[0]], by_active[grid.actives[-1]]
    notes = [
        f"With max_loras {grid.max_loras_shown}. {grid.totals[-1] / grid.totals[0]:g} times as many adapters "
        f"in all: {_change(first[0], first[-1])} with {grid.actives[0]} active; "
        f"{grid.actives[-1] / grid.actives[0]:g} times as many active: {_change(first[-1], last[-1])} of "
        f"{grid.totals[-1]:,}."
    ]
    return Section(f"Total against active adapters, {cache_in_words(cache)}", head, rows, notes)


def _change(before: Point, after: Point) -> str:
    return f"{100 * (after.tokens_per_s / before.tokens_per_s - 1):+.0f} % tokens/s"
