"""A sweep that is cut, goes on, or changes: which jobs run again, what is on disk, what the seeds share."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.__main__ import main
from sim.simulation import simulate
from sim.sweep import freshness
from sim.sweep.rows import clear_rows, put_row, take_rows
from tests.interruption import simulating
from tests.sim.test_simulation import ENGINES, config

QUICK = ["profile=constant", "workload.duration_s=2", "workload.num_adapters=50", "engine.max_cpu_loras=64"]


def sweep(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> list[dict[str, str]]:
    """Run a sweep into `folder`/out in this process and return its rows."""
    monkeypatch.chdir(folder)
    words = ("-m", *QUICK, "sweep.processes=1", "hydra.sweep.dir=out", *words)
    monkeypatch.setattr(sys, "argv", ["lorasim", *words])
    main()
    with (folder / "out" / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def made_at(folder: Path) -> dict[str, int]:
    return {file.parent.name: file.stat().st_mtime_ns for file in folder.rglob("summary.json")}


def test_only_jobs_that_changed_run_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = sweep(monkeypatch, tmp_path, "seed=0,1")
    times = made_at(tmp_path)
    assert sweep(monkeypatch, tmp_path, "seed=0,1") == first
    assert made_at(tmp_path) == times
    (tmp_path / "out" / "0" / "summary.json").write_text("{")
    rows = sweep(monkeypatch, tmp_path, "seed=0,7")
    assert [row["seed"] for row in rows] == ["0", "7"]
    assert rows[0] == first[0]
    assert all(made_at(tmp_path)[name] > times[name] for name in times)


def test_a_sweep_can_be_forced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = sweep(monkeypatch, tmp_path, "seed=0,1")
    times = made_at(tmp_path)
    assert sweep(monkeypatch, tmp_path, "seed=0,1", "sweep.resume=false") == first
    assert all(made_at(tmp_path)[name] > times[name] for name in times)


def test_what_a_result_depends_on_is_not_newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, trace = tmp_path / "my_policy.py", tmp_path / "trace.jsonl"
    for file in (policy, trace):
        file.write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    values = {"admission": {"_target_": "my_policy.Mine"}, "workload": {"path": str(trace)}}
    result = {"schema_version": 1, "status": "ok", "message": "", "config": values}
    file = tmp_path / "summary.json"
    file.write_text(json.dumps(result))
    assert freshness.up_to_date(tmp_path, values) == result
    assert freshness.up_to_date(tmp_path, {**values, "seed": 1}) is None
    late = time.time() + 100
    for source in (policy, trace):
        os.utime(source, (late, late))
        assert freshness.up_to_date(tmp_path, values) is None
        os.utime(source, (0, 0))
    assert freshness.up_to_date(tmp_path, values) == result
    file.write_text(json.dumps({**result, "status": "error"}))
    assert freshness.up_to_date(tmp_path, values) is None


def test_an_interrupted_sweep_has_the_rows_so_far_and_goes_on(tmp_path: Path) -> None:
    """The last of three jobs would take hours; a signal ends it when the two others are done."""
    out = tmp_path / "out"
    words = ["-m", "profile=constant", "engine.max_loras=4", "hydra.sweep.dir=out", "sweep.processes=2"]
    words += ["workload.mode=closed"]
    with simulating(tmp_path, *words, "workload.duration_s=1,2,1e7", text=True) as run:
        deadline = time.monotonic() + 60
        while len(list(out.rglob("summary.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(run.pid, signal.SIGINT)
        _, errors = run.communicate(timeout=60)
    assert run.returncode in (130, -signal.SIGINT)
    assert "lorasim: 2 of 3 runs are done: out/sweep.csv" in errors
    assert "Traceback" not in errors
    with (out / "sweep.csv").open(newline="") as file:
        assert [row["workload.duration_s"] for row in csv.DictReader(file)] == ["1", "2"]
    assert not (out / ".rows").exists()
    with simulating(tmp_path, *words, "workload.duration_s=1,2,3", text=True) as run:
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 0
    assert "2 of 3 runs were there already" in errors
    assert "3/3" in errors


def test_ctrl_c_while_the_processes_start_is_one_line(tmp_path: Path) -> None:
    """The bar is there before the first job, and the terminal's signal goes to all processes at once."""
    words = ["-m", "profile=constant", "hydra.sweep.dir=out", "sweep.processes=2", "seed=0,1"]
    with simulating(tmp_path, *words, "workload.duration_s=1e6") as run:
        assert run.stderr is not None
        errors = b""
        while b"0/2" not in errors:
            read = run.stderr.read1()  # type: ignore[attr-defined]
            assert read, errors
            errors += read
        time.sleep(0.5)
        os.killpg(run.pid, signal.SIGINT)
        errors += run.communicate(timeout=60)[1]
    assert run.returncode in (130, -signal.SIGINT)
    assert b"lorasim: interrupted\n" in errors
    assert b"Traceback" not in errors


def test_rows_come_in_the_order_of_the_jobs(tmp_path: Path) -> None:
    summary: dict[str, Any] = {"profile": {"outside_range": ["far"]}}
    for number in (2, 0, 10):
        put_row(tmp_path, number, {"seed": number}, summary, number == 2)
    rows = take_rows(tmp_path, {})
    assert list(rows) == [0, 2, 10]
    assert [rows[2].cells, rows[2].warnings, rows[2].resumed] == [{"seed": 2}, ["far"], True]
    put_row(tmp_path, 1, {"seed": 1}, {}, False)
    assert list(take_rows(tmp_path, rows)) == [0, 1, 2, 10]
    clear_rows(tmp_path)
    assert take_rows(tmp_path, {}) == {}


def test_policies_are_imported_from_the_folder_of_their_configuration(tmp_path: Path) -> None:
    """One Python file and one YAML file outside the tree, in the sweep's processes too."""
    folder = tmp_path / "mine"
    (folder / "admission").mkdir(parents=True)
    (folder / "my_policy.py").write_text(
        "from policies.admission import FcfsSkip\n\n\nclass Mine(FcfsSkip):\n    pass\n"
    )
    (folder / "admission" / "mine.yaml").write_text("_target_: my_policy.Mine\n")
    words = ["--config-dir", "mine", "-m", *QUICK, "admission=fcfs_skip,mine", "workload=zipf,uniform"]
    command = [Path(sys.executable).parent / "lorasim", *words, "seed=0,1", "hydra.sweep.dir=out"]
    done = subprocess.run(
        [*command, "sweep.processes=2"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    with (tmp_path / "out" / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["admission"], row["status"]) for row in rows} == {("fcfs_skip", "ok"), ("mine", "ok")}
    assert "Against admission fcfs_skip" in done.stdout
    assert (tmp_path / "out" / "comparison.csv").exists()


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(ENGINES, ENGINES),
    st.sampled_from(["policies.admission.FcfsSkip", "policies.admission.Priority"]),
    st.one_of(
        st.fixed_dictionaries({"mode": st.just("open"), "request_rate": st.floats(5, 200)}),
        st.fixed_dictionaries({"mode": st.just("closed"), "concurrency": st.integers(1, 20)}),
    ),
    st.integers(0, 3),
)
def test_policies_and_engines_meet_the_same_requests(
    engines: tuple[dict[str, Any], dict[str, Any]], policy: str, arrivals: dict[str, Any], seed: int
) -> None:
    """Common random numbers: what arrives depends on the workload and the seed alone."""
    workload = {
        **arrivals,
        "duration_s": 1.0,
        "popularity": {"kind": "zipf", "exponent": 1.0},
        "input_length": {"kind": "uniform", "min": 1, "max": 80},
        "adapter_rank": {"values": [8, 16]},
    }
    other = {"admission": {"_target_": policy}, "replicas": 2}
    first, second = (
        simulate(config(workload, engine, seed=seed, **top)).requests.to_pylist()
        for engine, top in zip(engines, ({}, other), strict=True)
    )
    names = ["request_id", "adapter", "input_length", "output_length"]
    names += ["arrival_s"] if arrivals["mode"] == "open" else []
    if arrivals["mode"] == "open":
        assert len(first) == len(second)
    for one, another in zip(first, second, strict=False):
        assert [one[name] for name in names] == [another[name] for name in names]
