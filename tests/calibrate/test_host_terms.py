"""The host's speed, of replays whose times are known."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from calibrate.dataset import STEP_COLUMNS
from calibrate.host_terms import steps_ratio

ONE = {"constant": {"value": 1.0}}
PROFILE: dict[str, Any] = {
    "steps": {graph: {"launch_ms": ONE, "gpu_ms": ONE} for graph in ("full", "piecewise", "none")},
    "host": dict.fromkeys(("schedule_ms", "prepare_ms", "remap_ms", "update_ms"), ONE),
}
"""Each phase of the host takes 1 ms."""


def step(
    phase_ms: float, remap_ms: float | None = None, activates: int = 0, phase: str = "replay"
) -> dict[str, Any]:
    """A step whose phases take so long each; one with another mapping writes it for `remap_ms`."""
    mapping_ms = 0.0 if remap_ms is None else 0.5
    begun_ms = 1000.0
    mapped_ms = begun_ms + phase_ms + mapping_ms
    launch_ms = mapped_ms + (phase_ms if remap_ms is None else remap_ms - 0.5)
    times_ms = {
        "schedule_start_s": begun_ms,
        "lora_start_s": begun_ms + phase_ms,
        "lora_end_s": mapped_ms,
        "launch_start_s": launch_ms,
        "launch_end_s": launch_ms + phase_ms,
        "result_end_s": 2000,
        "update_end_s": 2000 + phase_ms,
        "mapping_s": mapping_ms,
    }
    counts = {"num_reqs": 1, "num_tokens": 1, "num_padded_tokens": 1, "activates": activates}
    texts = {"phase": phase, "cell": "c", "graph": "full"}
    seconds = {name: value / 1e3 for name, value in times_ms.items()}
    return dict.fromkeys(STEP_COLUMNS, 0) | seconds | counts | texts


def replay(folder: Path, *steps: dict[str, Any]) -> Path:
    folder.mkdir()
    pd.DataFrame(steps).to_parquet(folder / "steps.parquet")
    (folder / "meta.json").write_text(json.dumps({"settings": {"max_loras": 8, "max_lora_rank": 16}}))
    return folder


def test_the_ratio_is_of_all_phases_of_all_replays(tmp_path: Path) -> None:
    one, other = replay(tmp_path / "one", step(2)), replay(tmp_path / "other", step(1, remap_ms=1))
    assert steps_ratio([one], PROFILE) == pytest.approx(2)
    assert steps_ratio([one, other], PROFILE) == pytest.approx(1.5)


def test_stalls_copies_and_other_phases_of_the_measurement_are_left_out(tmp_path: Path) -> None:
    others = [step(6), step(1, remap_ms=4, activates=1), step(3, phase="reference")]
    assert steps_ratio([replay(tmp_path / "one", step(1), *others)], PROFILE) == pytest.approx(1)
