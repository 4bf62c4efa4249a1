"""Write-ups by other people, simulated in their form: tiny versions against golden tables."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from calibrate.writeups import hbm_budget
from calibrate.writeups.arrival_rate import Probe, measured_probes, verdict
from calibrate.writeups.break_even import Point, break_even_s, in_words
from calibrate.writeups.llmux import find_switches, per_pair
from calibrate.writeups.measured import Held
from sim.__main__ import main
from sim.results import write_failed
from sim.sweep.rows import put_row
from sim.sweep.runs import load_jobs

SERIAL = ["hydra.sweep.dir=out", "sweep.processes=1"]


def golden(name: str) -> str:
    return (Path(__file__).parent / "writeups_golden" / name).read_text()


def lorasim(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lorasim", "-m", *SERIAL, *words])
    main()
    return folder / "out"


TINY_MIX = (
    "hydra.callbacks.break_even.mixes=[{title: half, workload: {concurrency: 8, popularity: "
    "{kind: rates, rate_values: [0.5, 0.5], rate_counts: [1, 1]}}}]"
)


def test_llmux_in_its_own_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["hydra.callbacks.break_even.switch_s=[0,1]", TINY_MIX]
    words += ["hydra.callbacks.break_even.base.workload.duration_s=20"]
    words += ["hydra.callbacks.break_even.base.warmup_s=0"]
    out = lorasim(monkeypatch, tmp_path, "+experiment=llmux_time_slice", *words)
    shown = capsys.readouterr().out
    assert golden("llmux.txt") in shown
    assert "--- swap=sleep_mode ---" in shown
    assert "(measured: Qwen/Qwen3-0.6B on an NVIDIA H100 80GB HBM3, vLLM 0.25.1)" in shown
    assert "On a GPU of ours: vLLM's sleep mode was measured" in shown
    assert "not explained" in shown
    found = json.loads((out / "llmux_simulated.json").read_text())
    assert found["measured"] is None
    # With slots nothing is exchanged, and the alternation costs nothing.
    slots = found["simulated"]["slots"]
    assert slots["switches"] == []
    assert slots["aggregate"]["slowdown"] == pytest.approx(1)
    assert found["simulated"]["sleep_mode"]["aggregate"]["switches_per_run"] == 9.5
    with (out / "break_even.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["switch_s"] for row in rows] == ["0.0", "1.0"]
    assert 0 < float(rows[1]["ratio"]) < float(rows[0]["ratio"]) < 1
    assert b"<svg" in (out / "break_even.svg").read_bytes()
    assert "half: never" in shown
    assert "max_loras=1 is outside the measured 8 to 64" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["swap=process_restart"], "swap: no job with slots"),
        (["swap=slots", "workload.num_requests=40"], "expected 43 completed requests"),
        (["hydra.callbacks.llmux.single=[run]"], "llmux.single: run: expected one of warm_up, single_run_1"),
        (["hydra.callbacks.break_even.switch_s=[1,0]"], "expected two costs or more that rise"),
    ],
)
def test_llmux_with_other_settings_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as raised:
        lorasim(monkeypatch, tmp_path, "+experiment=llmux_time_slice", *words)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_a_switch_is_an_activation_in_a_slot_that_was_vacated() -> None:
    def event(time_s: float, kind: str, adapter: str, slot: int | None) -> dict[str, Any]:
        return {"time_s": time_s, "duration_ms": 500.0, "kind": kind, "adapter": adapter, "slot": slot}

    events = [
        event(1, "activate", "a", 0),
        event(1, "activate", "b", 1),
        event(2, "evict_slot", "b", 1),
        event(2.5, "activate", "c", 1),
        event(3, "evict_slot", "c", 1),
        event(3.5, "activate", "b", 1),
    ]
    switches = find_switches(events, {"c": "C"})
    assert [tuple(switch) for switch in switches] == [(2.5, 0.5, "b", "C"), (3.5, 0.5, "C", "b")]
    assert per_pair([*switches, switches[0]]) == [
        {"from": "b", "to": "C", "llmux_switches_total": 2, "llmux_switch_total_seconds_sum": 1.0},
        {"from": "C", "to": "b", "llmux_switches_total": 1, "llmux_switch_total_seconds_sum": 0.5},
    ]


@pytest.mark.parametrize(
    ("costs", "ratios", "expected"),
    [
        ((0, 1), (0.9, 0.5), None),
        ((0, 1), (1.2, 1.0), float("inf")),
        ((0, 1), (1.5, 0.5), 0.5),
        ((0, 1, 100), (1.5, 1.1, 0.9), 10.0),
    ],
)
def test_the_break_even_lies_between_two_costs(
    costs: tuple[float, ...], ratios: tuple[float, ...], expected: float | None
) -> None:
    pairs = zip(costs, ratios, strict=True)
    points = [Point("mix", cost, 100 * ratio, 100, None, None, 3) for cost, ratio in pairs]
    assert break_even_s(points) == (expected if expected is None else pytest.approx(expected))
    words = {None: "mix: never", 0.5: "up to 0.5 s", 10.0: "up to 10 s"}.get(expected, "and beyond")
    assert words in in_words(points)


class FixedClock(hbm_budget.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> "FixedClock":
        return cls(2024, 1, 15, 10, 30)


HBM = ["+experiment=hbm_budget", "profile=constant", "workload=short_prompts", "workload.num_adapters=4"]
HBM += ["engine.max_loras=4,2", "engine.max_cpu_loras=4", "workload.num_requests=12"]


def test_the_hbm_budget_in_a_csv_that_grows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hbm_budget, "datetime", FixedClock)
    out = lorasim(monkeypatch, tmp_path, *HBM)
    shown = capsys.readouterr().out
    assert golden("hbm_budget.txt") in shown
    assert "Reported: sample rows of an HBM budget experiment's output" in shown
    first = (out / "ttft_short_total4.csv").read_text()
    head = golden("hbm_budget_head.csv")
    assert first.startswith(head)
    assert first.splitlines()[1].startswith("2024-01-15 10:30:00,4,4,short,2,12,0.01")
    assert first.splitlines()[2].endswith(",1,2,6,6,simulated: constant (assumed)")
    assert b"<svg" in (out / "hbm_budget.svg").read_bytes()
    # The same sweep again, whose results are there, is appended.
    lorasim(monkeypatch, tmp_path, *HBM)
    assert (out / "ttft_short_total4.csv").read_text() == first + first[len(head) :]


def test_a_csv_of_other_columns_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out" / "ttft_short_total4.csv"
    file.parent.mkdir()
    file.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit):
        lorasim(monkeypatch, tmp_path, *HBM)
    assert "other columns than run_timestamp" in capsys.readouterr().err
    assert file.read_text() == "a,b\n1,2\n"


def test_arrival_rates_in_the_write_ups_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["profile=constant", "workload=short_prompts", "engine.max_loras=2", "workload.duration_s=8"]
    words += ["engine.max_num_seqs=2", "workload.abort_ms=4000", "workload.request_rate=40,4,16"]
    out = lorasim(monkeypatch, tmp_path, "+experiment=arrival_rate", *words)
    shown = capsys.readouterr().out
    assert golden("arrival_rate.txt") in shown
    assert "OK by the rules, though more arrives than is served: 16" in shown
    assert "|    234.5ms | OK (rules: UNSTABLE)" in shown
    lines = [json.loads(line) for line in (out / "probe_short_gpu2.jsonl").read_text().splitlines()]
    assert [line["metadata"]["arrival_rate"] for line in lines] == [4, 16, 40]
    assert [line["summary"]["status"] for line in lines] == ["UNSTABLE", "OK", "TOO HIGH"]
    assert lines[2]["summary"]["error_rate"] == lines[2]["summary"]["timeout_rate"] > 0.5
    assert lines[0]["metadata"]["total_loras"] == 128
    assert b"<svg" in (out / "arrival_rate.svg").read_bytes()


@pytest.mark.parametrize(
    ("success", "median", "p99", "status"),
    [
        (1.0, 100.0, 500.0, "OK"),
        (0.99, 100.0, 500.0, "OK"),
        (0.989, 100.0, 100.0, "TOO HIGH"),
        (0.9, 100.0, 20_000.0, "TOO HIGH"),
        (1.0, 100.0, 501.0, "UNSTABLE"),
        (1.0, 9_000.0, 10_000.0, "OK"),
        (1.0, 9_000.0, 10_001.0, "SLOW"),
        (1.0, 100.0, 10_001.0, "SLOW"),
        (0.0, None, None, "TOO HIGH"),
    ],
)
def test_the_verdict_on_a_rate(success: float, median: float | None, p99: float | None, status: str) -> None:
    assert Probe(1.0, success, 500, median, p99, median).status == status


def test_no_rate_may_be_acceptable() -> None:
    assert verdict([Probe(1.0, 0.5, 500, 1.0, 1.0, 1.0)]) == ["Highest rate that is OK: none of these"]


def test_jobs_are_found_though_they_ran_elsewhere_and_a_failed_one_is_named(tmp_path: Path) -> None:
    write_failed(tmp_path / "0", {"seed": 0}, "oom", "1 GiB short")
    row = {"workload": "uniform", "status": "oom", "message": "1 GiB short", "path": "0"}
    put_row(tmp_path, 0, row, {}, resumed=False)
    with pytest.raises(Exception, match="0: 1 GiB short"):
        load_jobs(tmp_path)


def test_plays_on_the_real_engine_stand_beside_the_simulated_curves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = Path("calibrate/replays/h100/Llama-3.1-8B").absolute()
    gpu = f"hydra.callbacks.hbm_budget.measured=[{measured}]"
    out = lorasim(monkeypatch, tmp_path, *HBM, gpu)
    shown = capsys.readouterr().out
    assert "Measured: NVIDIA H100 80GB HBM3 with vLLM 0.25.1, arrivals of 30 s" in shown
    rows = (out / "ttft_long_total128.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1:5] for row in rows] == [
        ["128", slots, "long", "2"] for slots in ("2", "16", "128")
    ]
    assert [row.split(",")[-3] for row in rows][2] == "0", "nothing is swapped where all have a slot"
    assert all(row.endswith("measured: NVIDIA H100 80GB HBM3 with vLLM 0.25.1") for row in rows)
    assert ">128 adapters, measured<" in (out / "hbm_budget.svg").read_text()


@pytest.mark.parametrize(("served_share", "is_overload"), [(1.0, False), (0.75, True)])
def test_a_play_that_is_cut_off_with_a_growing_queue_says_so(served_share: float, is_overload: bool) -> None:
    # 16 a second for 30 s; the last of them still run when the play ends, or never began.
    arrival_s = np.arange(480) / 16
    first_token_s = np.where(arrival_s < 30 * served_share, arrival_s / served_share + 0.1, np.nan)
    finish_s = np.where(first_token_s < 29, first_token_s + 1, np.nan)
    columns = {"arrival_s": arrival_s, "first_token_s": first_token_s, "finish_s": finish_s}
    play = Held("short", 128, 2, 16, pd.DataFrame(columns).assign(input_length=640), 0, 0, "a GPU")
    ((found,),) = measured_probes([play]).values()
    assert (found.status, found.is_overload) == ("OK", is_overload)
