"""What bringing adapters in takes, and how it varies from replay to replay."""

from pathlib import Path

import numpy as np
import pandas as pd

from reports.experiments.document import markdown_table
from reports.numbers import number
from sim.errors import UserError


def swaps_section(tables: dict[str, str]) -> list[str]:
    """Return what loads and activations take, tensor by tensor and in one piece."""
    lines = []
    for title, path in tables.items():
        try:
            swaps = pd.read_csv(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; make it with calibrate.fit") from error
        lines += [
            [title, row.kind.replace("_", ", "), str(row["rank"])]
            + [number(row[name]) for name in ("p10_ms", "median_ms", "p90_ms", "max_ms")]
            for _, row in swaps.iterrows()
        ]
    head = ["", "", "rank", "10 %, ms", "median", "90 %", "longest"]
    return [
        "## What bringing an adapter in takes of the engine's thread",
        "",
        "vLLM parses, converts and pins an adapter's tensors one by one, then fills a slot with as many "
        "copies and fills. In one piece (`swaps: one_piece`) the file is read into page-locked memory, and "
        "a slot is filled by one copy and one call (`calibrate/bridge/slot_copies.py`); vLLM's own code is "
        "as it was.",
        "",
        *markdown_table(head, lines),
        "",
    ]


def host_section(rows: pd.DataFrame, folders: dict[str, Path]) -> list[str]:
    """Return how long loads and activations took in each replay."""
    lines = []
    for (model, workload), _ in rows.groupby(["model", "workload"]):
        swaps = pd.read_parquet(folders[str(model)] / str(workload) / "swaps.parquet")
        swaps = swaps[swaps.phase == "replay"]
        cells = [f"{model}, {workload}"]
        for kind in ("load", "activate"):
            taken_ms = 1e3 * swaps.duration_s[swaps.kind == kind]
            points = taken_ms.quantile([0.1, 0.5, 0.9, 1.0]) if len(taken_ms) else [np.nan] * 4
            cells += [number(value) for value in points]
        lines.append(cells)
    head = [
        "",
        "load, ms: 10 %",
        "median",
        "90 %",
        "longest",
        "activation: 10 %",
        "median",
        "90 %",
        "longest",
    ]
    return [
        "## The host's speed",
        "",
        "What loads and activations took in each replay. An activation has two speeds, which follow one "
        "another within seconds, and a load now and then stalls: the errors above are mostly the host's. "
        "Where the engine's thread was kept on one core (64-closed-uniform-one_core), there are the same two "
        "speeds: it is not the guest's scheduler that makes them.",
        "",
        *markdown_table(head, lines),
        "",
    ]
