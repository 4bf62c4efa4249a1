"""Markers of the whole suite."""

import os

import pytest

# Each of pytest's workers computes on one core; their threads would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vllm: compares with vllm==0.25.1 itself; no GPU needed")
