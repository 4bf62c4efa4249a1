"""What torch's threads make of vLLM's loads: measured one after another, and in the same plays."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from reports.experiments.document import markdown_table
from reports.numbers import number
from reports.svg import INK, MARKERS, SERIES, Plot, draw_grid
from sim.errors import UserError

THREADS = "torch_threads"
ONE_THREAD = "-one_thread"
QUANTITIES = {"output_throughput": "output throughput", "median_tpot_ms": "TPOT p50"}
QUANTILES = [0.1, 0.5, 0.9]


@dataclass(frozen=True)
class Pair:
    """The same work with torch's own count of threads, and with one."""

    name: str
    loads_ms: tuple["pd.Series[float]", "pd.Series[float]"]
    """Quantiles of the durations of loads."""
    errors_pct: dict[str, tuple[float, float]]
    """Of what is simulated, by quantity."""


def pairs(rows: pd.DataFrame, folders: Mapping[str, Path]) -> list[Pair]:
    """Return the replays that were played both ways."""
    errors = rows.pivot_table(index=["model", "workload"], columns="quantity", values="error_pct", sort=False)
    found = []
    for model, workload in errors.index:
        base = workload.removesuffix(ONE_THREAD)
        if base == workload or (model, base) not in errors.index:
            continue
        first, second = (_loads_ms(folders[model] / name).quantile(QUANTILES) for name in (base, workload))
        own, one = errors.loc[(model, base)], errors.loc[(model, workload)]
        both = {name: (float(own[name]), float(one[name])) for name in QUANTITIES}
        found.append(Pair(f"{model.partition(' ')[0]}, {base}", (first, second), both))
    return found


def _loads_ms(folder: Path) -> "pd.Series[float]":
    swaps = pd.read_parquet(folder / "swaps.parquet")
    return 1e3 * swaps.duration_s[(swaps.phase == "replay") & (swaps.kind == "load")]


def threads_section(root: Path, found: Sequence[Pair]) -> list[str]:
    """Return what loads took with so many threads for torch, in ``torch_threads-<count>`` under `root`, and
    how near simulations came with and without.
    """
    counts = sorted(int(folder.name.rpartition("-")[2]) for folder in root.glob(f"{THREADS}-*"))
    if not counts:
        raise UserError(f"{root}: no {THREADS}-<count> there; make some with calibrate.replay")
    head = ["torch's threads"]
    for title in ("first use of memory", "memory used again"):
        head += [f"{title}: loads", "10 %, ms", "median", "90 %"]
    lines = [
        "### Threads",
        "",
        "Each of the hundreds of tensors of an adapter is copied by all of torch's threads, one a core "
        "unless `OMP_NUM_THREADS` says otherwise, and waits for the slowest of them: where a core of the "
        "host is busy with something else, each of these copies may find it so. With one thread a load "
        "depends on one core. vLLM itself sets one thread where a model has several GPUs "
        "(`vllm/v1/executor/multiproc_executor.py`), not with one. One after another on one engine:",
        "",
        *markdown_table(head, [_line(root, count) for count in counts]),
        "",
    ]
    if not found:
        return lines
    cells = []
    for name, title in QUANTITIES.items():
        ways = [pd.Series([abs(pair.errors_pct[name][way]) for pair in found]) for way in (0, 1)]
        points = [point for way in ways for point in (way.median(), way.max())]
        cells.append([title, *(f"{point:.1f} %" for point in points)])
    head = ["absolute error", "torch's own threads: median", "worst", "one thread: median", "worst"]
    return [
        *lines,
        f"The same work on the same engine with each, {len(found)} times:",
        "",
        *markdown_table(head, cells),
        "",
        "![Loads with torch's own threads, and with one](loads-by-threads.svg)",
        "",
    ]


def _line(root: Path, count: int) -> list[str]:
    swaps = pd.read_parquet(root / f"{THREADS}-{count}" / "swaps.parquet")
    cells = [str(count)]
    for phase in ("reference", "load"):
        taken_ms = 1e3 * swaps.duration_s[(swaps.kind == "load") & (swaps.phase == phase)]
        cells += [str(len(taken_ms)), *(number(value) for value in taken_ms.quantile(QUANTILES))]
    return cells


def threads_plot(found: Sequence[Pair]) -> Plot:
    """Return, for each pair, what loads took, and by how much simulated throughput was off."""
    panels = [_loads(found), _errors(found)]
    caption = "Loads: median, and from 10 to 90 %."
    return draw_grid("Loads by threads", caption, panels, 2, (4.2, 0.8 + 0.3 * len(found)))


def _loads(found: Sequence[Pair]) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        for way, label in enumerate(("torch's own threads", "one thread")):
            for place, pair in enumerate(found):
                low, median, high = pair.loads_ms[way]
                height, colour = place + 0.15 - 0.3 * way, SERIES[way]
                axes.plot([low, high], [height, height], color=colour)
                axes.plot(median, height, MARKERS[way], color=colour, label="" if place else label)
        axes.set(title="a load, ms", xlim=(0, None), yticks=range(len(found)))
        axes.set_yticklabels([pair.name for pair in found])
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.06), ncols=2, fontsize=7)

    return paint


def _errors(found: Sequence[Pair]) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        axes.axvline(0, color=INK, linewidth=0.8)
        for way in (0, 1):
            errors = [pair.errors_pct["output_throughput"][way] for pair in found]
            axes.plot(errors, range(len(found)), MARKERS[way], color=SERIES[way])
        axes.set(title="simulated throughput: error, %", yticks=range(len(found)))
        axes.set_yticklabels([])

    return paint
