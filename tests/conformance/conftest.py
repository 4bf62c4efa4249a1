"""Comparisons with vLLM itself: marked `vllm`, and skipped where vLLM is not installed."""

import os
import warnings
from pathlib import Path

import pytest

VLLM_MODULE = "vllm.v1.core.sched.scheduler"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session", autouse=True)
def vllm() -> None:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(VLLM_MODULE, reason="needs vllm==0.25.1 (no GPU): pip install 'lorasim[gpu]'")
