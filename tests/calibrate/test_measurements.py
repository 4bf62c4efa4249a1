"""The profile in the tree comes from the measurements in the tree."""

import shutil
import sys
from pathlib import Path

import pytest

from calibrate.fit import main

ROOT = Path(__file__).parents[2]
MEASUREMENTS = "calibrate/measurements/h100/Llama-3.1-8B"
PROFILE = "conf/profile/h100_llama_3_1_8b.yaml"
TABLES = "calibrate/fits/h100_llama_3_1_8b"


def test_refitting_the_committed_measurements_gives_the_committed_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the defaults of `python -m calibrate.fit`, in a folder of its own."""
    shutil.copytree(ROOT / MEASUREMENTS, tmp_path / MEASUREMENTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["calibrate.fit"])
    main()
    committed = {path.relative_to(ROOT) for path in (ROOT / TABLES).iterdir()} | {Path(PROFILE)}
    written = {path.relative_to(tmp_path) for path in (tmp_path / TABLES).iterdir()} | {Path(PROFILE)}
    assert written == committed
    for path in sorted(written):
        assert (tmp_path / path).read_bytes() == (ROOT / path).read_bytes(), path
