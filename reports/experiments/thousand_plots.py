"""The plots of `experiment=thousand_adapters`."""

from collections.abc import Callable

from matplotlib.axes import Axes

from reports import svg
from reports.experiments.grid import AS_SLOTS, SKEWED, UNIFORM, Grid, Point, cache_in_words
from reports.numbers import duration, whole
from reports.svg import MARKERS, SERIES, Plot, log_ticks

_LABELS = {UNIFORM: "evenly spread", SKEWED: "skewed"}
_STYLES = ("-", "--", ":", "-.")


def slots_plots(grid: Grid) -> list[Plot]:
    """Return throughput and time to first token over max_loras."""
    return [
        _over_slots(grid, "Output throughput over max_loras", "tokens/s", lambda p: p.tokens_per_s, whole),
        _over_slots(
            grid,
            "Time to first token over max_loras",
            "p50 TTFT, s",
            lambda p: (p.median_ttft_ms or 0.0) / 1e3,
            lambda value_s: duration(1e3 * value_s),
        ),
    ]


def _over_slots(
    grid: Grid, title: str, label: str, value: Callable[[Point], float], write: Callable[[float], str]
) -> Plot:
    def paint(axes: Axes) -> None:
        for number, traffic in enumerate(_LABELS):
            for cache in grid.caches:
                points = grid.over_slots(traffic, cache)
                axes.plot(
                    [point.max_loras for point in points],
                    [value(point) for point in points],
                    _STYLES[grid.caches.index(cache) % len(_STYLES)],
                    color=SERIES[number],
                    marker=MARKERS[number],
                    label=f"{_LABELS[traffic]}, {_short(cache)}",
                )
        axes.set(xlabel="max_loras", ylabel=label, xscale="log")
        slots = [point.max_loras for point in grid.points]
        log_ticks(axes.xaxis, max(slots) / min(slots))
        axes.set_ylim(bottom=0)
        axes.legend()

    alt = [
        f"{_LABELS[traffic]}, {cache_in_words(cache)}, max_loras {point.max_loras}: {write(value(point))}."
        for traffic in _LABELS
        for cache in grid.caches
        for point in grid.over_slots(traffic, cache)
    ]
    return svg.draw(title, f"{grid.total:,} adapters.", alt, paint)


def _short(cache: str) -> str:
    return "cache = slots" if cache == AS_SLOTS else f"cache {int(cache):,}"


def active_plot(grid: Grid) -> Plot:
    """Return throughput over the active adapters, a line for each number of adapters in all."""
    found = {
        (cache, total): [grid.over_totals(active, cache)[number] for active in grid.actives]
        for cache in grid.caches
        for number, total in enumerate(grid.totals)
    }

    def paint(axes: Axes) -> None:
        for (cache, total), points in found.items():
            number = grid.totals.index(total)
            axes.plot(
                grid.actives,
                [point.tokens_per_s for point in points],
                _STYLES[grid.caches.index(cache) % len(_STYLES)],
                color=SERIES[number % len(SERIES)],
                marker=MARKERS[number % len(MARKERS)],
                label=f"{total:,} in all, {_short(cache)}",
            )
        axes.set(xlabel="adapters that 95 % of the requests ask for", ylabel="tokens/s", xscale="log")
        log_ticks(axes.xaxis, max(grid.actives) / min(grid.actives))
        axes.set_ylim(bottom=0)
        axes.legend()

    alt = [
        f"{total:,} adapters, {cache_in_words(cache)}, {point.active} active: "
        f"{whole(point.tokens_per_s)} tokens/s."
        for (cache, total), points in found.items()
        for point in points
    ]
    caption = f"max_loras {grid.max_loras_shown}."
    return svg.draw("Total against active adapters", caption, alt, paint)
