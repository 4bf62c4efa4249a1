"""Collects the figures of a session and writes them at its end."""

from typing import Any

import pytest

from benchmarks import report

FIGURES: dict[str, Any] = {}


@pytest.fixture
def figures() -> dict[str, Any]:
    """What the session has measured so far."""
    return FIGURES


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--million`: also one million requests, which takes minutes."""
    parser.addoption("--million", action="store_true")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Write the results and show the page."""
    if "simpy_time_outs_per_s" in FIGURES:
        page = report.write(FIGURES)
        terminalreporter.write_line(page.read_text())
        terminalreporter.write_line(f"written to benchmarks/results/{page.name}")
