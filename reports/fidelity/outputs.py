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
                begins = sum(ours[name][0] == theirs[name][0] for name in both)
                shares = [f"{100 * count / len(both):.1f} %" for count in (equal, begins)]
                is_control = not _same_adapters(*(files[0].parent, files[1].parent), both)
                note = ", of other adapters" if is_control else ""
                lines.append([f"{first}, {second}{note}", str(len(both)), *shares])
                if is_control:
                    controls.append(equal == len(both))
    if not lines:
        return []
    return [
        "## Outputs, token for token",
        "",
        "Greedy outputs of 128 tokens for the same prompts. With random weights the two likeliest tokens are "
        "often as good as equal, so that a batch of another shape, rounding otherwise, changes what follows: "
        "what counts is whether policies differ more from plain vLLM than that does from itself, and less "
        "than with other adapters (two files under a thousand names: half of the others are the same).",
        "",
        *markdown_table(["replays", "requests", "equal", "equal in the first token"], lines),
        "",
        *([BLIND, ""] if any(controls) else []),
    ]


def _same_adapters(first: Path, second: Path, requests: Sequence[str]) -> bool:
    theirs, ours = (
        pd.read_parquet(folder / "requests.parquet").set_index("request_id").adapter.reindex(list(requests))
        for folder in (first, second)
    )
    return theirs.equals(ours)
