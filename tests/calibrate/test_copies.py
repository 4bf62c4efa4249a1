"""Copies to slots, of steps whose times are known."""

import pandas as pd
import pytest

from calibrate.copies import copy_durations

REMAP_MS = 1.0


def step(
    activates: int, host_ms: float, copies_ms: float, rank: int = 16, busy_ms: float = 0.0
) -> dict[str, float | str]:
    """A step whose activations begin at 1 s, on a GPU that is busy for another while."""
    begun_ms = 1000.0
    ready_ms = max(begun_ms + host_ms, begun_ms + busy_ms + copies_ms)
    return {
        "run": "run0",
        "activates": activates,
        "activate_s": host_ms / 1e3,
        "mapping_s": 0.0005,
        "lora_end_s": (begun_ms + host_ms + 0.5) / 1e3,
        "gpu_begin_s": (begun_ms + busy_ms) / 1e3,
        "launch_start_s": (ready_ms + REMAP_MS) / 1e3,
        "remap_ms": REMAP_MS if not activates else float("nan"),
        "max_lora_rank": rank,
    }


def copies(*steps: dict[str, float | str]) -> list[float]:
    return copy_durations(pd.DataFrame([step(0, 0, 0), *steps])).tolist()


def test_what_is_waited_for_is_the_copy() -> None:
    shown = [step(1, 1, 1.6), step(2, 1, 3.2, busy_ms=20), step(1, 1, 6.4, rank=64)]
    assert copies(*shown) == pytest.approx([0.1, 0.1, 0.1])


def test_where_the_host_takes_as_long_no_copy_is_seen() -> None:
    assert copies(step(1, 12, 1.6), step(1, 12, 13)) == []
