"""Predicted KV cache against engines that were started."""

from pathlib import Path

import pandas as pd
import pytest

from calibrate import kv_capacity
from tests.refusal import refused

COMMITTED = Path("calibrate/fits/kv_capacity.csv")


def csv(folder: Path, text: str) -> Path:
    file = folder / "runs.csv"
    file.write_text(text)
    return file


def test_our_own_engines_are_predicted_from_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    monkeypatch.setattr("sys.argv", ["kv_capacity", f"out={out}", f"hydra.run.dir={tmp_path}"])
    kv_capacity.main()
    assert out.read_bytes() == COMMITTED.read_bytes()
    assert pd.read_csv(out).error_pct.abs().max() < 0.5


def test_engines_that_do_not_fit_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = "model,max_loras,max_lora_rank,kv_tokens,status\n"
    runs = csv(tmp_path, header + "llama-3.1-8b-instruct,8,8,305104,\nllama-3.1-8b-instruct,384,64,,OOM\n")
    out = tmp_path / "out.csv"
    monkeypatch.setattr(
        "sys.argv", ["kv_capacity", f"runs={runs}", f"out={out}", f"hydra.run.dir={tmp_path}"]
    )
    kv_capacity.main()
    table = pd.read_csv(out)
    assert table.predicted_status.tolist() == ["ok", "oom"]
    assert table.error_pct.iloc[0] == 0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model,max_loras\nx,1\n", "no column max_lora_rank"),
        ("model,max_loras,max_lora_rank,kv_tokens,status\nunknown,8,8,1,\n", "model unknown"),
        (
            "model,max_loras,max_lora_rank,kv_tokens,status\nllama-3.1-8b-instruct,8,8,,OOM\n",
            "no engine that started",
        ),
    ],
)
def test_bad_runs(
    text: str,
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    words = [f"runs={csv(tmp_path, text)}", f"out={tmp_path / 'out.csv'}", f"hydra.run.dir={tmp_path}"]
    main, prog = kv_capacity.main, "calibrate.kv_capacity"
    assert named in refused(monkeypatch, capsys, tmp_path, words, main=main, prog=prog)
