"""From timed sleeps to files of conf/swap."""

from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_module

from calibrate.fit_sleep_mode import main, text_of
from tests.refusal import refused

QWEN = Path("calibrate/measurements/h100/Qwen3-0.6B/sleep_mode/sleeps")


def test_the_files_in_the_tree_are_what_the_sleeps_in_the_tree_make() -> None:
    with initialize_config_module("conf", version_base="1.3"):
        sleeps = compose("fit_sleep_mode").sleeps
    assert len(sleeps) == 2
    for out, folder in sleeps.items():
        assert Path(out).read_text() == text_of(Path(folder)), f"{out}: python -m calibrate.fit_sleep_mode"


def test_the_first_sleep_is_not_among_the_medians(tmp_path: Path) -> None:
    sleeps = pd.DataFrame({"repeat": [0, 1, 2, 3], "sleep_s": [9.0, 0.1, 0.2, 0.4], "wake_s": [8.0, 1, 3, 2]})
    (tmp_path / "meta.json").write_text((QWEN / "meta.json").read_text())
    sleeps.to_parquet(tmp_path / "sleeps.parquet")
    text = text_of(tmp_path)
    assert "stop_s: 0.2\n" in text and "start_s: 2\n" in text and "first, which took 9 s" in text
    assert 'source: "measured: Qwen/Qwen3-0.6B on an NVIDIA H100 80GB HBM3, vLLM 0.25.1"' in text


def test_one_sleep_is_too_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sleeps"
    folder.mkdir()
    (folder / "meta.json").write_text((QWEN / "meta.json").read_text())
    pd.DataFrame({"repeat": [0], "sleep_s": [9.0], "wake_s": [8.0]}).to_parquet(folder / "sleeps.parquet")
    words = ["~sleeps", "+sleeps={out.yaml: sleeps}"]
    message = refused(monkeypatch, capsys, tmp_path, words, main=main, prog="calibrate.fit_sleep_mode")
    assert "sleeps: 1 sleep in it; expected two or more" in message
