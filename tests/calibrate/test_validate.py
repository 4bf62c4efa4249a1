"""Measured against simulated: the metrics of a replay by hand, and the table."""

import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml

from calibrate import validate
from calibrate.validate import QUANTITIES, compare, main, measured
from sim.errors import UserError
from tests.calibrate.step_log import step
from tests.refusal import refused
from tests.sim.test_config import LLAMA
from tests.sim.test_profile import SETTINGS

WORKLOAD = {
    "mode": "closed",
    "concurrency": 2,
    "duration_s": 4.0,
    "popularity": {"kind": "uniform"},
    "num_adapters": 10,
    "input_length": 20,
    "output_length": 5,
}
SERVED = {"max_loras": 32, "max_cpu_loras": 1000, "max_lora_rank": 16}
CONFIG: dict[str, Any] = {
    "engine": {"max_loras": 8, "async_scheduling": True},
    "profile": SETTINGS | {"reference_ms": {16: {"steps": 20.0, "load": 50.0, "activate": 12.0}}},
    "admission": {"_target_": "policies.admission.FcfsSkip"},
    "eviction": {"_target_": "policies.eviction.Lru"},
    "loader": {"jobs": {"default": 2, "plays": {}}},
    "slo": {"ttft_ms": 300, "tpot_ms": 200},
}
WORDS = ["--config-dir", "my_conf", "profile=mine", "replays=replays"]
# arrival, first token, finish, tokens
REQUESTS = [
    (0.0, 0.10, 0.50, 5),
    (0.0, 0.20, 1.00, 5),
    (0.5, 0.80, 2.80, 5),
    (1.0, 1.50, 1.50, 1),
    (2.0, 2.90, None, 3),
    (3.0, None, None, 0),
]
PHASE_MS = 0.4
"""Each phase of a replayed step, where the profile has 0.1, 0.1, 1 and 0.25."""
SIMULATED = dict(zip(QUANTITIES, (5.225, 250.0, 500.0, 200.0, 3, 1, 0.5), strict=True))


def write_replay(folder: Path, requests: list[Any] = REQUESTS, loads: int = 2) -> Path:
    """Write a folder as calibrate.replay does, with one activation for two loads."""
    folder.mkdir(parents=True)
    names = ["arrival_s", "first_token_s", "finish_s", "num_generated_tokens"]
    pd.DataFrame(requests, columns=names).to_parquet(folder / "requests.parquet")
    swaps = [("replay", "load", 1.0, number) for number in (0, 0, 0, 0)[:loads]]
    swaps += [("replay", "activate", 1.0, 1)] * (loads // 2)
    swaps += [("reference", "load", 0.1, 0)] * 5 + [("reference", "activate", 0.009, 1)]
    columns = ["phase", "kind", "duration_s", "host_cache_entries"]
    pd.DataFrame(swaps, columns=columns).to_parquet(folder / "swaps.parquet")
    reference = [("none", 0.0, 0.03), ("full", 1.0, 2.0)]
    columns = ["graph", "launch_start_s", "launch_end_s"]
    steps = [step(PHASE_MS, phase="reference") | dict(zip(columns, row, strict=True)) for row in reference]
    pd.DataFrame([*steps, step(PHASE_MS)]).to_parquet(folder / "steps.parquet")
    play = {"name": folder.name, "seed": 7, "workload": WORKLOAD}
    meta = {"play": play, "settings": SERVED, "model": LLAMA}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def write_profile(folder: Path) -> None:
    """Write CONFIG's profile as the choice `mine` of a user's own folder."""
    path = folder / "my_conf" / "profile" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(CONFIG["profile"]))


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Puts SIMULATED in the simulator's place; returns the settings that it is asked for."""
    asked: list[dict[str, Any]] = []

    def simulate(settings: dict[str, Any]) -> SimpleNamespace:
        asked.append(settings)
        return SimpleNamespace(summary={**SIMULATED, "something": "else"})

    monkeypatch.setattr(validate, "simulate", simulate)
    return asked


def test_metrics_by_hand(tmp_path: Path) -> None:
    """TTFT of the finished: 100, 200, 300 and 500 ms; TPOT of those with several tokens: 100, 200, 500. Two
    are within 300 and 200 ms.
    """
    found = measured(write_replay(tmp_path / "closed"), CONFIG["slo"])
    assert found == pytest.approx(
        {
            "output_throughput": 19 / 4,
            "median_ttft_ms": 250,
            "p99_ttft_ms": 300 + 200 * 0.97,
            "median_tpot_ms": 200,
            "adapter_loads": 2,
            "adapter_activations": 1,
            "request_goodput": 2 / 4,
        }
    )


def test_the_simulator_plays_what_the_replay_played(tmp_path: Path, simulator: list[dict[str, Any]]) -> None:
    compare(write_replay(tmp_path / "closed"), CONFIG)
    settings = simulator[0]
    assert settings["engine"] == {**SERVED, "async_scheduling": True}
    assert (settings["workload"], settings["seed"], settings["model"]) == (WORKLOAD, 7, LLAMA)


def test_host_terms_are_refreshed_by_the_reference_run(
    tmp_path: Path, simulator: list[dict[str, Any]]
) -> None:
    """30 ms a launch without a graph where the calibration had 20, 100 ms a load for 50, 9 for 12."""
    compare(write_replay(tmp_path / "closed"), CONFIG)
    scale = {"steps": 1.5, "load": 2.0, "activate": 0.75}
    assert simulator[0]["profile"] == CONFIG["profile"] | {"host_scale": scale}


def test_given_the_replays_own_host(tmp_path: Path, simulator: list[dict[str, Any]]) -> None:
    """Two loads and an activation of 1 s each, where the profile has 10 + 2 * 16 ms (its spread's mean is 1),
    for the load that grows the cache, 5 + 16 for the other one, and 4 for the activation.
    """
    compare(write_replay(tmp_path / "closed"), CONFIG)
    scale = simulator[1]["profile"]["host_scale"]
    assert scale == {
        "steps": round(4 * PHASE_MS / (0.1 + 0.1 + 1 + 0.25), 3),
        "load": round(2000 / (42 + 21), 3),
        "activate": 250,
    }


def test_without_a_reference_there_is_nothing_to_refresh(tmp_path: Path) -> None:
    folder = write_replay(tmp_path / "closed")
    with pytest.raises(UserError, match=r"^profile\.reference_ms: no reference run of rank 16; it has \[\]"):
        compare(folder, CONFIG | {"profile": SETTINGS})
    steps = pd.read_parquet(folder / "steps.parquet")
    steps[steps.phase == "replay"].to_parquet(folder / "steps.parquet")
    with pytest.raises(UserError, match=r"closed: no steps in the reference run"):
        compare(folder, CONFIG)


def test_errors_without_a_repetition(tmp_path: Path, simulator: list[dict[str, Any]]) -> None:
    table = compare(write_replay(tmp_path / "closed"), CONFIG).set_index("quantity")
    assert list(table.index) == list(QUANTITIES)
    assert set(table.workload) == {"closed"}
    assert table.error_pct["output_throughput"] == pytest.approx(10)
    assert table.error_pct["adapter_loads"] == pytest.approx(50)
    assert table.measured_again.isna().all()
    assert table.hardware_spread_pct.isna().all()


def test_a_repetition_gives_the_spread(tmp_path: Path, simulator: list[dict[str, Any]]) -> None:
    """Errors are then those from the mean of both."""
    folder = write_replay(tmp_path / "closed")
    write_replay(tmp_path / "closed-again", loads=4)
    table = compare(folder, CONFIG).set_index("quantity")
    assert table.measured_again["adapter_loads"] == 4
    assert table.error_pct["adapter_loads"] == pytest.approx(0)
    assert table.hardware_spread_pct["adapter_loads"] == pytest.approx(100 * 2 / 3)
    assert table.hardware_spread_pct["output_throughput"] == 0


def test_nothing_measured_has_no_relative_error(tmp_path: Path, simulator: list[dict[str, Any]]) -> None:
    table = compare(write_replay(tmp_path / "closed", loads=0), CONFIG).set_index("quantity")
    assert math.isnan(table.error_pct["adapter_loads"])
    single = write_replay(tmp_path / "single", [(0.0, 0.1, 0.1, 1)])
    assert math.isnan(compare(single, CONFIG).set_index("quantity").error_pct["median_tpot_ms"])


def test_a_replay_in_which_nothing_finished_is_refused(tmp_path: Path) -> None:
    folder = write_replay(tmp_path / "closed", REQUESTS[4:])
    with pytest.raises(UserError, match=r"closed: no request of the replay has finished"):
        measured(folder, CONFIG["slo"])


def test_the_table_has_every_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, simulator: list[dict[str, Any]]
) -> None:
    for name in ("open", "closed", "closed-again"):
        write_replay(tmp_path / "replays" / name)
    write_profile(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["calibrate.validate", *WORDS])
    main()
    table = pd.read_csv(tmp_path / "replays" / "check.csv")
    assert table.workload.tolist() == ["closed"] * len(QUANTITIES) + ["open"] * len(QUANTITIES)
    assert table[table.workload == "open"].measured_again.isna().all()
    assert (table[table.workload == "closed"].hardware_spread_pct == 0).all()


@pytest.mark.parametrize(
    ("spoilt", "named"),
    [
        ("", "replays=replays: no replays (*/meta.json) there; make some with python -m calibrate.replay"),
        ("meta.json", "closed/meta.json: not readable as JSON"),
        ("requests.parquet", "closed/requests.parquet: not readable as parquet"),
        ("swaps.parquet", "closed/swaps.parquet: not readable as parquet"),
    ],
)
def test_bad_replays(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    spoilt: str,
    named: str,
) -> None:
    write_profile(tmp_path)
    folder = write_replay(tmp_path / "replays" / "closed")
    if spoilt:
        (folder / spoilt).write_bytes((folder / spoilt).read_bytes()[:20])
    else:
        shutil.rmtree(folder)
    assert named in refused(monkeypatch, capsys, tmp_path, WORDS, main=main, prog="calibrate.validate")


def test_missing_columns_and_keys_are_named(tmp_path: Path) -> None:
    folder = write_replay(tmp_path / "closed")
    pd.DataFrame({"phase": ["replay"]}).to_parquet(folder / "swaps.parquet")
    with pytest.raises(UserError, match=r"swaps\.parquet: missing columns kind, duration_s"):
        measured(folder, CONFIG["slo"])
    (folder / "meta.json").write_text('{"play": {"seed": 1}}')
    with pytest.raises(UserError, match=r"meta\.json: missing play\.workload\.duration_s"):
        measured(folder, CONFIG["slo"])
