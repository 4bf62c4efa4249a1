"""A cost of the study's host that its microbenchmarks do not show: measured apart, and written down."""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sim.files import write_atomically


def least_ns(work: Callable[[], object], repeats: int) -> int:
    """Return the least CPU time of `work`: whatever else the machine does can only add to it."""
    durations = []
    for _ in range(repeats):
        begin_ns = time.thread_time_ns()
        work()
        durations.append(time.thread_time_ns() - begin_ns)
    return min(durations)


def write_cost(out: Path, name: str, cost_ms: float, **conditions: Any) -> dict[str, Any]:
    """Write a cost and what it was measured with, and return both.

    With one digit: CPUs of one kind differ by more than the next.
    """
    result = {
        name: float(f"{cost_ms:.1g}"),
        **conditions,
        "python": platform.python_version(),
        "cpu": platform.processor() or platform.machine(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, (json.dumps(result, indent=2) + "\n").encode())
    return result
