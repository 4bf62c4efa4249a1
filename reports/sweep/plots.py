"""The plots of a sweep: what it reaches over ``max_loras``, and where its time goes."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from reports import svg
from reports.numbers import number, percent, with_unit
from reports.svg import MARKERS, SERIES, Plot
from reports.sweep.choose import traffics
from reports.sweep.load import Row

SHARES = {
    "compute": svg.COMPUTE,
    "loading": svg.LOADING,
    "activation": svg.ACTIVATION,
    "host": svg.HOST,
    "idle": svg.IDLE,
}
_ON_DARK = ("compute", "loading")


def sweep_plots(rows: Sequence[Row]) -> list[Plot]:
    """Return what users feel over ``max_loras``: output throughput and time to first token."""
    return [_throughput(rows), _ttft(rows)]


def time_plots(rows: Sequence[Row]) -> list[Plot]:
    """Return what costs the time: shares of each run, and adapter swaps over ``max_loras``."""
    return [_time_share(rows), _swaps(rows)]


def _throughput(rows: Sequence[Row]) -> Plot:
    def paint(axes: Axes) -> None:
        _lines(axes, rows, lambda row: row.metric("output_throughput"), "-")
        for index, line in enumerate(_series(rows)):
            failed = [row.max_loras for row in line if not row.ok and row.max_loras]
            axes.plot(failed, [0] * len(failed), "x", color=SERIES[index % len(SERIES)], clip_on=False)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("output tokens/s")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _legend(axes, rows)

    failed = " A cross on the axis is a run that failed." if any(not row.ok for row in rows) else ""
    caption = "Tokens generated per second in the window, unfinished requests included." + failed
    alt = _alt(rows, "output_throughput", lambda value: with_unit(value, "tokens/s"))
    return svg.draw("Output throughput over max_loras", caption, alt, paint)


def _ttft(rows: Sequence[Row]) -> Plot:
    def paint(axes: Axes) -> None:
        _lines(axes, rows, lambda row: _seconds(row.metric("p99_ttft_ms")), "-")
        _lines(axes, rows, lambda row: _seconds(row.metric("median_ttft_ms")), "--")
        axes.set_ylabel("time to first token, s")
        if any(_seconds(row.metric("p99_ttft_ms")) for row in rows if row.ok):
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            svg.log_ticks(axes.yaxis, high / low)
        _legend(axes, rows, ("p99", "median"))

    caption = (
        "Time to first token of the completed requests: p99 (solid) and median (dashed). Logarithmic scale."
    )
    alt = _alt(rows, "p99_ttft_ms", lambda value: with_unit(_seconds(value), "s"))
    return svg.draw("Time to first token over max_loras", caption, alt, paint)


def _swaps(rows: Sequence[Row]) -> Plot:
    def paint(axes: Axes) -> None:
        _lines(axes, rows, lambda row: per_request(row, "adapter_activations"), "-")
        _lines(axes, rows, lambda row: per_request(row, "adapter_loads"), "--")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("per completed request")
        _legend(axes, rows, ("activations (host cache to slot)", "loads (disk to host cache)"))

    caption = "Adapter swaps for each completed request: activations (solid) and loads (dashed)."
    alt = [
        f"{line[0].traffic}: "
        + ", ".join(
            f"max_loras {row.max_loras}: {number(per_request(row, 'adapter_activations'))} activations and "
            f"{number(per_request(row, 'adapter_loads'))} loads"
            for row in line
            if row.ok
        )
        + "."
        for line in _series(rows)
    ]
    return svg.draw("Adapter loads and activations over max_loras", caption, alt, paint)


def _time_share(rows: Sequence[Row]) -> Plot:
    shown = [row for traffic in traffics(rows) for row in rows if row.traffic == traffic and row.ok]

    def paint(axes: Axes) -> None:
        places = _places(shown)
        _stack(axes, shown, places)
        axes.set_yticks(places, [_share_label(row) for row in shown])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, 1)
        axes.set_ylim(max(places, default=0) + 0.6, -0.6)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}"))
        axes.set_xlabel("share of the time, %")
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False)
        axes.figure.legend(
            loc="outside upper center", ncols=5, handlelength=1, columnspacing=1.1, handletextpad=0.4
        )

    caption = (
        "Compute: the GPU works, copies to slots included. Loading (disk to host cache), activation (host "
        "cache to slot), host (scheduling, launching): the GPU waits for that. Idle: there is nothing to do."
    )
    alt = [
        f"{_share_label(row)}: "
        + ", ".join(f"{name} {percent(row.metric(f'time_share.{name}'))}" for name in SHARES)
        + "."
        for row in shown
    ]
    height_in = 1.0 + 0.27 * (len(shown) + 0.6 * len(traffics(shown)))
    return svg.draw("Share of time per run", caption, alt, paint, (svg.WIDTH_IN, height_in))


def _stack(axes: Axes, rows: Sequence[Row], places: Sequence[float]) -> None:
    """Draw the shares of each run side by side in one bar; those with room for it with their number."""
    left = [0.0] * len(rows)
    for name, colour in SHARES.items():
        widths = [row.metric(f"time_share.{name}") or 0.0 for row in rows]
        axes.barh(places, widths, left=left, height=0.8, color=colour, label=name)
        ink = svg.ON_DARK if name in _ON_DARK else svg.ON_LIGHT
        for place, start, width in zip(places, left, widths, strict=True):
            if width >= 0.08:
                text, centre = f"{100 * width:.0f} %", start + width / 2
                axes.text(centre, place, text, ha="center", va="center", color=ink, size=8.5)
        left = [start + width for start, width in zip(left, widths, strict=True)]


def per_request(row: Row, name: str) -> float | None:
    """Return a count of ``summary.json`` divided by the completed requests."""
    count, completed = row.metric(name), row.metric("completed")
    return count / completed if count is not None and completed else None


def _series(rows: Sequence[Row]) -> list[list[Row]]:
    """Return a list of rows for each line of a plot, by ``max_loras``."""
    lines: dict[object, list[Row]] = {}
    for row in rows:
        lines.setdefault((row.traffic, row.others), []).append(row)
    return [sorted(line, key=lambda row: row.max_loras or 0) for line in lines.values()]


def _label(row: Row) -> str:
    return ", ".join([row.traffic, *(f"{key} {value}" for key, value in row.others)])


def _share_label(row: Row) -> str:
    return f"{_label(row)} {row.max_loras}"


def _places(rows: Sequence[Row]) -> list[float]:
    """Return the place of each bar, with a gap between traffic shapes."""
    order = traffics(rows)
    return [index + 0.6 * order.index(row.traffic) for index, row in enumerate(rows)]


def _lines(axes: Axes, rows: Sequence[Row], value: Callable[[Row], float | None], style: str) -> None:
    """Draw a line for each series over ``max_loras``; failed runs and missing values are gaps."""
    for index, line in enumerate(_series(rows)):
        points = [(x, y) for row in line if row.ok and (x := row.max_loras) and (y := value(row)) is not None]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            style,
            color=SERIES[index % len(SERIES)],
            marker=MARKERS[index % len(MARKERS)],
            markerfacecolor=svg.PAPER if style == "--" else None,
        )
    sizes = sorted({row.max_loras for row in rows if row.max_loras})
    axes.set_xscale("log", base=2)
    axes.set_xlim(sizes[0] / 1.2, sizes[-1] * 1.2)
    axes.xaxis.set_major_locator(FixedLocator([float(size) for size in sizes]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("max_loras")


def _legend(axes: Axes, rows: Sequence[Row], styles: Sequence[str] = ()) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=SERIES[index % len(SERIES)],
            marker=MARKERS[index % len(MARKERS)],
            label=_label(line[0]),
        )
        for index, line in enumerate(_series(rows))
    ]
    handles += [
        Line2D([], [], color=svg.FAINT, dashes=(4, 2) if index else (1, 0), label=label)
        for index, label in enumerate(styles)
    ]
    axes.figure.legend(
        handles=handles, loc="outside upper center", ncols=2, handlelength=2.2, columnspacing=1.2
    )


def _alt(rows: Sequence[Row], metric: str, write: Callable[[float | None], str]) -> list[str]:
    """Say in words what a plot of ``metric`` over ``max_loras`` shows."""
    return [
        f"{_label(line[0])}: "
        + ", ".join(
            f"max_loras {row.max_loras_given}: {write(row.metric(metric)) if row.ok else 'failed'}"
            for row in line
        )
        + "."
        for line in _series(rows)
    ]


def _seconds(value_ms: float | None) -> float | None:
    return None if value_ms is None else value_ms / 1000
