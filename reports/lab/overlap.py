"""What a load beside the engine's work costs on the real engine, from a replay with prefetch."""

from pathlib import Path

import numpy as np
import pandas as pd

from reports.numbers import NONE, duration, number
from reports.table import Table
from sim.errors import UserError

STEPS, SWAPS = "steps.parquet", "swaps.parquet"
_HOST = (
    ("schedule_start_s", "schedule_end_s"),
    ("execute_start_s", "lora_start_s"),
    ("launch_start_s", "launch_end_s"),
    ("update_start_s", "update_end_s"),
)
"""The phases of a step on the engine's host thread, swaps left out."""
_KINDS = {"full": "decode steps", "piecewise": "steps with prompts, in a graph", "none": "steps with prompts"}
_FEWEST = 10
"""Steps beside a load that a ratio is worth stating for."""


def overlap_table(folder: Path) -> Table:
    """Return times of steps with and without a load under way, and of loads on either side.

    A load is taken to be under way for the time that its read took, up to the moment when the engine takes
    the adapter over. Raises UserError where the replay in ``folder`` has no prefetch.
    """
    for name in (STEPS, SWAPS):
        if not (folder / name).is_file():
            raise UserError(
                f"overlap={folder}: no {name} in it; expected the folder of a replay with prefetch"
            )
    steps, swaps = pd.read_parquet(folder / STEPS), pd.read_parquet(folder / SWAPS)
    loads = swaps[swaps["kind"] == "prefetch"]
    if loads.empty:
        raise UserError(f"overlap={folder}: its engine has loaded nothing beside its work")
    steps = steps[(steps["phase"] == "replay") & (steps["loads"] == 0) & (steps["activates"] == 0)]
    steps = steps.assign(
        host_ms=1000 * sum(steps[end] - steps[begin] for begin, end in _HOST),
        gpu_ms=1000 * (steps["gpu_end_s"] - steps["gpu_begin_s"]),
        beside=_part_beside(steps, loads),
    )
    rows = [row for kind in _KINDS for row in _step_rows(steps[steps["graph"] == kind], kind)]
    own = swaps.loc[swaps["kind"] == "load", "read_s"].median()
    rows.append(_row("a load", len(loads), 1000 * loads["read_s"].median(), 1000 * own))
    return Table(["median of", "number", "beside a load", "alone", "ratio"], rows)


def _part_beside(steps: pd.DataFrame, loads: pd.DataFrame) -> np.ndarray:
    """Return the part of each step's time on the host in which a load is under way."""
    ends = loads["start_s"].to_numpy()
    begins = ends - loads["read_s"].to_numpy()
    first, last = (steps[name].to_numpy()[:, None] for name in ("schedule_start_s", "launch_end_s"))
    shared = np.clip(np.minimum(last, ends) - np.maximum(first, begins), 0, None)
    return np.asarray(shared.sum(axis=1) / (last - first)[:, 0])


def _step_rows(steps: pd.DataFrame, kind: str) -> list[list[str]]:
    beside, alone = steps[steps["beside"] > 0.5], steps[steps["beside"] == 0]
    if min(len(beside), len(alone)) < _FEWEST:
        return []
    return [
        _row(f"{title}, {_KINDS[kind]}", len(beside), beside[name].median(), alone[name].median())
        for name, title in (("host_ms", "host time"), ("gpu_ms", "GPU time"))
    ]


def _row(title: str, count: int, beside_ms: float, alone_ms: float) -> list[str]:
    ratio = NONE if not alone_ms else number(beside_ms / alone_ms)
    return [title, str(count), duration(beside_ms), duration(alone_ms), ratio]
