"""What a client measured through a server, beside the same load in the simulator."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from calibrate.served import QUANTITIES, main
from tests.refusal import refused

HOST = Path("calibrate/replays/h100/Llama-3.1-8B/8-closed-zipf").absolute()
RESULT = {"num_prompts": 12, "max_concurrency": 4} | dict.fromkeys(QUANTITIES, 100.0)
WORDS = [
    "results=.",
    "~runs.winner",
    "~runs.amortize",
    "runs.vllm.file=one.json",
    f"runs.vllm.host={HOST}",
    "settings.max_loras=8",
]


def run(monkeypatch: pytest.MonkeyPatch, folder: Path) -> pd.DataFrame:
    (folder / "one.json").write_text(json.dumps(RESULT))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["calibrate.served", *WORDS])
    main()
    return pd.read_csv(folder / "check.csv")


def test_as_many_requests_at_a_time_as_the_client_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(monkeypatch, tmp_path)
    assert first.columns.tolist() == ["policy", "quantity", "measured", "simulated", "error_pct"]
    assert first.quantity.tolist() == list(QUANTITIES) and set(first.measured) == {100.0}
    assert (first.error_pct - (first.simulated - 100)).abs().max() < 0.02
    monkeypatch.setitem(RESULT, "max_concurrency", 1)
    alone = run(monkeypatch, tmp_path)
    assert alone.simulated[0] < first.simulated[0], "throughput falls with what is in flight"


def test_another_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.json").write_text("{}")
    message = refused(monkeypatch, capsys, tmp_path, WORDS, main=main, prog="calibrate.served")
    assert "one.json: no output_throughput in it" in message
