"""The page of simulated against measured: errors against targets, policies in order, equal outputs."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from reports.fidelity.__main__ import main
from reports.fidelity.errors import QUANTITIES
from tests.refusal import refused

PLAYS = [
    ("work", "vllm", 100.0, 103.0, 110.0),
    ("work-fair", "fair", 90.0, 95.0, None),
    ("work-winner", "winner", 200.0, 190.0, None),
    ("work-one_thread", "vllm", 125.0, 128.0, None),
]


def write_server(folder: Path) -> None:
    """What `calibrate.served` and the server's clients leave."""
    folder.mkdir()
    for policy, texts in (("vllm", ["a", "b"]), ("winner", ["a", "c"])):
        (folder / f"bench_serve_{policy}.json").write_text(json.dumps({"generated_texts": texts}))
    rows = [
        {"policy": policy, "quantity": quantity, "measured": measured, "simulated": 50.0}
        for policy, measured in (("vllm", 40.0), ("winner", 60.0))
        for quantity in ("output_throughput", "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms")
    ]
    pd.DataFrame(rows).to_csv(folder / "check.csv", index=False)
    one = {"adapter": "a", "prompts": 200, "repeatable": 0.99, "equal": 0.985}
    answers = [("1", "2", "1"), ("1", "2", "2"), ("1", "1", "2"), ("1", "1", "3"), ("1", "1", "4")]
    differing = [dict(zip(("single", "again", "mixed"), them, strict=True), adapter="a") for them in answers]
    gate = {"gate_pct": 0.5, "passed": True, "adapters": [one], "differing": differing}
    (folder / "parity.json").write_text(json.dumps(gate))
    answers = [{"bad": None, "status": 200}, {"bad": None, "status": 200}, {"bad": "missing", "status": 500}]
    (folder / "bad_adapters.json").write_text(json.dumps({"requests": answers, "after": {"status": 200}}))


def write(folder: Path) -> None:
    rows = []
    for workload, policy, measured, simulated, again in PLAYS:
        for quantity in (*QUANTITIES, "request_goodput"):
            mean = measured if again is None else (measured + again) / 2
            rows.append(
                {
                    "workload": f"64-{workload}",
                    "max_loras": 64,
                    "mode": "open" if workload == "work-fair" else "closed",
                    "below_saturation": workload == "work-fair",
                    "policy": policy,
                    "torch_threads": 1 if workload == "work-one_thread" else None,
                    "swaps": "one_piece" if policy == "winner" else "vllm",
                    "quantity": quantity,
                    "measured": measured,
                    "measured_again": again,
                    "simulated": simulated,
                    "error_pct": 100 * (simulated / mean - 1),
                    "hardware_spread_pct": None if again is None else 100 * (again - measured) / mean,
                    "simulated_given_host": measured,
                    "error_given_host_pct": 0.0,
                }
            )
        replay = folder / "replays" / f"64-{workload}"
        replay.mkdir(parents=True)
        swaps = [
            ("replay", "load", 0.05),
            ("replay", "load", 0.07),
            ("replay", "activate", 0.01),
            ("reference", "load", 9.0),
        ]
        pd.DataFrame(swaps, columns=["phase", "kind", "duration_s"]).to_parquet(replay / "swaps.parquet")
    pd.DataFrame(rows).to_csv(folder / "replays" / "check.csv", index=False)
    for name, tokens in (("64-work", [1, 2]), ("64-work-winner", [1, 3])):
        outputs = pd.DataFrame({"request_id": ["a", "b"], "token_ids": [[5, 6], tokens]})
        outputs.to_parquet(folder / "replays" / name / "outputs.parquet")
        requests = pd.DataFrame({"request_id": ["a", "b"], "adapter": ["x", "y"]})
        requests.to_parquet(folder / "replays" / name / "requests.parquet")
    write_server(folder / "server")
    columns = ["kind", "rank", "count", "p10_ms", "median_ms", "p90_ms", "max_ms"]
    pd.DataFrame([["activate", 16, 3, 1.0, 2.0, 3.0, 4.0]], columns=columns).to_csv(
        folder / "swaps.csv", index=False
    )


def write_threads(folder: Path) -> None:
    """Loads with two counts of threads; what is no load, or was set up beside them, does not count."""
    for count, taken_s in (("2", 0.2), ("16", 0.3)):
        swaps = [("reference", "load", taken_s), ("load", "load", taken_s / 10), ("setup", "load", 9.0)]
        swaps += [("load", "activate", 8.0)]
        measured = folder / f"torch_threads-{count}"
        measured.mkdir(parents=True)
        pd.DataFrame(swaps, columns=["phase", "kind", "duration_s"]).to_parquet(measured / "swaps.parquet")


WORDS = [
    "replays={M: replays}",
    "swaps={one: swaps.csv}",
    "outputs=[[64-work,64-work-winner],[64-work,none]]",
    "plain={vllm: as it is, one_thread: with one thread}",
    "winners={winner: the best}",
    "traffic={closed: {Even: work}, kept_up: {even: work}, in_time: {even: work}}",
    "served={results: {Here: server}, weak_adapters: []}",
    "threads=threads",
    "out=page",
]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    write(tmp_path)
    write_threads(tmp_path / "threads")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "reports.fidelity",
            *("~replays", "~swaps", "~plain", "~winners", "~traffic", "~served"),
            *(word if word.startswith(("out", "threads")) else f"+{word}" for word in WORDS),
        ],
    )
    main()
    for name in ("predicted-against-measured", "loads-by-threads"):
        assert (tmp_path / "page" / f"{name}.svg").stat().st_size > 1000
    return (tmp_path / "page" / "README.md").read_text()


def test_medians_stand_against_targets(page: str) -> None:
    line = (
        "| output throughput, tokens/s | 3 % | missed | 3.7 % | 2.4 % | 5.6 % | 5.6 % | 0.0 % | 9.5 % (1) |"
    )
    assert line in page
    assert "| TTFT p99, ms | 10 % | met | 3.7 % | 2.4 % | 5.6 % | 5.6 % | 0.0 % | 9.5 % (1) |" in page
    assert "| M | in one piece | 1 | 5.0 % |" in page
    assert "| M | tensor by tensor, torch's threads: 1 | 1 | 2.4 % |" in page
    assert "Worst throughput: M, 64-work-fair, +5.6 % (target 10 %, met)." in page


def test_policies_are_compared_with_plain_vllm_on_the_same_work(page: str) -> None:
    assert "| winner | 200 | 190 | 1.90 | 1.84 | 200 | 190 |" in page
    assert "Kendall's tau 1.00" in page


def test_swaps_of_the_replay_alone_are_counted(page: str) -> None:
    assert "| M, 64-work | 52.0 | 60.0 | 68.0 | 70.0 | 10.0 | 10.0 | 10.0 | 10.0 |" in page


def test_loads_are_told_by_how_many_threads_torch_has(page: str) -> None:
    assert "The same work on the same engine with each, 1 times:" in page
    assert "| TPOT p50 | 1.9 % | 1.9 % | 2.4 % | 2.4 % |" in page
    assert "| 2 | 1 | 200 | 200 | 200 | 1 | 20.0 | 20.0 | 20.0 |\n| 16 | 1 | 300 |" in page


def test_outputs_are_compared_where_both_are_there(page: str) -> None:
    assert "| 64-work, 64-work-winner | 2 | 50.0 % | 100.0 % |" in page
    assert "64-work, none" not in page


def test_the_winner_stands_against_plain_vllms_best(page: str) -> None:
    assert "| 64 | 105 | 103 | 125 | 128 | 200 | 190 |" in page
    assert "`vllm` with its best of 1, 64: 1.90 times the throughput, 1.84 simulated (-3 %)." in page
    assert "`one_thread` with its best of 1, 64: 1.60 times the throughput, 1.48 simulated (-7 %)." in page
    assert "| even, 64 slots | `winner` | `vllm` | 200 | 105 | 200 | 105 | 0.5 | 0.5 |" in page
    assert "| even, 64 slots | `winner` | `one_thread` | 200 | 125 | 200 | 125 | 0.6 | 0.7 |" in page
    assert "| even, 64 slots | `winner` | 200 | 190 | 200 | 190 |" in page


def test_what_the_server_answered(page: str) -> None:
    assert "| TTFT p99, ms | 40.0 | 50.0 | 60.0 | 50.0 |" in page
    assert "equal, of 2 (2 different ones): vllm and winner, 1." in page
    # One is equal in mixed batches alone, three in repeated ones alone: so are 10 of 16 throws of four coins.
    assert "repetition: passed" in page and "| a | 200 | 99.00% | 98.50% | 0.62 |" in page
    assert "among 2 requests" in page and "| missing | 1 | 500 |" in page


def test_nothing_to_compare_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["~replays", "+replays={M: nowhere}"]
    message = refused(monkeypatch, capsys, tmp_path, words, main=main, prog="reports.fidelity")
    assert "nowhere/check.csv: no comparison there" in message
