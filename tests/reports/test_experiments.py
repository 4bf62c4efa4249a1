"""`experiment=forty_customers` and `experiment=thousand_adapters`: tiny sweeps against golden tables."""

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scipy import stats

from policies.routing import Weighted
from reports.experiments.box_lost import after_the_loss
from reports.experiments.grid import AS_SLOTS, SKEWED, UNIFORM, Grid
from reports.experiments.ranks import padding
from reports.experiments.reported import Reported
from reports.experiments.scenario import Scenario
from reports.experiments.thousand_adapters import active_section, figures
from reports.experiments.thousand_measured import measured_points, measured_section
from reports.experiments.thousand_plots import active_plot
from sim.__main__ import main
from sim.errors import UserError
from sim.request import Request
from sim.results import read_summary
from sim.simulation import run, simulate
from sim.sweep.runs import load_runs
from tests.sim.test_simulation import OPEN, config

GOLDEN = Path(__file__).parent / "golden"
SCENARIOS = "separate,without_lora,free_swaps,two_boxes,mixed_ranks,box_lost,box_lost_fallback"
FORTY = [
    "+experiment=forty_customers",
    *("profile=constant", "workload.request_rate=1", "workload.duration_s=350", "warmup_s=310"),
    *("workload.output_length=32", "engine.max_loras=2", "engine.max_cpu_loras=8"),
    f"experiment/forty_customers={SCENARIOS}",
]
THOUSAND = [
    "+experiment=thousand_adapters",
    *("profile=constant", "warmup_s=0", "workload.duration_s=3", "workload.num_adapters=80"),
    *("engine.max_loras=2,32", "engine.max_cpu_loras=null"),
    "experiment/thousand_adapters=uniform,skewed",
]


BOTH = UNIFORM, SKEWED
UNIFORM_ALONE = "experiment/thousand_adapters=uniform"


def lorasim(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lorasim", *words, "hydra.sweep.dir=out", "sweep.processes=1"])
    main()
    return folder / "out"


def check_golden(page: Path) -> None:
    """Compare with the file in `tests/reports/golden`; where that is missing, write it, and fail."""
    golden = GOLDEN / page.name
    if not golden.exists():
        golden.parent.mkdir(exist_ok=True)
        golden.write_bytes(page.read_bytes())
        pytest.fail(f"{golden} was missing, and is written now: look at it")
    assert page.read_text() == golden.read_text()


def test_forty_customers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = lorasim(monkeypatch, tmp_path, *FORTY)
    check_golden(out / "forty_customers.md")
    shown = capsys.readouterr().out
    assert "Forty deployments against two boxes" in shown
    found = json.loads((out / "forty_customers.json").read_text())
    runs = {run.columns["experiment/forty_customers"]: run.summary for run in load_runs(out)}
    multi = found["simulated"]["multi"]
    assert multi["p50_ms"] == runs["two_boxes"]["median_e2el_ms"]
    assert multi["slot_evictions_per_s"] == runs["two_boxes"]["adapters"]["slot_evictions_per_s"] / 2 > 0
    assert found["simulated"]["separate"]["gpus"] == len(runs["separate"]["replicas"]) == 40
    assert runs["separate"]["adapter_activations"] == 0
    # All of the scenarios have the same requests.
    assert len({run["counts"]["submitted"] for run in runs.values()}) == 1
    lost = found["box_lost"]
    for shares in lost.values():
        kinds = ("in_time", "late", "degraded", "failed", "unanswered")
        assert sum(shares[kind] for kind in kinds) == pytest.approx(1)
    assert lost["box_lost"]["degraded"] == 0
    assert found["ranks"]["mixed"]["slot_mb"] == pytest.approx(4 * found["ranks"]["uniform"]["slot_mb"])


def test_thousand_adapters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = lorasim(monkeypatch, tmp_path, *THOUSAND)
    check_golden(out / "thousand_adapters.md")
    for name in ("output-throughput-over-max_loras", "time-to-first-token-over-max_loras"):
        assert (out / f"{name}.svg").read_text().startswith("<?xml")
    found = json.loads((out / "thousand_adapters.json").read_text())
    assert len(found["runs"]) == 4
    assert {run["cache"] for run in found["runs"]} == {"as_slots"}


def point(total: int, active: int, tokens_per_s: float) -> Any:
    names = ("traffic", "total", "active", "tokens_per_s", "max_loras", "cache")
    found = SimpleNamespace(**dict(zip(names, ("", total, active, tokens_per_s, 8, AS_SLOTS), strict=True)))
    found.traffic = "active_" + str(active)
    return found


def test_total_against_active_adapters() -> None:
    even = [SimpleNamespace(traffic=t, total=90, max_loras=8, cache=AS_SLOTS, active=None) for t in BOTH]
    points = [point(90, 4, 80.0), point(30, 4, 100.0), point(30, 16, 50.0), point(90, 16, 20.0)]
    grid = Grid([*even, *points])  # type: ignore[list-item]
    section = active_section(grid, AS_SLOTS)
    assert "90 adapters, host cache as the slots (vLLM&#39;s default), 16 active: 20" in active_plot(grid).svg
    assert section.head[1:] == ["of 30: tokens/s", "of 90: tokens/s"]
    assert section.rows == [["4", "100", "80"], ["16", "50", "20"]]
    assert "3 times as many adapters in all: -20 % tokens/s with 4 active" in section.notes[0]
    assert "4 times as many active: -75 % tokens/s of 90" in section.notes[0]
    with pytest.raises(UserError, match=r"expected one for each workload.num_adapters=30,90"):
        active_section(Grid([*even, *points[1:]]), AS_SLOTS)  # type: ignore[list-item]


def test_money_and_memory_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ["workload.duration_s=2", "warmup_s=0", "experiment/forty_customers=two_boxes"]
    price = "hydra.callbacks.table.prices.usd_per_gpu_hour.H100=2"
    out = lorasim(monkeypatch, tmp_path, "+experiment=forty_customers", *words, price)
    multi = json.loads((out / "forty_customers.json").read_text())["simulated"]["multi"]
    assert multi["usd_per_month"] == 2 * 2 * 730
    assert multi["base_gb"] == pytest.approx(2 * 8.03e9 * 2 / 1e9, rel=1e-3)
    # 41,943,040 parameters of 2 bytes each.
    assert multi["adapter_gb"] == pytest.approx(40 * 41_943_040 * 2 / 1e9)
    assert (multi["most_tokens_per_s"], multi["without_lora_ms"]) == (None, None)
    assert 0 < multi["swap_host_ms"] < multi["swap_disk_ms"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*FORTY[:-1], "experiment/forty_customers=one_box"], "expected it, all else is compared with that"),
        ([*FORTY, "+hydra.callbacks.table.reported.rows.speed.multi=3"], "reported.rows.speed: expected one"),
        ([*FORTY, "hydra.callbacks.table.reported.rows.p50_ms.multi=[1]"], "expected a number, [lowest"),
        ([*FORTY, "hydra.callbacks.table.prices.usd_per_gpu_hour.H100=-1"], "expected dollars, at least 0"),
        (
            [*THOUSAND[:-1], UNIFORM_ALONE],
            "expected experiment/thousand_adapters=uniform,",
        ),
    ],
)
def test_sweeps_that_cannot_be_compared(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    quick = ["workload.duration_s=0.5", "warmup_s=0", "workload.num_adapters=70", "engine.max_loras=2"]
    with pytest.raises(SystemExit) as exit_:
        lorasim(monkeypatch, tmp_path, *words, *quick)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_evictions_are_rates_too(tmp_path: Path) -> None:
    summary = run(config(OPEN, {"max_loras": 2, "max_cpu_loras": 3}, warmup_s=0.5), tmp_path).summary
    adapters = read_summary(tmp_path)["adapters"]
    for tier in ("slot", "host_cache"):
        count = adapters[f"{tier}_evictions"]
        assert count > 0
        assert adapters[f"{tier}_evictions_per_s"] == pytest.approx(count / summary["duration_s"])
        assert adapters[f"{tier}_evictions_per_request"] == pytest.approx(count / summary["completed"])
    assert 1 <= adapters["mean_active"] <= 2


def test_a_share_of_the_requests_asks_for_the_base_model() -> None:
    def adapters(share: float) -> list[str | None]:
        workload = OPEN | {"request_rate": 400.0, "base_model_share": share}
        found: list[str | None] = simulate(config(workload)).requests.column("adapter").to_pylist()
        return found

    none, some, all_ = adapters(0.0), adapters(0.3), adapters(1.0)
    assert None not in none
    assert set(all_) == {None}
    assert stats.binomtest(some.count(None), len(some), 0.3).pvalue > 0.01
    # Who asks for an adapter asks for the same one.
    assert all(chosen in (None, before) for chosen, before in zip(some, none, strict=True))
    with pytest.raises(UserError, match=r"base_model_share=1.5: must be between 0 and 1"):
        adapters(1.5)


def test_weighted_routing_draws_in_proportion() -> None:
    policy, replicas = Weighted([3, 0, 1]), [object()] * 3
    request = Request("r", 0, 4, 1)
    drawn = Counter(policy.route(request, replicas) for _ in range(4000))  # type: ignore[arg-type]
    assert drawn[1] == 0
    assert stats.chisquare([drawn[0], drawn[2]], [3000, 1000]).pvalue > 0.01
    # What is beyond the weights gets something only where nobody else is left.
    assert Weighted([0, 1]).route(request, replicas[:1]) == 0  # type: ignore[arg-type]
    for wrong in ([], [0, 0], [1, -1]):
        with pytest.raises(ValueError, match="expected one for each replica"):
            Weighted(wrong)


def test_padding_of_mixed_ranks_by_hand(tmp_path: Path) -> None:
    workload: dict[str, Any] = OPEN | {"adapter_rank": {"values": [8, 16], "weights": [1, 0]}}
    run(config(workload), tmp_path)
    found = padding(Scenario(load_runs(tmp_path)[0]))
    assert found.padding_share == 0.5


def test_shares_after_a_loss(tmp_path: Path) -> None:
    """One replica and nobody else: all that came later, or was under way, has failed."""
    run(config(OPEN, failover={"at_s": 1.0}), tmp_path)
    found = after_the_loss(Scenario(load_runs(tmp_path)[0]), 1.0)
    assert (found["failed"], found["in_time"], found["p50_e2el_ms"]) == (1.0, 0.0, None)


def test_what_is_not_explained_is_said_so() -> None:
    values = {"source": "s", "rows": {"a": {"x": 1}, "b": {"x": [1, 2]}}, "differences": {"a": "why"}}
    found = Reported.from_mapping(values, ("a", "b"), ("x", "y"))
    assert found.notes({"a": "A", "b": "B"}) == ["A: why", "B: a difference, if any, is not explained."]
    assert [found.cell(row, "x", str) for row in ("a", "b")] == ["1", "1 to 2"]


def test_replays_on_the_real_engine_have_a_column_of_their_own() -> None:
    names = {"uniform": "closed-uniform", "skewed": "closed-zipf"}
    points = measured_points("calibrate/replays/h100/Llama-3.1-8B/check.csv", names)
    assert [point.max_loras for point in points["uniform"]] == [8, 16, 32, 64, 128]
    assert [point.max_loras for point in points["skewed"]] == [8, 32, 64]
    found = figures(points["uniform"], points["skewed"])
    assert found["ratio"] == pytest.approx(found["skewed_tokens_per_s"] / found["uniform_tokens_per_s"])
    assert set(found["ratio_by_max_loras"]) == {8, 32, 64}, "only where both were played"
    section = measured_section("ours", points)
    assert section.title == "Measured: ours"
    assert [row[0] for row in section.rows] == ["8", "16", "32", "64", "128"]
    assert section.rows[1][4:] == ["–", "–", "–"]


def test_no_table_of_replays_is_no_column(tmp_path: Path) -> None:
    assert measured_points(None, {}) == measured_points(str(tmp_path / "none.csv"), {"uniform": "a"}) == {}
    (tmp_path / "check.csv").write_text("a,b\n")
    with pytest.raises(UserError, match=r"check\.csv: not a table of calibrate\.validate"):
        measured_points(str(tmp_path / "check.csv"), {})
