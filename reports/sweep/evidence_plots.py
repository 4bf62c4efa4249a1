"""The plots of the calibration and of the hardware check."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports import svg
from reports.numbers import duration, number
from reports.svg import SERIES, Plot
from reports.sweep.evidence import Check, Fit, Swap

MEDIAN_TARGET_PCT = 5.0
P90_TARGET_PCT = 15.0
_FIRST = ("step", "gpu", "launch")
MAX_POINTS = 200
"""Points of a scatter plot for each regime; more would only make the page heavy."""


def calibration_plots(fit: Fit) -> list[Plot]:
    """Return the plots to show first: predicted against measured step time, residuals, costs of a swap."""
    main = _drawn(fit)[:1]
    residuals = [_residuals(fit.predictions)] if main else []
    swaps = [_swaps(fit.swaps)] if fit.swaps else []
    return [*(_scatter(fit.predictions, quantity) for quantity in main), *residuals, *swaps]


def detail_plots(fit: Fit) -> list[Plot]:
    """Return predicted against measured for the parts that a step's time consists of."""
    return [_scatter(fit.predictions, quantity) for quantity in _drawn(fit)[1:]]


def quantities(fit: Fit) -> list[str]:
    """Return the fitted quantities: the whole step first, then the GPU's work, the rest in their order."""
    found = dict.fromkeys([*fit.predictions["quantity"], *(error.quantity for error in fit.errors)])
    return sorted(found, key=_place)


def _drawn(fit: Fit) -> list[str]:
    usable = fit.predictions[fit.predictions["measured_ms"] > 0]
    return [quantity for quantity in quantities(fit) if (usable["quantity"] == quantity).any()]


def _place(quantity: str) -> int:
    return next((place for place, name in enumerate(_FIRST) if quantity.startswith(name)), len(_FIRST))


def _scatter(predictions: pd.DataFrame, quantity: str) -> Plot:
    table, which = _held_out(predictions[predictions["quantity"] == quantity])
    regimes = list(dict.fromkeys(table["regime"]))

    def paint(axes: Axes) -> None:
        points = [(regime, thinned(table[table["regime"] == regime])) for regime in regimes]
        groups = ((regime, it["measured_ms"], it["predicted_ms"].clip(lower=1e-3)) for regime, it in points)
        svg.draw_scatter(axes, groups, markersize=3.5, alpha=0.7)
        axes.set(xlabel="measured, ms", ylabel="predicted, ms")
        axes.figure.legend(
            loc="outside upper center", ncols=2, markerscale=1.4, handletextpad=0.1, columnspacing=1
        )

    caption = (
        f"{len(table):,} {which} points. On the line the prediction is right. At most {MAX_POINTS} points "
        "for each regime are drawn, evenly chosen over the measured times."
    )
    alt = [
        f"{regime}: median absolute error {number(float(_errors_pct(part).abs().median()))} %."
        for (_, regime), part in _grouped(table)
    ]
    return svg.draw(
        f"Predicted against measured: {quantity_label(quantity)}", caption, alt, paint, (svg.WIDTH_IN, 4.3)
    )


def quantity_label(quantity: str) -> str:
    """Return the words for a quantity of the fit."""
    words = {"step": "whole step", "gpu": "GPU work", "launch": "launching"}
    name = quantity.removesuffix("_ms")
    return words.get(name, name)


def _held_out(predictions: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the points to judge a fit by, and what they are: those held out from it, if there are any."""
    usable = predictions[predictions["measured_ms"] > 0]
    heldout = usable[usable["split"] == "heldout"]
    return (heldout, "held-out") if len(heldout) else (usable, "fitted (none are held out)")


def thinned(points: pd.DataFrame) -> pd.DataFrame:
    """Return at most MAX_POINTS rows, evenly chosen over the measured times."""
    if len(points) <= MAX_POINTS:
        return points
    chosen = np.linspace(0, len(points) - 1, MAX_POINTS).round().astype(int)
    return points.sort_values("measured_ms", kind="stable").iloc[chosen]


def _errors_pct(table: pd.DataFrame) -> "pd.Series[float]":
    return 100 * (table["predicted_ms"] / table["measured_ms"] - 1)


def _residuals(predictions: pd.DataFrame) -> Plot:
    table, which = _held_out(predictions)
    groups = [
        (f"{quantity_label(quantity)}: {regime}", _errors_pct(part))
        for (quantity, regime), part in _grouped(table)
    ]
    shares = [[float(errors.quantile(q)) for q in (0.1, 0.25, 0.5, 0.75, 0.9)] for _, errors in groups]

    def paint(axes: Axes) -> None:
        axes.axvspan(-P90_TARGET_PCT, P90_TARGET_PCT, color=svg.GRID, alpha=0.35, linewidth=0)
        axes.axvspan(-MEDIAN_TARGET_PCT, MEDIAN_TARGET_PCT, color=svg.GRID, alpha=0.8, linewidth=0)
        for place, (p10, p25, median, p75, p90) in enumerate(shares):
            axes.plot([p10, p90], [place, place], color=SERIES[0], linewidth=1.5)
            axes.plot([p25, p75], [place, place], color=SERIES[0], linewidth=7, solid_capstyle="butt")
            axes.plot([median], [place], "|", color=svg.PAPER, markersize=9, markeredgewidth=2)
        axes.axvline(0, color=svg.FAINT, linewidth=1, zorder=1)
        axes.set_yticks(range(len(groups)), [name for name, _ in groups])
        axes.set_ylim(len(groups) - 0.4, -0.6)
        reach = max([20.0, *(1.1 * abs(value) for row in shares for value in row)])
        axes.set(xlim=(-min(reach, 100), min(reach, 100)), xlabel="error of the prediction, %")
        axes.grid(visible=False, axis="y")

    caption = (
        f"Errors of the {which} points: the thick bar holds half of them, the thin one 80\u202f%, the notch "
        f"is the median. Shaded: ±{MEDIAN_TARGET_PCT:.0f}\u202f% and ±{P90_TARGET_PCT:.0f}\u202f%."
    )
    alt = [
        f"{name}: median {number(row[2])} %, 80 % between {number(row[0])} and {number(row[4])} %."
        for (name, _), row in zip(groups, shares, strict=True)
    ]
    return svg.draw("Residuals by regime", caption, alt, paint, (svg.WIDTH_IN, 1.0 + 0.34 * len(groups)))


def _grouped(table: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """Return the steps of each quantity and regime."""
    keys = sorted(
        dict.fromkeys(zip(table["quantity"], table["regime"], strict=True)), key=lambda key: _place(key[0])
    )
    return [(key, table[(table["quantity"] == key[0]) & (table["regime"] == key[1])]) for key in keys]


def _swaps(swaps: Sequence[Swap]) -> Plot:
    def paint(axes: Axes) -> None:
        for place, swap in enumerate(swaps):
            colour = svg.ACTIVATION if swap.kind == "activate" else svg.LOADING
            axes.plot([swap.p90_ms, swap.max_ms], [place, place], color=colour, linewidth=1.5)
            axes.plot([swap.max_ms], [place], "|", color=colour, markersize=8, markeredgewidth=1.5)
            axes.plot(
                [swap.p10_ms, swap.p90_ms], [place] * 2, color=colour, linewidth=7, solid_capstyle="butt"
            )
            axes.plot([swap.median_ms], [place], "o", color=svg.PAPER, markeredgecolor=svg.INK)
        axes.set_xscale("log")
        svg.log_ticks(axes.xaxis, max(swap.max_ms for swap in swaps) / min(swap.p10_ms for swap in swaps))
        axes.set_yticks(range(len(swaps)), [swap_label(swap) for swap in swaps])
        axes.set_ylim(len(swaps) - 0.4, -0.6)
        axes.set_xlabel("host time of one swap, ms")
        axes.grid(visible=False, axis="y")

    caption = (
        "The bar holds 80\u202f% of the measured swaps, the dot is the median, the line ends at the longest."
    )
    alt = [
        f"{swap_label(swap)}: median {duration(swap.median_ms)}, 80 % between {duration(swap.p10_ms)} and "
        f"{duration(swap.p90_ms)}, longest {duration(swap.max_ms)}."
        for swap in swaps
    ]
    return svg.draw("Cost of an adapter swap", caption, alt, paint, (svg.WIDTH_IN, 0.9 + 0.36 * len(swaps)))


def swap_label(swap: Swap) -> str:
    """Return the words for a kind of swap: a load while the host cache grows, or in an entry's place."""
    words = {"load_growing": "load, cache growing", "load_recycled": "load, cache full"}
    return f"{words.get(swap.kind, swap.kind)}, rank {swap.rank:g}"


LINEAR_PCT = 10
"""Errors up to here are drawn to scale, larger ones by their logarithm."""


def check_plot(checks: Sequence[Check]) -> Plot:
    """Return the simulation's errors by quantity: a dot a replay, the median, and the farthest by name."""
    groups: dict[str, list[Check]] = {}
    for check in checks:
        if not math.isnan(check.error_pct):
            groups.setdefault(check.quantity, []).append(check)

    def paint(axes: Axes) -> None:
        for place, group in enumerate(groups.values()):
            for colour in dict.fromkeys(map(grade, group)):
                errors = [check.error_pct for check in group if grade(check) == colour]
                axes.plot(errors, [place] * len(errors), "o", color=_COLOURS[colour], alpha=0.6, markersize=6)
            median = float(np.median([check.error_pct for check in group]))
            axes.plot([median] * 2, [place - 0.35, place + 0.35], color=svg.FAINT, linewidth=2)
            _annotate(axes, max(group, key=lambda check: abs(check.error_pct)), place)
        axes.axvline(0, color=svg.FAINT, linewidth=1)
        axes.set_yticks(range(len(groups)), list(groups))
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_xscale("symlog", linthresh=LINEAR_PCT, linscale=1.5)  # Most are near, and a few far away.
        axes.margins(x=0.15)
        ticks = [-100, -10, 0, 10, 100]
        axes.set_xticks(ticks, map(str, ticks))
        axes.set_xlabel("error of the simulation, %")
        axes.grid(visible=False, axis="y")

    caption = (
        f"A dot is a replay, the line their median. Green: within {MEDIAN_TARGET_PCT:.0f}\u202f% or within "
        f"the hardware's own run-to-run spread, where it was measured twice; yellow: within "
        f"{P90_TARGET_PCT:.0f}\u202f%; red: beyond. The farthest one is named; the scale is logarithmic "
        f"beyond {LINEAR_PCT}\u202f%."
    )
    alt = [
        f"{quantity}: {min(errors):+.1f} to {max(errors):+.1f} %, median {np.median(errors):+.1f} %."
        for quantity, group in groups.items()
        if (errors := [check.error_pct for check in group])
    ]
    return svg.draw(
        "Simulated against measured", caption, alt, paint, (svg.WIDTH_IN, 0.9 + 0.5 * len(groups))
    )


def _annotate(axes: Axes, check: Check, place: int) -> None:
    right = check.error_pct < 0
    axes.annotate(
        check.workload,
        (check.error_pct, place),
        xytext=(0, 7),
        textcoords="offset points",
        ha="left" if right else "right",
        va="bottom",
        size=8,
    )


_COLOURS = {"good": svg.GOOD, "fair": svg.FAIR, "poor": svg.POOR, "none": svg.IDLE}


def grade(check: Check) -> str:
    """Return ``good``, ``fair`` or ``poor`` by the targets, ``none`` without an error."""
    error, spread = abs(check.error_pct), abs(check.hardware_spread_pct)
    if math.isnan(error):
        return "none"
    near = MEDIAN_TARGET_PCT if math.isnan(spread) else max(MEDIAN_TARGET_PCT, spread)
    return "good" if error <= near else "fair" if error <= P90_TARGET_PCT else "poor"
