"""Curves over a logarithmic axis as one SVG file, the same bytes each time."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

# Okabe and Ito's colours, told apart by colour-blind readers.
COLOURS = ("#0072b2", "#c24f00", "#008060", "#b5558d", "#a87400", "#5a6270")
MARKERS = ("o", "s", "^", "D", "v", "P")
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dde0e5",
}


@dataclass(frozen=True)
class Curve:
    """Points of one colour. What is reported, and not ours, is dashed."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    reported: bool = False


@dataclass(frozen=True)
class Panel:
    """One plot with its axes. `level` draws a line across, `zero` is where an x of 0 is shown."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    level: float | None = None
    log_y: bool = False
    x_from_high: bool = False
    zero: float | None = None


def svg(panels: Sequence[Panel]) -> bytes:
    """Return the panels side by side."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)  # type: ignore[arg-type]
        mpl.rcParams["svg.hashsalt"] = "lorasim"
        figure = Figure(figsize=(5.6 * len(panels), 4.2), layout="constrained")
        for place, panel in enumerate(panels, start=1):
            _paint(figure.add_subplot(1, len(panels), place), panel)
        file = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=metadata)
    return file.getvalue().encode()


def _paint(axes: Axes, panel: Panel) -> None:
    for number, curve in enumerate(panel.curves):
        x = [panel.zero if value == 0 and panel.zero else value for value in curve.x]
        (line,) = axes.plot(x, curve.y, linestyle="--" if curve.reported else "-", label=curve.label)
        line.set(color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)])
    if panel.level is not None:
        axes.axhline(panel.level, color="#5a6270", linewidth=1)
    axes.set_xscale("log")
    ticks = sorted({value for curve in panel.curves for value in curve.x})
    axes.set_xticks([panel.zero if value == 0 and panel.zero else value for value in ticks])
    names = {panel.zero if value == 0 and panel.zero else value: f"{value:g}" for value in ticks}
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: names.get(value, f"{value:g}")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if panel.log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    if panel.x_from_high:
        axes.invert_xaxis()
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    axes.legend()
