"""Each launcher, and the tuner, really started on this machine; the same numbers from all.

Never skipped: a launcher that is not installed is a failure (`make test` installs all of them).
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sim.__main__ import main

SWEEP = [
    *("-m", "profile=constant", "workload.duration_s=2", "workload.num_adapters=50", "engine.max_loras=4"),
    *("workload=zipf", "seed=0,1", "hydra.sweep.dir=out"),
]
RAY = ["num_cpus=2", "include_dashboard=false", "log_to_driver=false"]
LAUNCHERS = {
    "processes": ["sweep.processes=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray", *(f"+hydra.launcher.ray.init.{word}" for word in RAY)],
}
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def lorasim(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "sim", *words]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_gives_the_same_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, launcher: str
) -> None:
    done = lorasim(tmp_path / launcher, *SWEEP, *LAUNCHERS[launcher])
    assert "2/2" in done.stderr
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "argv", ["lorasim", *SWEEP, "hydra/launcher=basic"])
    main()
    out, here = tmp_path / launcher / "out", tmp_path / "here" / "out"
    for name in ("sweep.csv", "0/summary.json", "0/requests.parquet", "1/summary.json"):
        assert (out / name).read_bytes() == (here / name).read_bytes()
    # It was really this launcher: what only it says or leaves behind.
    if launcher == "submitit_local":
        assert list((out / ".submitit").rglob("*_result.pkl"))
    if launcher == "ray":
        assert "Started a local Ray instance" in done.stderr


def test_the_tuner_finds_the_best_of_what_it_tried(tmp_path: Path) -> None:
    words = ["replicas=2", "routing=adapter_affinity", "routing.max_lead=range(1,9)", "hydra/sweeper=tune"]
    words += ["hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", "objective=throughput"]
    words += ["hydra/launcher=basic", "workload.concurrency=20"]
    sweep = [word for word in SWEEP if not word.startswith("seed")]
    lorasim(tmp_path, *sweep, *words)
    with (tmp_path / "out" / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    best = yaml.safe_load((tmp_path / "out" / "optimization_results.yaml").read_text())
    assert len(rows) == 4
    assert all(1 <= int(row["routing.max_lead"]) < 9 for row in rows)
    assert best["best_value"] == max(float(row["output_throughput"]) for row in rows)
    found = [row for row in rows if int(row["routing.max_lead"]) == best["best_params"]["routing.max_lead"]]
    assert float(found[0]["output_throughput"]) == best["best_value"]


def test_a_tuner_that_would_find_the_worst_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lorasim", *SWEEP, "hydra/sweeper=optuna"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert "hydra.sweeper.direction=minimize" in capsys.readouterr().err
