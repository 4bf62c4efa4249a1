"""Plays on the real engine that hold adapters from the start, for the curves of a write-up's experiments."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from calibrate.dataset import read_meta, read_table

META_KEYS = ("play.workload", "play.name", "settings.max_loras", "gpu", "versions.vllm")
REQUEST_COLUMNS = ("arrival_s", "first_token_s", "finish_s", "input_length")


@dataclass(frozen=True)
class Held:
    """One play. `ttft_s` and `latency_s` are of the requests that were answered until its end."""

    regime: str
    total_loras: int
    gpu_loras: int
    arrival_rate: float
    requests: pd.DataFrame
    activations: int
    swap_steps: int
    source: str

    @property
    def answered(self) -> pd.DataFrame:
        """The requests that were."""
        return self.requests[self.requests.finish_s.notna()]

    @property
    def ttft_s(self) -> "pd.Series[float]":
        """From arrival to the first token."""
        return self.answered.first_token_s - self.answered.arrival_s

    @property
    def latency_s(self) -> "pd.Series[float]":
        """From arrival to the last token."""
        return self.answered.finish_s - self.answered.arrival_s


def held_plays(folders: Sequence[str]) -> list[Held]:
    """Return the plays below `folders` that started with adapters in slots, by regime, slots and rate; none
    where there are no such folders, as in an installed package.
    """
    found = []
    for folder in folders:
        for file in sorted(Path(folder).glob("*/meta.json")):
            meta = read_meta(file, META_KEYS)
            if meta["settings"].get("initial_slots"):
                found.append(_held(file.parent, meta))
    return sorted(found, key=lambda held: (held.regime, held.gpu_loras, held.arrival_rate))


def measured_note(plays: Sequence[Held]) -> str:
    """Return what the measured points rest on, and that there are none."""
    if not plays:
        return "On a GPU of ours: no measured plays here."
    seconds = max(play.requests.arrival_s.max() for play in plays)
    fewest = min(len(play.requests) for play in plays)
    return (
        f"Measured: {plays[0].source}, arrivals of {seconds:.0f} s (python -m calibrate.replay). A p99 is of "
        f"{fewest} requests or more: one stall of the host makes it."
    )


def _held(folder: Path, meta: dict[str, Any]) -> Held:
    workload = meta["play"]["workload"]
    swaps = read_table(folder / "swaps.parquet", ("phase", "kind", "step"))
    activated = swaps[(swaps.phase == "replay") & (swaps.kind == "activate")]
    return Held(
        regime="short" if workload["input_length"]["max"] <= 1024 else "long",
        total_loras=workload["num_adapters"],
        gpu_loras=meta["settings"]["max_loras"],
        arrival_rate=workload["request_rate"],
        requests=read_table(folder / "requests.parquet", REQUEST_COLUMNS),
        activations=len(activated),
        swap_steps=int(activated.step.nunique()),
        source=f"{meta['gpu']} with vLLM {meta['versions']['vllm']}",
    )
