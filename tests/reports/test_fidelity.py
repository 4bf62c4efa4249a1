"""The page of simulated against measured: errors against targets, policies in order, equal outputs."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from reports.fidelity import QUANTITIES, main
from tests.refusal import refused

PLAYS = [
    ("work", "vllm", 100.0, 103.0, 110.0),
    ("work-fair", "fair", 90.0, 95.0, None),
    ("work-best", "best", 200.0, 190.0, None),
]


def write(folder: Path) -> None:
    rows = []
    for workload, policy, measured, simulated, again in PLAYS:
        for quantity in QUANTITIES:
            mean = measured if again is None else (measured + again) / 2
            rows.append(
                {
                    "workload": workload,
                    "policy": policy,
                    "quantity": quantity,
                    "measured": measured,
                    "measured_again": again,
                    "simulated": simulated,
                    "error_pct": 100 * (simulated / mean - 1),
                    "hardware_spread_pct": None if again is None else 100 * (again - measured) / mean,
                    "simulated_given_swaps": measured,
                    "error_given_swaps_pct": 0.0,
                }
            )
        replay = folder / "replays" / workload
        replay.mkdir(parents=True)
        swaps = [
            ("replay", "load", 0.05),
            ("replay", "load", 0.07),
            ("replay", "activate", 0.01),
            ("reference", "load", 9.0),
        ]
        pd.DataFrame(swaps, columns=["phase", "kind", "duration_s"]).to_parquet(replay / "swaps.parquet")
    pd.DataFrame(rows).to_csv(folder / "replays" / "check.csv", index=False)
    for name, tokens in (("work", [1, 2]), ("work-best", [1, 3])):
        outputs = pd.DataFrame({"request_id": ["a", "b"], "token_ids": [[5, 6], tokens]})
        outputs.to_parquet(folder / "replays" / name / "outputs.parquet")
    columns = ["kind", "rank", "count", "p10_ms", "median_ms", "p90_ms", "max_ms"]
    pd.DataFrame([["activate", 16, 3, 1.0, 2.0, 3.0, 4.0]], columns=columns).to_csv(
        folder / "swaps.csv", index=False
    )


WORDS = [
    "replays={M: replays}",
    "swaps={one: swaps.csv}",
    "outputs=[[work,work-best],[work,none]]",
    "out=page",
]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["reports.fidelity", *["~replays", "~swaps"], "+" + WORDS[0], "+" + WORDS[1], *WORDS[2:]]
    )
    main()
    assert (tmp_path / "page" / "predicted-against-measured.svg").stat().st_size > 1000
    return (tmp_path / "page" / "README.md").read_text()


def test_medians_stand_against_targets(page: str) -> None:
    assert "| output throughput, tokens/s | 5.0 % | 3 % | missed | 5.6 % | 0.0 % | 9.5 % (1) |" in page
    assert (
        "| loads | 5.0 % | 5 % | met | 5.6 % | 0.0 % | 9.5 % (1) |" in page
        or "| loads | 5.0 % | 5 % | missed |" in page
    )
    assert "Worst throughput: work-fair, +5.6 % (target 10 %, met)." in page


def test_policies_are_compared_with_plain_vllm_on_the_same_work(page: str) -> None:
    assert "| best | 200 | 190 | 1.90 | 1.84 | 200 | 190 |" in page
    assert "Kendall's tau 1.00" in page


def test_swaps_of_the_replay_alone_are_counted(page: str) -> None:
    assert "| M, work | 52.0 | 60.0 | 68.0 | 70.0 | 10.0 | 10.0 | 10.0 | 10.0 |" in page


def test_outputs_are_compared_where_both_are_there(page: str) -> None:
    assert "| work, work-best | 2 | 50.0 % |" in page
    assert "work, none" not in page


def test_nothing_to_compare_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["~replays", "+replays={M: nowhere}"]
    message = refused(monkeypatch, capsys, tmp_path, words, main=main, prog="reports.fidelity")
    assert "nowhere/check.csv: no comparison there" in message
