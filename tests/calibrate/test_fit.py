"""The fit of measurement folders whose costs are known."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from calibrate import dataset
from calibrate.fit import fit_quantity, held_out, main
from calibrate.forms import FORMS, Quantity
from calibrate.regression import fit
from sim import profile
from sim.config import EngineConfig, ModelConfig
from sim.costs import StepShape
from sim.fields import build
from tests.calibrate.synthetic import (
    HOST,
    MODEL,
    OVERHEAD_BYTES,
    STEPS,
    SWAPS,
    Recorder,
    total,
    write_measurements,
)
from tests.refusal import refused

RUNS = (
    "max_loras32-max_lora_rank16-run0",
    "max_loras8-max_lora_rank16-run0",
    "max_loras8-max_lora_rank64-run0",
)
FILES = ("profile.yaml", "tables/errors.csv", "tables/swaps.csv", "tables/predictions.parquet")
WORDS = ("name=mine", "measurements=measured", "out=profile.yaml", "tables=tables")


def fit_in(folder: Path) -> None:
    """Run `python -m calibrate.fit` on `folder`/measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["calibrate.fit", *WORDS])
        main()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with measurements, a profile and tables."""
    folder = tmp_path_factory.mktemp("fit")
    write_measurements(folder / "measured")
    fit_in(folder)
    return folder


@pytest.fixture(scope="module")
def measurements(fitted: Path) -> dataset.Measurements:
    return dataset.read(fitted / "measured")


@pytest.fixture
def copied(fitted: Path, tmp_path: Path) -> Path:
    """The same measurements, to be spoilt."""
    return Path(shutil.copytree(fitted / "measured", tmp_path / "measured"))


def costs_of(folder: Path, max_loras: int, rank: int) -> profile.FittedCosts:
    settings = yaml.safe_load((folder / "profile.yaml").read_text())
    engine, model = EngineConfig(max_loras=max_loras, max_lora_rank=rank), build(ModelConfig, MODEL, "model")
    costs = profile.load(settings, engine, model, [rank], seed=0).costs
    assert isinstance(costs, profile.FittedCosts)
    return costs


def shape_of(row: Any) -> StepShape:
    return StepShape(**{name: getattr(row, name, 0) for name in StepShape.__slots__})


def test_the_profile_costs_what_the_engine_cost(fitted: Path, measurements: dataset.Measurements) -> None:
    """The true costs, without their noise, of every kind of step that was measured."""
    for (max_loras, rank), steps in measurements.steps.groupby(["max_loras", "max_lora_rank"]):
        costs = costs_of(fitted, int(max_loras), int(rank))
        for row in steps.drop_duplicates(["graph", "num_tokens", "num_adapters", "num_waiting"]).itertuples():
            shape = shape_of(row)
            found, true = costs.step(shape), STEPS[shape.graph]
            assert found.gpu_fs == pytest.approx(1e12 * total(true["gpu_ms"], shape), rel=0.03)
            assert found.launch_ns == pytest.approx(1e6 * total(true["launch_ms"], shape), rel=0.03)
            for name, terms in HOST.items():
                ns = getattr(found, name.replace("_ms", "_ns"))
                assert ns == pytest.approx(1e6 * total(terms, shape), rel=0.05), name


@pytest.mark.parametrize("graph", STEPS)
def test_coefficients_are_recovered(measurements: dataset.Measurements, graph: str) -> None:
    true = STEPS[graph]["gpu_ms"]
    quantity = Quantity("gpu_ms", graph, graph, (tuple(true), (*true, "prefill_reqs")), settled=True)
    found = fit_quantity(quantity, measurements.steps, seed=0)
    known = dict(zip(found.terms, found.coefficients, strict=True))
    for term, value in true.items():
        assert known[term] == pytest.approx(value, rel=0.1), term
    assert (found.ci95[:, 0] <= found.ci95[:, 1]).all()
    assert (found.ci95[:, 1] - found.ci95[:, 0] < 0.3 * found.coefficients + 1e-9)[: len(true)].all()


def test_swaps_are_recovered(fitted: Path) -> None:
    settings = yaml.safe_load((fitted / "profile.yaml").read_text())
    for kind, (constant_ms, rank_ms) in SWAPS.items():
        found = settings["swaps"][kind]
        for rank in (16, 64):
            mean_ms = found["constant_ms"] + found["rank_ms"] * rank
            assert mean_ms == pytest.approx(constant_ms + rank_ms * rank, rel=0.02)
        assert found["spread"] == sorted(found["spread"])
        assert 0.9 < found["spread"][0] < 1 < found["spread"][-1] < 1.1


def test_memory_ranges_and_provenance(fitted: Path, measurements: dataset.Measurements) -> None:
    settings = yaml.safe_load((fitted / "profile.yaml").read_text())
    assert settings["memory"]["non_kv_overhead_bytes"] == OVERHEAD_BYTES
    assert settings["host_scale"] == {"steps": 1, "load": 1, "activate": 1}
    assert settings["reference_ms"] == {
        16: pytest.approx({"steps": 20, "load": 20 + 4 * 16, "activate": 4 + 0.5 * 16}, rel=0.02),
        64: pytest.approx({"steps": 20, "load": 20 + 4 * 64, "activate": 4 + 0.5 * 64}, rel=0.02),
    }
    assert settings["ranges"]["max_loras"] == [8, 32]
    assert settings["ranges"]["max_lora_rank"] == settings["ranges"]["adapter_rank"] == [16, 64]
    assert settings["ranges"]["num_adapters"] == [0, 32]
    assert settings["provenance"]["gpu"] == "NVIDIA H100 80GB HBM3"
    assert settings["provenance"]["files_sha256"] == measurements.sha256
    assert set(measurements.sha256) == {
        f"{run}/{file}" for run in RUNS for file in ("meta.json", "steps.parquet", "swaps.parquet")
    }


def test_the_same_bytes_each_time(fitted: Path, copied: Path) -> None:
    fit_in(copied.parent)
    for file in FILES:
        assert (copied.parent / file).read_bytes() == (fitted / file).read_bytes()


def test_held_out_are_whole_values(fitted: Path, measurements: dataset.Measurements) -> None:
    table = pd.read_parquet(fitted / "tables" / "predictions.parquet")
    gpu = table[(table.quantity == "gpu_ms") & (table.regime == "decode, full graph")]
    runs = {held: set(rows.run) for held, rows in gpu.groupby("held_out")}
    assert runs == {
        "": set(RUNS),
        # Of the other setting, only values that the rest has too.
        "max_loras=8": {RUNS[1]},
        "max_loras=32": {RUNS[0]},
        "max_lora_rank=16": {RUNS[1]},
        "max_lora_rank=64": {RUNS[2]},
    }
    steps = measurements.steps
    for held, rows in gpu[gpu.split == "heldout"].groupby("held_out"):
        shown = (steps.graph == "full") & (steps.loads + steps.activates == 0)
        assert len(rows) == (shown & steps.run.isin(runs[held])).sum()


def test_a_prediction_has_not_seen_what_it_predicts(measurements: dataset.Measurements) -> None:
    quantity, steps = FORMS[0], measurements.steps
    spoilt = steps.assign(gpu_ms=steps.gpu_ms.where(steps.max_loras != 32, 100 * steps.gpu_ms))
    tables = [held_out(quantity, rows[quantity.rows(rows)], quantity.forms[0]) for rows in (steps, spoilt)]
    blind = [table[table.held_out == "max_loras=32"].predicted_ms for table in tables]
    np.testing.assert_array_equal(*blind)


def test_errors_are_stated_for_every_regime(fitted: Path) -> None:
    errors = pd.read_csv(fitted / "tables" / "errors.csv")
    stated = {(row.regime, row.quantity, row.split) for row in errors.itertuples()}
    for split in ("train", "heldout"):
        assert {(quantity.regime, quantity.name, split) for quantity in FORMS} <= stated
        assert {(quantity.regime, "step", split) for quantity in FORMS if quantity.graph} <= stated
    assert errors.median_abs_pct.max() < 3


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.floats(-1, 1), min_size=1, max_size=5),
)
def test_coefficients_are_never_negative(seed: int, slopes: list[float]) -> None:
    """Also where the measured durations fall as a count grows."""
    rng = np.random.default_rng(seed)
    counts = np.column_stack([np.ones(30), rng.integers(0, 100, (30, len(slopes)))])
    durations = np.maximum(0.01, 5 + counts[:, 1:] @ np.array(slopes) + rng.normal(0, 0.1, 30))
    coefficients = fit(counts, durations)
    assert (coefficients >= 0).all()
    assert np.isfinite(coefficients).all()


def table_of(rows: list[dict[str, float]]) -> pd.DataFrame:
    """Steps that differ from one that takes 1 s a phase, in s."""
    usual = {
        **dict.fromkeys(("load_s", "activate_s", "mapping_s"), 0.0),
        "schedule_start_s": 10.0,
        "gpu_begin_s": 10.5,
        "lora_start_s": 11.0,
        "lora_end_s": 12.0,
        "launch_start_s": 13.0,
        "launch_end_s": 14.0,
        "gpu_forward_s": 13.0,
        "gpu_end_s": 15.0,
        "result_end_s": 16.0,
        "update_end_s": 17.0,
    }
    return pd.DataFrame([{"graph": "none", **usual, **row} for row in rows])


def test_the_wait_for_the_gpu_at_a_changed_mapping_is_left_out() -> None:
    found = dataset.durations(
        table_of(
            [
                {},
                {"mapping_s": 0.75},
                {"mapping_s": 0.75, "gpu_begin_s": 11.75},
                {"mapping_s": 0.75, "gpu_begin_s": 13.5},
                {"mapping_s": 0.25, "load_s": 0.25, "activate_s": 0.25},
            ]
        )
    )
    assert found.prepare_ms.iloc[0] == 1000
    assert found.prepare_ms.iloc[1:].isna().all()
    # From where the mapping begins, from where the GPU is done; unknown where that is after the launch.
    np.testing.assert_array_equal(found.remap_ms, [np.nan, 1750, 1250, np.nan, 1250])
    np.testing.assert_array_equal(found.schedule_ms, [2000, 1250, 1250, 1250, 1250])
    np.testing.assert_array_equal(found.update_ms, 1000)


def test_gpu_time_shows_where_launches_do_not_take_longest() -> None:
    rows = [{}, {"gpu_end_s": 14.04}, {"gpu_end_s": 14.04, "graph": "full"}]
    found = dataset.durations(table_of(rows))  # type: ignore[arg-type]
    np.testing.assert_allclose(found.gpu_ms, [2000, np.nan, 1040])
    np.testing.assert_allclose(found.step_ms, [2000, 1040, 1040])
    np.testing.assert_allclose(found.launch_ms, 1000)


def test_loads_that_grow_the_host_cache_are_told_from_recycled_ones() -> None:
    """Entries before the load; a load into a full cache of 3 comes before the eviction that it causes."""
    story = [
        ("load", 0, "load_growing"),
        ("activate", 1, "activate"),
        ("load", 1, "load_growing"),
        ("load", 2, "load_growing"),
        ("activate", 3, "activate"),
        ("load", 3, "load_growing"),
        ("load", 3, "load_recycled"),
        ("load", 3, "load_recycled"),
        ("activate", 3, "activate"),
        # All adapters forgotten; their memory stays.
        ("load", 0, "load_recycled"),
        ("load", 1, "load_recycled"),
        ("activate", 300, "activate"),
        ("load", 4, "load_growing"),
    ]
    swaps = pd.DataFrame(story, columns=["kind", "host_cache_entries", "expected"]).assign(duration_s=0.5)
    found = dataset.kinds(swaps)
    assert found.kind.tolist() == found.expected.tolist()
    assert set(found.duration_ms) == {500}


def test_made_up_steps_wait_for_the_gpu() -> None:
    """What the others rest on: the recorder's mapping really waits."""
    recorder = Recorder(8, 16, 0)
    cell = {name: 1 for name in StepShape.__slots__ if not name.startswith("max")}
    for _ in range(4):
        recorder.step({**cell, "phase": "decode", "cell": "", "graph": "full"}, remapped=True)
    assert recorder.steps[-1]["mapping_s"] > 0.004


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def drop_columns(*columns: str) -> Callable[[Path], None]:
    return lambda file: pd.read_parquet(file).drop(columns=list(columns)).to_parquet(file)


def keep_rows(condition: str) -> Callable[[Path], None]:
    return lambda file: pd.read_parquet(file).query(condition).to_parquet(file)


def put_bytes(content: bytes) -> Callable[[Path], Any]:
    return lambda file: file.write_bytes(content)


def put(key: str, value: Any = None) -> Callable[[Path], None]:
    """Set a key of a meta.json; without a value, delete it."""

    def change(file: Path) -> None:
        content = json.loads(file.read_text())
        *path, last = key.split(".")
        section = content
        for name in path:
            section = section[name]
        if value is None:
            del section[last]
        else:
            section[last] = value
        file.write_text(json.dumps(content))

    return change


FIRST, LAST = RUNS[0], RUNS[2]
# What is done to which file of the runs, and what the line must name.
SPOILT: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "empty folder": ("*/*", Path.unlink, "measured: no measurements (*/meta.json) there; make some with"),
    "truncated steps": (f"{FIRST}/steps.parquet", cut, f"{FIRST}/steps.parquet: not readable as parquet"),
    "truncated swaps": (f"{FIRST}/swaps.parquet", cut, f"{FIRST}/swaps.parquet: not readable as parquet"),
    "no steps": (f"{FIRST}/steps.parquet", Path.unlink, f"{FIRST}/steps.parquet: not readable"),
    "steps of no bytes": (f"{FIRST}/steps.parquet", put_bytes(b""), f"{FIRST}/steps.parquet"),
    "truncated meta": (f"{LAST}/meta.json", cut, f"{LAST}/meta.json: not readable as JSON"),
    "meta is no text": (f"{LAST}/meta.json", put_bytes(b"\xff\x00"), "meta.json: not readable as JSON"),
    "meta is a list": (f"{LAST}/meta.json", put_bytes(b"[]"), "meta.json: expected a JSON object"),
    "meta lacks a setting": (f"{LAST}/meta.json", put("settings.max_loras"), "missing settings.max_loras"),
    "meta lacks memory": (f"{LAST}/meta.json", put("memory"), "meta.json: missing memory.total_bytes"),
    "meta has text for a section": (f"{LAST}/meta.json", put("memory", "all"), "missing memory.total_bytes"),
    "another model": (
        f"{LAST}/meta.json",
        put("model.name", "Qwen"),
        f"run {LAST} is of Qwen, expected meta",
    ),
    "no two engines that differ in one thing": (
        f"{RUNS[1]}/meta.json",
        lambda file: shutil.rmtree(file.parent),
        "two values of max_loras or max_lora_rank",
    ),
    "missing step columns": (
        f"{FIRST}/steps.parquet",
        drop_columns("mapping_s", "gpu_end_s"),
        f"{FIRST}/steps.parquet: missing columns mapping_s, gpu_end_s",
    ),
    "missing swap columns": (f"{FIRST}/swaps.parquet", drop_columns("rank"), "missing columns rank"),
    "no steps of a regime": (
        "*/steps.parquet",
        keep_rows("graph != 'piecewise'"),
        "that show gpu_ms (mixed, piecewise graph)",
    ),
    "no recycled loads": (
        "*/swaps.parquet",
        keep_rows("cell not in ['recycled batch=0', 'fresh batch=0']"),
        "swap of kind load_recycled",
    ),
    "no reference run": (
        "*/steps.parquet",
        keep_rows("phase != 'reference'"),
        "no steps in the reference run",
    ),
}


@pytest.mark.parametrize(("files", "spoil", "named"), SPOILT.values(), ids=SPOILT)
def test_spoilt_measurements(
    *,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    copied: Path,
    files: str,
    spoil: Callable[[Path], Any],
    named: str,
) -> None:
    for file in sorted(copied.glob(files)):
        spoil(file)
    assert named in refused(monkeypatch, capsys, copied.parent, list(WORDS), main=main, prog="calibrate.fit")


def only(folder: Path, run: str) -> None:
    """Leave one engine run."""
    for other in folder.iterdir():
        if other.name != run:
            shutil.rmtree(other)


def test_of_one_engine_cells_are_held_out(copied: Path) -> None:
    only(copied, LAST)
    fit_in(copied.parent)
    held = pd.read_csv(copied.parent / "tables" / "heldout.csv")
    assert set(held.held_out) == {f"cells, part {number} of 5" for number in range(1, 6)}
    assert held.median_abs_pct.max() < 5


def test_without_memory_profiling_the_blocks_are_known(copied: Path) -> None:
    for file in copied.glob("*/meta.json"):
        meta = json.loads(file.read_text())
        del meta["memory"]["available_kv_cache_bytes"]
        file.write_text(json.dumps(meta | {"num_gpu_blocks": 1234}))
    fit_in(copied.parent)
    memory = yaml.safe_load((copied.parent / "profile.yaml").read_text())["memory"]
    assert memory["num_gpu_blocks"] == 1234 and "gpu_memory_bytes" not in memory


def test_swaps_can_be_measured_apart(copied: Path, fitted: Path) -> None:
    apart = shutil.copytree(copied, copied.parent / "apart")
    for file in apart.glob("*/swaps.parquet"):
        swaps = pd.read_parquet(file)
        swaps.duration_s = swaps.duration_s / 4
        swaps.to_parquet(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copied.parent)
        patch.setattr(sys, "argv", ["calibrate.fit", *WORDS, "swaps=apart"])
        main()
    ours, theirs = (
        yaml.safe_load((folder / "profile.yaml").read_text()) for folder in (copied.parent, fitted)
    )
    assert ours["steps"] == theirs["steps"]
    for kind in SWAPS:
        for part in ("constant_ms", "rank_ms"):
            assert ours["swaps"][kind][part] == pytest.approx(theirs["swaps"][kind][part] / 4, rel=1e-3)
    assert ours["reference_ms"][16]["steps"] == theirs["reference_ms"][16]["steps"]
    assert ours["reference_ms"][16]["load"] == pytest.approx(theirs["reference_ms"][16]["load"] / 4, rel=1e-3)


def test_bad_words_of_the_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = refused(monkeypatch, capsys, tmp_path, ["nonsense=3"], main=main, prog="calibrate.fit")
    assert "accepted: " in line
