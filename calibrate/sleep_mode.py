"""What vLLM's sleep mode takes: an engine to sleep, awake again, and its first request."""

import time
from itertools import pairwise
from typing import Any

import pandas as pd

from calibrate.engine import VllmEngine

LEVEL = 1
"""Weights go to host memory and come back; level 2 forgets them, and would have to read them anew."""


def time_sleeps(vllm: VllmEngine, repeats: int) -> pd.DataFrame:
    """Put an idle engine (of `enable_sleep_mode`) to sleep and wake it; a row a repeat, durations in seconds.

    `request_s` is a request of 13 tokens in and 8 out right after waking, `awake_s` the same once more.
    """
    _answer(vllm, "before")
    rows: list[dict[str, Any]] = []
    for repeat in range(repeats):
        marks = [time.perf_counter()]
        for act in (
            lambda: vllm.llm.sleep(LEVEL),
            vllm.llm.wake_up,
            lambda: _answer(vllm, f"first-{repeat}"),  # noqa: B023
            lambda: _answer(vllm, f"second-{repeat}"),  # noqa: B023
        ):
            act()
            marks.append(time.perf_counter())
        durations = [after - before for before, after in pairwise(marks)]
        names = ("sleep_s", "wake_s", "request_s", "awake_s")
        rows.append({"repeat": repeat, **dict(zip(names, durations, strict=True))})
    return pd.DataFrame(rows)


def _answer(vllm: VllmEngine, name: str) -> None:
    vllm.add(name, input_length=13, output_length=8)
    vllm.drain()
