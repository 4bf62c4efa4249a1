"""Markers of the whole suite."""

import os
from functools import partial
from pathlib import Path

import pytest

from tests.interruption import heed_interrupts
from tests.refusal import Refusal, refused

# Each of pytest's workers computes on one core; their threads would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    heed_interrupts()
    config.addinivalue_line("markers", "vllm: compares with vllm==0.25.1 itself; no GPU needed")


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refusal:
    """`tests.refusal.refused` in an empty folder."""
    return partial(refused, monkeypatch, capsys, tmp_path)
