"""The host's speed, of replays whose times are known."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from calibrate.host_terms import steps_ratio
from tests.calibrate.step_log import step

ONE = {"constant": {"value": 1.0}}
PROFILE: dict[str, Any] = {
    "steps": {graph: {"launch_ms": ONE, "gpu_ms": ONE} for graph in ("full", "piecewise", "none")},
    "host": dict.fromkeys(("schedule_ms", "prepare_ms", "remap_ms", "update_ms"), ONE),
}
"""Each phase of the host takes 1 ms."""


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
