"""`experiment=multi_vs_baseline`: two simulations, compared as two runs on a server are."""

import csv
import json
import sys
from pathlib import Path

import pytest

from calibrate.bench import files
from calibrate.bench.files import COLUMNS
from calibrate.bench.simulated import read_run
from sim.__main__ import main
from sim.results import read_summary

QUICK = [
    "+experiment=multi_vs_baseline",
    "sweep.processes=1",
    "workload.output_length=20",
    "hydra.sweep.dir=out",
]


def lorasim(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lorasim", *QUICK, *words])
    main()
    return folder / "out"


@pytest.fixture
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "comparison_png", lambda *runs: b"")


def test_the_files_are_those_of_a_measurement(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = lorasim(monkeypatch, tmp_path)
    assert {path.name for path in out.iterdir() if path.is_file()} >= {
        "comparison_simulated.json",
        "benchmark_simulated.csv",
        "comparison_simulated_plot.png",
        "sweep.csv",
    }
    found = json.loads((out / "comparison_simulated.json").read_text())
    assert list(found["baseline"]["adapters"]) == ["adapter-0000"]
    assert len(found["multi"]["adapters"]) == 8
    # The same metrics as the simulator's own.
    for name, folder in (("baseline", "0"), ("multi", "1")):
        summary = read_summary(out / folder)
        for key in (
            "mean_e2el_ms",
            "p99_ttft_ms",
            "median_tpot_ms",
            "output_throughput",
        ):
            assert found[name][key] == pytest.approx(summary[key])
        assert found[name]["completed"] == summary["completed"] == 100
    with (out / "benchmark_simulated.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["mode"] for row in rows] == ["baseline"] * 100 + ["multi"] * 100
    shown = capsys.readouterr().out
    assert "COMPARISON RESULTS" in shown
    # The reported improvements are those of the example.
    for reported in ("+6.32%", "+6.67%", "+4.60%", "+4.77%", "+6.79%", "+6.74%"):
        assert reported in shown
    assert "* Sign, not explained" in shown


@pytest.mark.usefixtures("_no_plots")
def test_the_same_seed_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def contents(*words: str) -> list[bytes]:
        out = lorasim(monkeypatch, tmp_path, *words)
        return [path.read_bytes() for path in sorted(out.glob("*simulated*"))]

    words = ["profile=constant", "workload.num_requests=12"]
    first = contents(*words)
    assert contents(*words) == first


@pytest.mark.usefixtures("_no_plots")
def test_the_warm_up_is_left_out_and_the_order_of_jobs_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["profile=constant", "workload.num_adapters=4,1", "warmup_s=0.5"]
    out = lorasim(monkeypatch, tmp_path, *words)
    found = json.loads((out / "comparison_simulated.json").read_text())
    assert (len(found["baseline"]["adapters"]), len(found["multi"]["adapters"])) == (1, 4)
    run = read_run(out / "0")
    assert min(record.arrival_s for record in run.records) >= 0.5
    assert run.duration_s == pytest.approx(read_summary(out / "0")["duration_s"])


@pytest.mark.usefixtures("_no_plots")
def test_requests_that_the_end_cuts_off_are_unfinished(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["profile=constant", "workload.num_requests=null", "workload.duration_s=1.05"]
    out = lorasim(monkeypatch, tmp_path, *words)
    found = json.loads((out / "comparison_simulated.json").read_text())["multi"]
    assert found["unfinished"] > 0
    assert (found["failed"], found["success_rate"]) == (0, 1.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["workload.num_adapters=1"], "the sweep has 1 jobs: expected two"),
        (["workload.num_adapters=2,3"], "expected one whose requests all ask for one adapter"),
        (["engine.max_num_seqs=0"], "engine.max_num_seqs=0"),
        (["hydra.callbacks.comparison.reported.multi.speed=3"], "speed"),
    ],
)
def test_sweeps_that_are_no_comparison(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as exit_:
        lorasim(monkeypatch, tmp_path, "profile=constant", "workload.num_requests=3", *words)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out/comparison*"))
