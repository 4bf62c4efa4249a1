"""Comparisons: the interval against scipy's, what is paired with what, the command."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sim.compare import PROG, main
from sim.errors import UserError
from sim.sweep.comparison import compare_folders, compare_settings, without_repeated_bounds
from sim.sweep.objective import higher_is_better
from sim.sweep.paired import mcnemar_p, paired_difference
from sim.sweep.runs import Run, load_runs
from sim.sweep.settings import flat_settings, label
from tests.refusal import Refusal

FINITE = st.floats(-1e6, 1e6)


@settings(deadline=None)
@given(st.lists(st.tuples(FINITE, FINITE), min_size=2, max_size=30))
def test_the_interval_is_that_of_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    before, after = (list(side) for side in zip(*pairs, strict=True))
    found = paired_difference(before, after)
    assert found.difference == pytest.approx(np.mean(after) - np.mean(before), abs=1e-6)
    assert found.low is not None and found.high is not None
    assert found.low <= found.difference <= found.high
    differences = np.subtract(after, before)
    if np.std(differences) > 1e-6:
        expected = stats.ttest_rel(after, before).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-6)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(400):
        before = rng.normal(0, 5, 8)
        found = paired_difference(before.tolist(), (before + rng.normal(1, 2, 8)).tolist())
        assert found.low is not None and found.high is not None
        hits += found.low <= 1 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_one_pair_has_no_interval() -> None:
    found = paired_difference([4.0], [5.0])
    assert (found.low, found.high, found.relative, found.verdict(True)) == (None, None, 0.25, "unknown")
    with pytest.raises(ValueError, match="expected pairs"):
        paired_difference([], [])


def test_verdicts_know_which_way_is_better() -> None:
    found = paired_difference([1.0, 2.0, 3.0], [2.0, 3.1, 4.0])
    assert found.verdict(higher_is_better("output_throughput")) == "better"
    assert found.verdict(higher_is_better("p99_ttft_ms")) == "worse"
    assert paired_difference([1.0, 2.0], [2.0, 1.0]).verdict(True) == "alike"


def run(seed: int = 0, throughput: float | None = 1.0, **config: Any) -> Run:
    """Return a run; a throughput of None is one that failed."""
    status = "error" if throughput is None else "ok"
    whole = {"admission": {"_target_": "p.Fcfs"}, **config, "seed": seed}
    summary = {"status": status, "config": whole, "output_throughput": throughput}
    return Run(Path(f"run-{seed}"), {}, flat_settings(whole), summary)


def test_folders_are_paired_by_what_they_share_and_the_seed() -> None:
    rates = (1, 2)
    a = [run(seed, 10.0 * rate + seed, rate=rate, size=4) for rate in rates for seed in range(3)]
    b = [run(seed, 11.0 * rate + seed, rate=rate, size=8) for seed in (2, 1, 7) for rate in rates]
    found = compare_folders(a, b, ["output_throughput"])
    assert found.titles == {"A": "size 4", "B": "size 8"}
    assert [(it.traffic, it.paired.num_pairs, it.paired.difference) for it in found.differences] == [
        ("rate 1", 2, pytest.approx(1)),
        ("rate 2", 2, pytest.approx(2)),
    ]
    assert found.left_out == [
        "Left out: 2 of 6 runs of A have no partner with the same traffic and seed.",
        "Left out: 2 of 6 runs of B have no partner with the same traffic and seed.",
    ]


def test_failed_runs_are_left_out_and_named() -> None:
    b = [run(0, 2.0, size=1), run(1, None, size=1)]
    found = compare_folders([run(0), run(1)], b, ["output_throughput", "p99_ttft_ms"])
    assert found.differences[0].paired.num_pairs == 1
    assert found.left_out == [
        "Left out, as a run failed: run-1, run-1.",
        "Left out: p99_ttft_ms, which no pair of runs has.",
    ]


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(UserError, match=r"A: .* differ in size; expected one of them"):
        compare_folders([run(size=4), run(size=5)], [run(size=8)], ["output_throughput"])
    with pytest.raises(UserError, match="no pairs"):
        compare_folders([run(0)], [run(1)], ["output_throughput"])
    with pytest.raises(UserError, match="one setting alone"):
        compare_settings([run(0), run(1)], ["output_throughput"])


def test_settings_of_a_sweep_are_compared_with_the_first() -> None:
    policies = ({"_target_": "p.Fcfs"}, {"_target_": "p.Mine", "quantum_ms": 5})
    runs = [
        run(seed, 10.0 + seed + number, admission=policy, **{"workload.rate": rate})
        for seed in range(3)
        for number, policy in enumerate(policies)
        for rate in (1, 2)
    ]
    found = compare_settings(runs, ["output_throughput"])
    assert [(it.baseline, it.setting, it.traffic) for it in found.differences] == [
        ("admission Fcfs", "admission Mine(quantum_ms=5)", "workload.rate 1"),
        ("admission Fcfs", "admission Mine(quantum_ms=5)", "workload.rate 2"),
    ]
    assert {it.paired.difference for it in found.differences} == {1.0}
    other = compare_settings(runs, ["output_throughput"], "admission Mine(quantum_ms=5)")
    assert {it.paired.difference for it in other.differences} == {-1.0}
    with pytest.raises(UserError, match="accepted: admission Fcfs; admission Mine"):
        compare_settings(runs, ["output_throughput"], "admission nonsense")


def test_bounds_of_other_settings_are_left_out() -> None:
    policies = [{"_target_": "p.Fcfs"}, {"_target_": "p.Mine"}]
    runs = [
        run(0, 1.0, admission=policy, bound=bound) for policy in policies for bound in (None, "throughput")
    ]
    kept = without_repeated_bounds(runs)
    assert kept == [runs[0], runs[1], runs[2]]
    found = compare_settings(kept, ["output_throughput"])
    assert [it.setting for it in found.differences] == [
        "admission Fcfs, bound throughput",
        "admission Mine, bound null",
    ]


def test_settings_that_only_record_are_no_difference() -> None:
    a, b = ([run(record={"steps": steps})] for steps in (False, True))
    assert compare_folders(a, b, ["output_throughput"]).titles == {}


def test_a_setting_is_named_as_a_user_would() -> None:
    settings = flat_settings({"engine": {"max_loras": 8}, "profile": {"name": "h100", "steps": {"a": 1}}})
    assert label(settings, settings) == "max_loras 8, profile h100"


def write(folder: Path, made: Run, path: str = "") -> Path:
    (folder / path).mkdir(parents=True, exist_ok=True)
    (folder / path / "summary.json").write_text(json.dumps({"schema_version": 1, **made.summary}))
    return folder


def test_command_prints_and_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a=1", run(0, 4.0, size=1))
    sweep = tmp_path / "b"
    rows = []
    for seed in range(2):
        write(sweep, run(seed, 5.0, size=2), str(seed))
        rows.append({"size": 2, "seed": seed, "status": "ok", "path": str(seed)})
    with (sweep / "sweep.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    monkeypatch.chdir(tmp_path)
    words = ["a=1", "b", "metrics=[output_throughput]", "csv=out.csv", "json=out.json"]
    monkeypatch.setattr(sys, "argv", [PROG, *words])
    main()
    shown = capsys.readouterr().out
    assert "A: size 1" in shown and "B: size 2" in shown and "+25.0 %" in shown
    assert "1 of 2 runs of B have no partner" in shown
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert (row["difference"], row["pairs"], row["verdict"]) == (1.0, 1, "unknown")
    with (tmp_path / "out.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["baseline_mean"] == "4.0"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "no result folder"),
        (
            ["nonsense"],
            "nonsense: no summary.json and no sweep.csv in it; expected a result",
        ),
        (["a", "b", "c"], "'c': a third folder; expected at most two: lorasim-compare A [B]; given: a b c"),
        (["a", "a", "metrics=[nonsense]"], "nonsense, which no pair"),
        (["a", "metric=[x]"], "metric"),
        (["a"], "one setting alone"),
    ],
)
def test_bad_arguments_are_one_line(refusal: Refusal, tmp_path: Path, words: list[str], named: str) -> None:
    write(tmp_path / "a", run())
    assert named in refusal(words, main=main, prog=PROG)


def test_a_sweep_without_its_columns_is_named(tmp_path: Path) -> None:
    (tmp_path / "sweep.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"sweep\.csv: expected a row for each run"):
        load_runs(tmp_path)


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_exact_test_of_pairs_is_the_binomial_one(gained: int, lost: int) -> None:
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar_p(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_fewer_pairs_than_none_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        mcnemar_p(-1, 2)
