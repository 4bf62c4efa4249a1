"""Planning: the search against trying everything, what counts for a target, the command and its answers."""

import csv
import json
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.bridge.settings import PolicySettings
from sim.__main__ import main as lorasim
from sim.errors import UserError
from sim.plan.__main__ import PROG, main
from sim.plan.planner import Search
from sim.plan.targets import Target
from sim.prices import Prices
from sim.simulation import simulate
from tests.refusal import Refusal
from tests.sim.test_simulation import OPEN, config

NEVER = 1000


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(1, 20), st.just(NEVER)), min_size=1, max_size=12), st.integers(1, 16))
def test_the_search_finds_what_trying_everything_finds(needs: list[int], most: int) -> None:
    """Each setting is the number of replicas that it needs; one that needs NEVER runs out of memory."""
    tried: list[tuple[int, int]] = []

    def try_all(settings: Sequence[int], replicas: int) -> list[tuple[int, int]]:
        tried.extend((need, replicas) for need in settings)
        return [(need, replicas) for need in settings]

    search = Search(try_all, lambda trial: trial[0] <= trial[1], lambda trial: trial[0] == NEVER)
    found = search.fewest(needs, most)
    fewest = min(needs)
    if fewest > most:
        assert found is None
    else:
        assert found is not None
        assert found[0] == fewest
        assert found[1] == [(fewest, fewest)] * needs.count(fewest)
    assert search.trials == tried
    assert tried.count((NEVER, 1)) == sum(need == NEVER for need in needs)
    assert not any(need == NEVER and replicas > 1 for need, replicas in tried)
    assert all(replicas <= most for _, replicas in tried)


def table(*rows: tuple[float, str, float | None]) -> pa.Table:
    """Return requests of (arrival in s, status, TTFT in ms)."""
    names = ("arrival_s", "status", "ttft_ms")
    return pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)})


def test_requests_that_are_never_served_count() -> None:
    target = Target("ttft_p100_ms", 1000)
    served = (0.0, "completed", 10.0)
    assert target.reached_ms(table(served), 0, 20) == 10
    # It came half a second before the end: nobody knows yet.
    assert target.reached_ms(table(served, (19.5, "waiting", None)), 0, 20) == 10
    assert target.reached_ms(table(served, (5.0, "waiting", None)), 0, 20) == 15_000
    assert target.reached_ms(table(served, (5.0, "rejected", None)), 0, 20) == float("inf")
    assert target.reached_ms(table((5.0, "waiting", None)), 6, 20) == float("inf")


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=300), st.sampled_from([50, 90, 99]))
def test_a_percentile_that_is_met_is_met_by_so_many(values: list[float], percent: int) -> None:
    target = Target(f"ttft_p{percent}_ms", 1000)
    reached = target.reached_ms(table(*((0.0, "completed", value) for value in values)), 0, 1)
    assert reached in values
    assert np.mean(np.array(values) <= reached) >= percent / 100 - 1e-12
    assert np.mean(np.array(values) < reached) < percent / 100
    assert (target.margin(reached) >= 0) == (reached <= 1000)


def test_statistics_are_near_those_of_the_summary() -> None:
    result = simulate(config(OPEN | {"num_requests": 30, "duration_s": None}))
    for name, metric in (("ttft_mean_ms", "mean_ttft_ms"), ("tpot_mean_ms", "mean_tpot_ms")):
        reached = Target(name, 1e9).reached_ms(result.requests, 0, result.summary["duration_s"])
        assert reached == pytest.approx(result.summary[metric])


@pytest.mark.parametrize(
    "slo", [{"ttft_ms": 1}, {"ttft_p0_ms": 1}, {"itl_p99_ms": 1}, {"ttft_p99_ms": -1}, {"ttft_p99_ms": None}]
)
def test_bad_targets_are_refused(slo: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="slo"):
        Target.all_from_mapping(slo)


def test_prices_are_by_name() -> None:
    prices = Prices({"H200": 4, "H100": 3.0}, "mine", "today")
    assert prices.of("NVIDIA H100 80GB HBM3") == 3
    assert prices.of("NVIDIA L4") is None
    assert prices.of(None) is None
    with pytest.raises(UserError, match=r"prices\.usd_per_gpu_hour\.H100=-3"):
        Prices({"H100": -3}, "", "")


QUICK = [
    *("profile=constant", "workload.duration_s=4", "workload.num_adapters=50", "workload.output_length=20"),
    *("search.max_loras=[2,4]", "search.max_cpu_loras=[3,64]", "search.seeds=[0]", "search.processes=1"),
    *("workload/arrivals=poisson", "engine.max_num_seqs=4", "engine.max_num_batched_tokens=512"),
]


def plan(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> tuple[dict[str, Any], list[Any]]:
    """Run the command and return `plan.json` and the rows of `plan.csv`."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [PROG, *QUICK, "hydra.run.dir=out", *words])
    main()
    return answer(folder)


def answer(folder: Path) -> tuple[dict[str, Any], list[Any]]:
    with (folder / "out" / "plan.csv").open(newline="") as file:
        return json.loads((folder / "out" / "plan.json").read_text()), list(csv.DictReader(file))


def test_command_prints_the_cheapest_and_writes_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["slo.ttft_p99_ms=600", "+slo.tpot_p95_ms=50", "workload.request_rate=40"]
    found, rows = plan(monkeypatch, tmp_path, *words, "search.policies=[{},{admission:priority}]")
    chosen = found["chosen"]
    assert found["met"] and chosen["replicas"] > 1
    assert {target["name"] for target in chosen["targets"]} == {"ttft_p99_ms", "tpot_p95_ms"}
    assert all(target["reached_ms"] <= target["limit_ms"] for target in chosen["targets"])
    sizes = {(row["max_loras"], row["max_cpu_loras"]) for row in rows}
    assert sizes == {("2", "3"), ("2", "64"), ("4", "64")}
    assert {row["admission"] for row in rows} == {"vllm", "priority"}
    fewer = [row for row in rows if int(row["replicas"]) < chosen["replicas"]]
    assert fewer and {row["meets"] for row in fewer} == {"False"}
    best = max(
        (row for row in rows if row["meets"] == "True" and int(row["replicas"]) == chosen["replicas"]),
        key=lambda row: float(row["margin"]),
    )
    assert best["vllm_serve_command"] == chosen["vllm_serve_command"]
    shown = capsys.readouterr().out
    assert f"Cheapest that meets the targets: {chosen['replicas']} replicas" in shown
    assert chosen["vllm_serve_command"] in shown
    assert "No price for the GPU" in shown


def test_nothing_that_meets_is_a_status_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        plan(monkeypatch, tmp_path, "slo.ttft_p99_ms=1", "workload.request_rate=20", "search.max_replicas=3")
    assert exit_.value.code == 1
    found, rows = answer(tmp_path)
    assert not found["met"]
    assert {row["replicas"] for row in rows} == {"1", "2", "3"}
    assert max(float(row["margin"]) for row in rows) == found["chosen"]["targets"][0]["margin"] < 0
    shown = capsys.readouterr().out
    assert "Nothing meets the targets; nearest" in shown and "times the limit" in shown


def test_what_does_not_fit_is_tried_once_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["slo.ttft_p99_ms=1", "workload.request_rate=2", "engine.num_gpu_blocks=10"]
    with pytest.raises(SystemExit) as exit_:
        plan(monkeypatch, tmp_path, *words)
    assert exit_.value.code == 1
    found, rows = answer(tmp_path)
    assert found["chosen"] is None and found["num_out_of_memory"] == len(rows) == 6
    assert "GiB short" in capsys.readouterr().out


def test_bill_and_foreign_policies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "slo.e2el_p50_ms=1e6",
        "profile=h100_llama_3_1_8b",
        "admission=priority",
        "workload.request_rate=2",
    ]
    words += ["search.max_loras=[8]", "search.max_cpu_loras=[null]", "prices.usd_per_gpu_hour.H100=1.5"]
    found, _ = plan(monkeypatch, tmp_path, *words)
    chosen = found["chosen"]
    assert (chosen["usd_per_hour"], chosen["plain_vllm"]) == (1.5, False)
    shown = capsys.readouterr().out
    assert "$1.50 an hour: 1 x NVIDIA H100" in shown
    assert "not vLLM's own: the command takes them from policy.yaml in the folder below" in shown
    assert chosen["vllm_serve_command"].startswith("LORASIM_POLICY=policy.yaml vllm serve ")
    assert chosen["vllm_serve_command"] in shown


def test_a_policy_that_raises_is_a_setting_that_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine" / "admission").mkdir(parents=True)
    (tmp_path / "mine" / "admission" / "raises.yaml").write_text("_target_: test_policy_runs.Raises\n")
    words = ["slo.ttft_p99_ms=1e9", "workload.request_rate=5", "search.max_loras=[4]"]
    words += ["search.max_cpu_loras=[64]", "search.policies=[{admission:raises},{}]"]
    found, rows = plan(monkeypatch, tmp_path, *words, "--config-dir", "mine")
    assert found["met"] and [(row["admission"], row["status"]) for row in rows] == [
        ("raises", "error"),
        ("vllm", "ok"),
    ]
    message = "admission policy Raises: candidates raised KeyError: 'nobody' (step 0, "
    assert message in rows[0]["message"]
    (failed,) = found["failed"]
    assert message in failed and failed.startswith("max_loras 4, max_cpu_loras 64, admission raises")
    shown = capsys.readouterr().out
    assert "2 settings tried, 1 failed." in shown and f"lorasim-plan: warning: {failed}" in shown


def test_a_plan_without_a_setting_that_runs_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "mine" / "admission").mkdir(parents=True)
    (tmp_path / "mine" / "admission" / "raises.yaml").write_text("_target_: test_policy_runs.Raises\n")
    words = [*QUICK, "slo.ttft_p99_ms=1e9", "workload.request_rate=5", "search.policies=[{admission:raises}]"]
    line = refusal([*words, "--config-dir", "mine"], main=main, prog=PROG)
    assert "candidates raised KeyError: 'nobody'" in line
    assert not (tmp_path / "outputs").exists() or not list((tmp_path / "outputs").glob("*/*"))


FOREIGN = "{admission:amortize,eviction:queue_aware,prefetch:queue}"


def test_policies_of_the_chosen_are_written_for_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file is that of a run with the same settings, and the bridge makes the policies from it."""
    words = ["slo.ttft_p99_ms=1e9", "workload.request_rate=5", "search.max_loras=[4]"]
    words += ["search.max_cpu_loras=[64]", f"search.policies=[{FOREIGN},{{admission:drain}}]"]
    found, rows = plan(monkeypatch, tmp_path, *words)
    written = (tmp_path / "out/policy.yaml").read_bytes()
    assert yaml.safe_load(written) == found["chosen"]["policies"]
    best = max(rows, key=lambda row: float(row["margin"]))
    assert json.loads(best["policies"]) == found["chosen"]["policies"]
    assert {json.loads(row["policies"])["admission"]["_target_"] for row in rows} == {
        "policies.admission.Amortize",
        "policies.admission.Drain",
    }
    policies = [f"{group}={best[group]}" for group in ("admission", "eviction", "prefetch")]
    of_run = [word for word in [*QUICK, *words] if not word.startswith(("search.", "slo."))]
    sizes = ["engine.max_loras=4", "engine.max_cpu_loras=64", "hydra.run.dir=run"]
    monkeypatch.setattr(sys, "argv", ["lorasim", *of_run, *policies, *sizes])
    lorasim()
    assert (tmp_path / "run/policy.yaml").read_bytes() == written
    settings = PolicySettings.from_file(tmp_path / "out/policy.yaml")
    made = type(settings.make_admission({"scheduling_policy": "fcfs"})).__name__
    assert found["chosen"]["policies"]["admission"]["_target_"] == f"policies.admission.{made}"


def test_the_laboratory_s_policies_are_tried_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ["slo.ttft_p99_ms=1e9", "search.max_loras=[4]", "search.max_cpu_loras=[64]"]
    _, rows = plan(monkeypatch, tmp_path, *words, "workload.request_rate=5")
    assert [(row["eviction"], row["prefetch"]) for row in rows] == [("lru", "none"), ("queue_aware", "queue")]


def test_help_names_the_groups_of_a_plan_and_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [PROG, "--help"])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if line.strip().startswith("engine, model"))
    defaults = yaml.safe_load((files("conf") / "plan.yaml").read_text())["defaults"]
    own = [next(iter(entry)) for entry in defaults if isinstance(entry, dict)]
    assert line.strip().split(", ") == [name for name in own if not name.startswith("override")]


def test_plain_vllm_needs_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor does that of an earlier plan stay in the folder."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/policy.yaml").write_text("admission: {_target_: policies.admission.Drain}\n")
    words = ["slo.ttft_p99_ms=1e9", "workload.request_rate=5", "search.max_loras=[4]"]
    words += ["search.max_cpu_loras=[64]", "search.policies=[{}]"]
    found, rows = plan(monkeypatch, tmp_path, *words)
    assert found["chosen"]["plain_vllm"]
    assert found["chosen"]["vllm_serve_command"].startswith("vllm serve ")
    assert [row["policies"] for row in rows] == [""]
    assert not (tmp_path / "out/policy.yaml").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "no target given"),
        (["slo.ttft_p99_ms=fast"], "slo.ttft_p99_ms"),
        (["slo.ttft_p99_ms=9", "search.max_loras=[]"], "search.max_loras=[]"),
        (["slo.ttft_p99_ms=9", "search.max_loras=[100]"], "every value is below"),
        (["slo.ttft_p99_ms=9", "search.policies=[{engine:vllm}]"], "expected one of admission"),
        (
            ["slo.ttft_p99_ms=9", "search.policies=[{admission:nonsense}]"],
            "Could not find 'admission/nonsense'; accepted: ",
        ),
        (["slo.ttft_p99_ms=9", "search.max_replicas=0"], "search.max_replicas=0"),
        (["slo.ttft_p99_ms=9", "search.processes=0"], "search.processes=0: expected 1 or more, or -1"),
        (["slo.ttft_p99_ms=9", "search.max_loras=[8,0]"], "search.max_loras[1]=0: must be greater than 0"),
        (["slo.ttft_p99_ms=9", "search.max_cpu_loras=[-1]"], "search.max_cpu_loras[0]=-1: must be greater"),
        (["slo.ttft_p99_ms=9", "search.seeds=[-1]"], "search.seeds[0]=-1: must not be negative"),
        (["slo.ttft_p99_ms=9", "workload.request_rate=-1"], "workload.request_rate=-1"),
    ],
)
def test_bad_arguments_are_one_line(refusal: Refusal, words: list[str], named: str) -> None:
    assert named in refusal([*QUICK, *words], main=main, prog=PROG)
