"""Markers of the whole suite."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vllm: compares with vllm==0.25.1 itself; no GPU needed")
