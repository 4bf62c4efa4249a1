"""What the same traffic came to on the real engine, from the table of replays."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from reports.experiments.document import Section
from reports.experiments.grid import SKEWED, UNIFORM
from reports.numbers import NONE, duration, whole
from sim.errors import UserError

COLUMNS = ("workload", "max_loras", "quantity", "measured", "simulated")


class Measured(NamedTuple):
    """One replay on the real engine; ``simulated_tokens_per_s`` is of the same replay."""

    max_loras: int
    tokens_per_s: float
    median_ttft_ms: float
    simulated_tokens_per_s: float


def measured_points(path: str | None, names: Mapping[str, str]) -> dict[str, list[Measured]]:
    """Return the replays of each traffic by slots, from `check.csv` of ``calibrate.validate``.

    ``names``: traffic -> what follows ``<max_loras>-`` in a replay's name. Nothing where there is no such
    file, as in an installed package. Raises UserError for one that is not readable.
    """
    if path is None or not Path(path).exists():
        return {}
    try:
        table = pd.read_csv(path)[list(COLUMNS)]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a table of calibrate.validate ({error})") from error
    found = {}
    for traffic, name in names.items():
        rows = table[table.workload == table.max_loras.astype(str) + f"-{name}"]
        found[traffic] = [_point(rows[rows.max_loras == n], n) for n in sorted(set(rows.max_loras))]
    return {traffic: points for traffic, points in found.items() if points}


def _point(rows: pd.DataFrame, max_loras: int) -> Measured:
    of = rows.set_index("quantity")
    throughput, simulated = of.measured["output_throughput"], of.simulated["output_throughput"]
    return Measured(max_loras, throughput, of.measured["median_ttft_ms"], simulated)


def measured_section(title: str, points: Mapping[str, Sequence[Measured]]) -> Section:
    """Return the replays of one GPU by slots, with what is simulated of the same ones."""
    by_slots = {traffic: {point.max_loras: point for point in of} for traffic, of in points.items()}
    rows = []
    for slots in sorted({slots for of in by_slots.values() for slots in of}):
        row = [str(slots)]
        for traffic in (UNIFORM, SKEWED):
            point = by_slots.get(traffic, {}).get(slots)
            cells = (point.tokens_per_s, point.simulated_tokens_per_s) if point else (None, None)
            row += [*map(whole, cells), duration(point.median_ttft_ms) if point else NONE]
        rows.append(row)
    head = ["max_loras"]
    for traffic in ("evenly", "skewed"):
        head += [f"{traffic}: tokens/s", "simulated", "p50 TTFT"]
    notes = [
        "30 s from empty caches, max_cpu_loras 256, 64 requests at a time, on an H100 "
        "(reports/published/h100). Simulated here: the same 30 s, with the host's speed in the other replays "
        "of that engine."
    ]
    return Section(f"Measured: {title}", head, rows, notes)
