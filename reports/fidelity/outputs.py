"""Whether adapters answer the same under other policies, token for token."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from reports.experiments.document import markdown_table
from sim.errors import UserError

BLIND = (
    "Outputs are equal where the same prompts were asked of other adapters, too: these random adapters "
    "change no output, and equality says nothing about whether a request got its own adapter. The next "
    "replays have adapters that do."
)


def outputs_section(folders: Sequence[Path], pairs: Sequence[Sequence[str]]) -> list[str]:
    """Return the share of requests whose greedy outputs are equal, token for token."""
    lines, controls = [], []
    for pair in pairs:
        if len(pair) != 2:
            raise UserError(f"outputs: {list(pair)}: expected two names of replays")
        first, second = pair
        for folder in folders:
            files = [folder / name / "outputs.parquet" for name in (first, second)]
            if all(file.exists() for file in files):
                ours, theirs = (pd.read_parquet(file).set_index("request_id").token_ids for file in files)
                both = [name for name in ours.index if name in theirs.index]
                equal = sum(bool(np.array_equal(ours[name], theirs[name])) for name in both)
                lines.append([f"{first}, {second}", str(len(both)), f"{100 * equal / len(both):.1f} %"])
                if not _same_adapters(*(files[0].parent, files[1].parent), both):
                    controls.append(equal == len(both))
    if not lines:
        return []
    return [
        "## Outputs, token for token",
        "",
        "Greedy outputs of 128 tokens, same prompts and adapters:",
        "",
        *markdown_table(["replays", "requests", "equal"], lines),
        "",
        *([BLIND, ""] if any(controls) else []),
    ]


def _same_adapters(first: Path, second: Path, requests: Sequence[str]) -> bool:
    theirs, ours = (
        pd.read_parquet(folder / "requests.parquet").set_index("request_id").adapter.reindex(list(requests))
        for folder in (first, second)
    )
    return theirs.equals(ours)
