"""The laboratory's page: what it concludes from known numbers, what it draws, what it refuses."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.lab import __main__ as command
from reports.lab.answer import headline, losses, sentences, warnings, winners_table
from reports.lab.data import load_lab, load_sensitivity, share
from reports.lab.overlap import overlap_table
from reports.lab.plots import Point, front
from reports.lab.timeline import stays
from sim import results
from sim.errors import UserError
from sim.simulation import run
from tests.refusal import refused
from tests.reports.test_reports import Page
from tests.sim.test_simulation import OPEN, config

POLICIES = ["fcfs_skip", "drain", "fair", "mine"]
TRAFFICS = ["uniform", "zipf", "bursty"]
SECTIONS = ["winners", "simulated", "gap", "pareto", "sensitivity", "timelines", "results", "limits"]
Goodput = Callable[[str, str, int], float]


def write_runs(folder: Path, rows: list[dict[str, Any]], goodput: Goodput) -> Path:
    """Write a sweep whose rows are columns of `sweep.csv`; a bound reaches 2.5 more than the baseline."""
    sections = {"fcfs_skip": {"_target_": "policies.admission.FcfsSkip"}}
    for number, row in enumerate(rows):
        (folder / str(number)).mkdir(parents=True)
        bound = row.get("bound", "null") != "null"
        value = (
            12.5 + noise(int(row["seed"]))
            if bound
            else goodput(row["workload"], row["admission"], int(row["seed"]))
        )
        summary = {
            "vllm_serve_command": "LORASIM_POLICY=policy.yaml vllm serve org/model",
            "schema_version": results.SCHEMA_VERSION,
            "status": "ok",
            "config": {name: value for name, value in row.items() if name != "status"}
            | {"admission": sections.get(row["admission"], {"_target_": "mine.Admission"})},
            "request_goodput": value,
            "output_throughput": 100 * value,
            "p99_ttft_ms": 10_000 / max(value, 0.1),
            "fairness": {"jain_index": 0.9, "worst_adapter_p99_ttft_ms": 20_000.0, "longest_wait_ms": 9e4},
        }
        (folder / str(number) / "summary.json").write_text(json.dumps(summary))
        if row["admission"] == "mine":
            (folder / str(number) / "policy.yaml").write_text("admission:\n  kind: mine\n")
    with (folder / "sweep.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "status", "message", "path"])
        writer.writeheader()
        writer.writerows(
            {"status": "ok", "message": "", "path": str(number), **row} for number, row in enumerate(rows)
        )
    return folder


def noise(seed: int) -> float:
    """Return what a seed alone does to every policy: what pairing takes out."""
    return float(np.random.default_rng(seed).normal(0, 1))


def goodput(traffic: str, policy: str, seed: int) -> float:
    """Return 10 a second, and more or less by policy: mine wins under two shapes and loses under one."""
    gains = {"mine": {"uniform": 1.5, "zipf": 1.0, "bursty": -2.0}, "drain": {"zipf": 0.2}}
    own = gains.get(policy, {}).get(traffic, 0.0)
    return 10 + own + noise(seed) + 0.01 * (seed - 2) * (policy != "fcfs_skip")


def rows_of(**columns: list[Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{}]
    for name, values in columns.items():
        rows = [{**row, name: value} for row in rows for value in values]
    return rows


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    rows = rows_of(workload=TRAFFICS, admission=POLICIES, seed=list(range(5)), bound=["null", "throughput"])
    return write_runs(tmp_path / "sweep", rows, goodput)


def test_winners_losers_and_the_gap(sweep: Path) -> None:
    lab = load_lab(sweep)
    assert (lab.objective, lab.baseline) == ("request_goodput", "fcfs_skip")
    assert (list(lab.policies), list(lab.traffics)) == (POLICIES, TRAFFICS)
    assert headline(lab) == "mine beats fcfs_skip"
    assert "Under uniform traffic mine serves best" in sentences(lab)[0]
    (loss,) = losses(lab)
    assert loss.startswith("mine loses to fcfs_skip under bursty traffic")
    closed = lab.share_closed("uniform", "mine")
    assert closed is not None
    assert closed.low is not None and closed.high is not None
    assert closed.low <= closed.share <= closed.high
    assert closed.share == pytest.approx(1.5 / 2.5)
    table = winners_table(lab)
    assert [row[1] for row in table.rows] == ["mine", "mine", "none"]
    assert table.classes[0, 2] == "good"


def test_vllms_own_policy_is_the_baseline_wherever_it_stands(tmp_path: Path) -> None:
    rows = rows_of(workload=["zipf"], admission=["mine", "drain", "fcfs_skip"], seed=[0, 1])
    assert load_lab(write_runs(tmp_path / "with", rows, goodput)).baseline == "fcfs_skip"
    assert load_lab(write_runs(tmp_path / "without", rows[:4], goodput)).baseline == "mine"


def test_several_sweeps_are_read_as_one(sweep: Path, tmp_path: Path) -> None:
    """One sweep for the policies, one for another policy, one for the bounds: the same page."""
    together = load_lab(sweep)
    folders = []
    for name, columns in {
        "lab_parts": {"admission": POLICIES[:3], "bound": ["null"]},
        "lab_mine": {"admission": ["mine"], "bound": ["null"]},
        "lab_bounds": {"admission": ["fcfs_skip"], "bound": ["throughput"]},
    }.items():
        rows = rows_of(experiment=[name], workload=TRAFFICS, seed=list(range(5)), **columns)
        folders.append(write_runs(tmp_path / name, rows, goodput))
    first, *more = folders
    apart = load_lab(first, more=more)
    assert sentences(apart) == sentences(together)
    assert winners_table(apart) == winners_table(together)
    assert {case.tuned for case in apart.cases.values()} == {""}


def test_every_policy_stands_at_its_own_best_engine_settings(tmp_path: Path) -> None:
    rows = rows_of(admission=["fcfs_skip", "mine"], seed=[0, 1], **{"engine.max_loras": [8, 16]})
    rows = [{"workload": "zipf", **row} for row in rows]
    best = {"fcfs_skip": 8, "mine": 16}
    sizes = iter([row["engine.max_loras"] for row in rows])
    folder = write_runs(tmp_path, rows, lambda _, policy, seed: 5.0 + (next(sizes) == best[policy]))
    lab = load_lab(folder)
    assert [lab.cases["zipf", policy].tuned for policy in best] == ["max_loras 8", "max_loras 16"]
    assert {lab.cases["zipf", policy].mean("request_goodput") for policy in best} == {6.0}
    assert headline(lab) == "No policy is shown to beat fcfs_skip"
    assert warnings(lab) == []
    rows = [row for row in rows if (row["admission"], row["engine.max_loras"]) != ("mine", 8)]
    (said,) = warnings(load_lab(write_runs(tmp_path / "fewer", rows, goodput)))
    assert said.startswith("1 of 2 policies were tried at max_loras 16 alone, the others at up to 2 settings")


def test_a_difference_that_may_be_chance_is_no_win(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = rows_of(workload=["zipf"], admission=["fcfs_skip", "mine"], seed=list(range(4)))
    lab = load_lab(write_runs(tmp_path, rows, lambda *_: float(rng.normal(10, 1))))
    assert headline(lab) == "No policy is shown to beat fcfs_skip"
    (sentence,) = sentences(lab)
    assert "itself has the best mean" in sentence or "may be chance" in sentence
    assert "gap" not in sentence


def test_who_knows_the_future_does_not_win(tmp_path: Path) -> None:
    lru, belady = ({"_target_": f"policies.eviction.{name}"} for name in ("Lru", "Belady"))
    rows = rows_of(workload=["zipf"], admission=["fcfs_skip", "mine"], seed=[0, 1], eviction=[lru, belady])
    pick = iter([row["eviction"] == belady for row in rows])
    found = write_runs(tmp_path, rows, lambda _, p, seed: 5 + seed + (p == "mine") + 2 * next(pick))
    winner = load_lab(found).winner("zipf")
    assert winner is not None and "Lru" in winner.policy


def test_what_a_load_costs_beside_the_engine_s_work(tmp_path: Path) -> None:
    """Steps of 10 ms of which 1 ms is the host's, 2 ms where a load is under way; the load takes 150 ms."""
    begin = np.arange(40) * 0.01
    host = np.where(begin < 0.145, 0.002, 0.001)
    steps = {"phase": "replay", "graph": "full", "loads": 0, "activates": 0, "schedule_start_s": begin}
    same = [
        "schedule_end_s",
        "execute_start_s",
        "lora_start_s",
        "launch_start_s",
        "update_start_s",
        "update_end_s",
    ]
    steps |= dict.fromkeys(same, begin) | {"launch_end_s": begin + host}
    steps |= {"gpu_begin_s": begin, "gpu_end_s": begin + 0.01}
    pd.DataFrame(steps).to_parquet(tmp_path / "steps.parquet")
    swaps = {"kind": ["prefetch", "load"], "start_s": [0.15, 9.0], "read_s": [0.15, 0.3]}
    pd.DataFrame(swaps).to_parquet(tmp_path / "swaps.parquet")
    host_row, gpu_row, load = overlap_table(tmp_path).rows
    assert (host_row[0], host_row[1], host_row[-1]) == ("host time, decode steps", "15", "2.00")
    assert (gpu_row[-1], load[-1]) == ("1.00", "0.500")
    pd.DataFrame(swaps | {"kind": "load"}).to_parquet(tmp_path / "swaps.parquet")
    with pytest.raises(UserError, match="loaded nothing beside its work"):
        overlap_table(tmp_path)


def test_only_seeds_that_all_have_are_compared(tmp_path: Path) -> None:
    """The seed that `drain` lacks is the one that is good to everybody."""
    rows = rows_of(workload=["zipf"], admission=["fcfs_skip", "mine", "drain"], seed=[0, 1, 2])
    rows = [row for row in rows if (row["admission"], row["seed"]) != ("drain", 2)]
    gains = {"fcfs_skip": 0.0, "mine": 1.0, "drain": 2.0}
    found = write_runs(tmp_path, rows, lambda _, policy, seed: gains[policy] + 10 * seed + 0.01 * seed)
    lab = load_lab(found)
    assert {tuple(case.runs) for case in lab.cases.values()} == {("0", "1")}
    winner = lab.winner("zipf")
    assert winner is not None and winner.policy == "drain"
    assert warnings(lab) == ["zipf: only seeds 0, 1 are compared, for not all ran with 2."]


def test_seeds_without_a_common_one_are_refused(tmp_path: Path) -> None:
    rows = [{"workload": "zipf", "admission": name, "seed": seed} for seed, name in enumerate(POLICIES)]
    with pytest.raises(
        UserError, match="zipf traffic: no seed that all ran with; fcfs_skip has 0 of 0, 1, 2, 3"
    ):
        load_lab(write_runs(tmp_path, rows, goodput))


def test_the_winner_is_shown_to_be_better_and_what_may_be_chance_ties(tmp_path: Path) -> None:
    """`drain` has the best mean by one lucky seed; `fair` is as good as `mine`, who is the best shown."""
    gains = {
        "fcfs_skip": [0.0, 0, 0, 0],
        "mine": [1.0, 1.1, 1, 1.1],
        "fair": [1.1, 1, 1, 0.9],
        "drain": [0.0, 0, 0, 9],
    }
    rows = rows_of(workload=["zipf"], admission=list(gains), seed=list(range(4)))
    lab = load_lab(write_runs(tmp_path, rows, lambda _, policy, seed: 5 + gains[policy][seed]))
    best, winner = lab.best("zipf"), lab.winner("zipf")
    assert best is not None and best.policy == "drain"
    assert winner is not None and winner.policy == "mine"
    assert [case.policy for case in lab.ties("zipf")] == ["drain", "fair"]
    assert sentences(lab)[0].endswith(
        "Ahead on average, but not shown to be better than fcfs_skip: drain. As good by these seeds: fair."
    )


def test_the_gap_is_to_the_ceiling_where_there_is_one(tmp_path: Path) -> None:
    rows = rows_of(
        workload=["zipf"], admission=["fcfs_skip", "mine"], seed=[0, 1], bound=["null", "throughput"]
    )
    folder = write_runs(tmp_path, rows, lambda _, policy, seed: 10 + (policy == "mine") + noise(seed))
    before = load_lab(folder).share_closed("zipf", "mine")
    for file in folder.glob("*/summary.json"):
        summary = json.loads(file.read_text())
        if summary["config"]["bound"] != "null":
            summary["ceiling"] = {"request_goodput": 14 + noise(int(summary["config"]["seed"]))}
            file.write_text(json.dumps(summary))
    after = load_lab(folder).share_closed("zipf", "mine")
    assert before is not None and after is not None
    assert (before.share, after.share) == pytest.approx((1 / 2.5, 1 / 4))


def test_a_latency_is_better_low(sweep: Path) -> None:
    lab = load_lab(sweep, objective="p99_ttft_ms", baseline="drain")
    assert lab.baseline == "drain"
    best = lab.winner("uniform")
    assert best is not None and best.policy == "mine"
    assert not lab.bound("uniform") and lab.reference("uniform") is None


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=8), st.floats(0.1, 50), st.floats(0, 1))
def test_the_share_is_exact_where_every_seed_says_the_same(
    base: list[float], gap: float, part: float
) -> None:
    policy, bound = [value + part * gap for value in base], [value + gap for value in base]
    found = share([base, policy, bound])
    assert found is not None and found.low is not None and found.high is not None
    assert (found.low, found.share, found.high) == pytest.approx((part, part, part), abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_nothing_beats_the_front_and_the_front_beats_the_rest(places: list[tuple[int, int]]) -> None:
    points = [Point(f"p{index}", float(x), float(y)) for index, (x, y) in enumerate(places)]
    best = front(points)
    assert best
    assert not any(one.beats(other) for one in points for other in best)
    for point in points:
        assert point in best or any(other.beats(point) for other in best)


def test_stays_are_between_activation_and_eviction() -> None:
    moves = [
        {"kind": "load", "slot": None, "adapter": "a", "time_s": 0.5},
        {"kind": "activate", "slot": 0, "adapter": "a", "time_s": 1.0},
        {"kind": "evict_slot", "slot": 0, "adapter": "a", "time_s": 2.0},
        {"kind": "activate", "slot": 0, "adapter": "b", "time_s": 2.5},
    ]
    found = [(it.adapter, it.begin_s, it.end_s) for it in stays(moves, 9.0)]
    assert found == [("a", 1.0, 2.0), ("b", 2.5, 9.0)]


def report(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["reports.lab", *words])
    command.main()


def test_page_has_everything_and_loads_nothing(
    monkeypatch: pytest.MonkeyPatch, sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(workload=["zipf"], admission=["fcfs_skip", "mine"], seed=[0, 1])
    rows = [{**row, "workload.num_adapters": size} for row in rows for size in (1000, 10, 100)]
    write_runs(tmp_path / "sizes", rows, lambda _, policy, seed: 10.0 + (policy == "mine") + seed)
    run(config(OPEN, record={"adapters": True}, replicas=2), tmp_path / "recorded")
    of_grid = rows_of(workload=["long"], admission=["fcfs_skip", "mine"], seed=[0, 1])
    write_runs(tmp_path / "grid", of_grid, lambda _, policy, seed: 10.0 + (policy == "mine") + seed)
    words = [
        f"sensitivity=[{tmp_path / 'sizes'}]",
        f"beside=[{tmp_path / 'grid'}]",
        f"timelines=[{tmp_path / 'recorded'}]",
    ]
    words += ["timeline.length_s=2", "timeline.replica=1", f"pictures={tmp_path / 'pictures'}"]
    report(monkeypatch, f"dir={sweep}", *words)
    said = capsys.readouterr().out
    assert "mine beats fcfs_skip, judged by request_goodput." in said
    assert "LORASIM_POLICY=policy.yaml vllm serve org/model" in said and "  kind: mine" in said
    html = (sweep / "lab.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.sections == [*SECTIONS[:4], "beside", *SECTIONS[4:]]
    assert len(page.ids) == len(set(page.ids))
    assert all(source.startswith(("data:", "#")) for source in page.loads)
    shapes = [f"Throughput against latency, {traffic}" for traffic in TRAFFICS]
    plots = ["Policies and traffic shapes", *shapes, "Policies and traffic shapes, another grid"]
    plots += ["Sensitivity to workload.num_adapters"]
    assert page.svg_titles == [*plots, "Slots over time, recorded"]
    assert len(page.rows["results"]) == 1 + len(TRAFFICS) * (len(POLICIES) + 1)
    assert "mine is shown to be better at 10, 100 and 1000." in html and "kind: mine" in html
    assert len(list((tmp_path / "pictures").glob("*.svg"))) == len(page.svg_titles)
    report(monkeypatch, f"dir={sweep}", *words)
    assert (sweep / "lab.html").read_text(encoding="utf-8") == html


def test_page_without_bound_sensitivity_and_timelines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = rows_of(workload=["zipf"], admission=["fcfs_skip", "mine"], seed=[0])
    rows[0]["status"] = "error"
    report(monkeypatch, f"dir={write_runs(tmp_path, rows, goodput)}")
    html = (tmp_path / "lab.html").read_text(encoding="utf-8")
    assert Page(html).sections == SECTIONS
    assert html.count('class="missing"') == 3
    assert "one seed alone" in html


def test_axes_are_sorted_numbers(tmp_path: Path) -> None:
    rows = rows_of(workload=["zipf"], admission=["fcfs_skip"], seed=[0, 1], rate=["10", "9.5", "100"])
    found = load_sensitivity(write_runs(tmp_path / "a", rows, goodput))
    assert (found.axis, found.values) == ("rate", [9.5, 10, 100])
    assert list(found.lab.traffics) == ["9.5", "10", "100"]
    rows = rows_of(workload=["zipf"], admission=["fcfs_skip"], seed=[0], rate=["fast", "slow"])
    with pytest.raises(UserError, match="rate has values that are no numbers"):
        load_sensitivity(write_runs(tmp_path / "b", rows, goodput))
    rows = rows_of(workload=["zipf", "uniform"], admission=["fcfs_skip"], seed=[0], rate=["1", "2"])
    with pytest.raises(UserError, match="found: workload, rate"):
        load_sensitivity(write_runs(tmp_path / "c", rows, goodput))
    slots = {"engine.max_loras": ["8", "16"]}
    rows = rows_of(workload=["zipf"], admission=["fcfs_skip"], seed=[0], rate=["1", "2"], **slots)
    sizes = iter([row["engine.max_loras"] for row in rows])
    found = load_sensitivity(write_runs(tmp_path / "d", rows, lambda *_: float(next(sizes))))
    assert {case.tuned for case in found.lab.cases.values()} == {"max_loras 16"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "dir: not given"),
        (["dir=nonsense"], "nonsense: no summary.json"),
        (["dir=sweep", "baseline=nonsense"], "accepted: fcfs_skip; drain"),
        (["dir=sweep", "metric=nonsense"], "no run of sweep has this metric"),
        (["dir=sweep", "timelines=[sweep/0]"], "adapters.parquet"),
        (["dir=sweep/0"], "one run; expected the folder of a sweep"),
    ],
)
def test_bad_arguments_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sweep: Path,
    words: list[str],
    named: str,
) -> None:
    line = refused(monkeypatch, capsys, sweep.parent, words, main=command.main, prog="reports.lab")
    assert named in line
