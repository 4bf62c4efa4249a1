"""A matplotlib figure as inline SVG that follows the page: its font, its width, its light or dark colours."""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Okabe and Ito's colours, told apart by colour-blind readers; style.css has lighter ones for a dark page.
SERIES = ("#0072b2", "#c24f00", "#008060", "#b5558d", "#a87400", "#3a8fc7", "#6b5b95")
# One more than colours: no two of the first 56 are alike.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LOADING, ACTIVATION, HOST, IDLE = "#c24f01", "#e69f00", "#cc79a7", "#c9ccd1"
COMPUTE = "#0072b3"
GOOD, FAIR, POOR = "#008061", "#e69f01", "#c24f02"
INK, FAINT, GRID, PAPER = "#010203", "#5a6270", "#dde0e5", "#fdfdfe"
ON_DARK, ON_LIGHT = "#fefefe", "#0a0b0c"
# Each colour occurs once, so that the page can give each its own variable.
_VARIABLES = {
    **{colour: f"series-{index}" for index, colour in enumerate(SERIES)},
    COMPUTE: "compute",
    LOADING: "loading",
    ACTIVATION: "activation",
    HOST: "host",
    IDLE: "none",
    GOOD: "good",
    FAIR: "fair",
    POOR: "poor",
    INK: "ink",
    FAINT: "faint",
    GRID: "line",
    PAPER: "paper",
    ON_DARK: "on-dark",
    ON_LIGHT: "on-light",
}
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 2,
}
WIDTH_IN, HEIGHT_IN = 4.8, 3.1


@dataclass(frozen=True)
class Plot:
    """A figure of the page."""

    title: str
    caption: str
    svg: Markup
    figure: Figure

    @property
    def name(self) -> str:
        """The title as the name of a file or an element."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def draw(
    title: str,
    caption: str,
    alt: Sequence[str],
    paint: Callable[[Axes], None],
    size_in: tuple[float, float] = (WIDTH_IN, HEIGHT_IN),
) -> Plot:
    """Draw one plot. ``alt`` says in sentences what it shows, to those who do not see it."""
    with _style():
        figure = Figure(figsize=size_in, layout="constrained")
        paint(figure.add_subplot())
    plot = Plot(title, caption, Markup(), figure)
    text = _file(plot, transparent=True)
    return replace(plot, svg=Markup(_inline(text, plot.name, title, " ".join(alt))))


def draw_grid(
    title: str,
    caption: str,
    paints: Sequence[Callable[[Axes], None]],
    columns: int,
    panel_in: tuple[float, float],
) -> Plot:
    """Draw a plot of several panels, for a file of its own."""
    rows = -(-len(paints) // columns)
    with _style():
        mpl.rcParams.update({"font.size": 8, "lines.linewidth": 1.5})
        figure = Figure(figsize=(columns * panel_in[0], rows * panel_in[1]), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for panel, paint in zip(panels, paints, strict=False):
            paint(panel)
        for panel in panels[len(paints) :]:
            panel.set_axis_off()
    return Plot(title, caption, Markup(), figure)


def picture(plot: Plot) -> bytes:
    """Return a plot as an SVG file of its own, on white."""
    return _file(plot, transparent=False).encode()


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's default style and ours, whatever the user's is."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(cast("Any", _STYLE))
        yield


def _file(plot: Plot, transparent: bool) -> str:
    file = io.StringIO()
    with _style():
        # The salt makes the ids in the file the same each time.
        mpl.rcParams["svg.hashsalt"] = plot.name
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        plot.figure.savefig(file, format="svg", transparent=transparent, metadata=metadata)
    return file.getvalue()


def log_ticks(axis: Axis, ratio: float) -> None:
    """Label a logarithmic axis that spans ``ratio`` with plain numbers: 1, 2, 5; 1, 10 where it is long."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 300 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def draw_diagonal(axes: Axes) -> None:
    """Make both axes one logarithmic scale, and draw where they are equal."""
    low, high = min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([low, high], [low, high], color=FAINT, linewidth=1, zorder=0)
    axes.set(xlim=(low, high), ylim=(low, high), box_aspect=1)
    for axis in (axes.xaxis, axes.yaxis):
        log_ticks(axis, high / low)


def draw_scatter(axes: Axes, groups: Iterable[tuple[str, Any, Any]], **style: Any) -> None:
    """Paint groups of (label, measured, predicted), all above 0, on one logarithmic scale. ``style``:
    matplotlib's, of the points.
    """
    for index, (label, measured, predicted) in enumerate(groups):
        marker, colour = MARKERS[index % len(MARKERS)], SERIES[index % len(SERIES)]
        axes.plot(measured, predicted, marker, color=colour, markeredgewidth=0, label=label, **style)
    axes.set(xscale="log", yscale="log", xlabel="measured")
    draw_diagonal(axes)


def _inline(text: str, name: str, title: str, alt: str) -> str:
    """Return matplotlib's SVG file as an element of an HTML page."""
    body = text[text.index(">", text.index("<svg")) + 1 :]
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # Several figures on a page must not share ids.
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = body.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    body = re.sub(r"font: ((?:\w+ )*[\d.]+px) [^;\"]*", r"font: \1 var(--font)", body)
    body = re.sub(r"\d+\.\d{3,}", lambda it: f"{float(it.group()):.2f}", body)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda it: _variable(it.group()), body)
    return (
        f'<svg viewBox="{box.group(1)}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(alt)}</desc>{body}'
    )


def _variable(colour: str) -> str:
    return f"var(--{_VARIABLES[colour]})" if colour in _VARIABLES else colour
