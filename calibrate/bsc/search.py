"""Measure what vLLM 0.8.5 takes to find a token's adapter among the slots: `python -m calibrate.bsc.search`.

Whenever the batch has changed, the worker looks up each token's adapter in the list of slots, in Python
(vllm/lora/punica_wrapper/utils.py, `convert_mapping`), and adapters are spread over all slots. The
microbenchmarks leave open which part of what slots cost is this search, so it is measured apart: the same
operations of the interpreter. It depends on the CPU, and on Python: the study had 3.12.
"""

import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from sim.cli import hydra_entry
from sim.files import write_atomically

NUM_TOKENS = 256
FEW_SLOTS, MANY_SLOTS = 32, 320


def search(adapters: Sequence[Any], slots: list[int]) -> list[int]:
    """Return the slot of each token's adapter, given as numpy's integers, as `convert_mapping` does."""
    found = list(adapters)
    for index in range(len(found)):
        found[index] = slots.index(adapters[index]) if adapters[index] > 0 else -1
    return found


def least_ns(num_slots: int, repeats: int) -> int:
    """Return the least CPU time for NUM_TOKENS tokens whose adapters are spread over the slots."""
    slots = list(range(1, num_slots + 1))
    adapters = tuple(np.linspace(1, num_slots, NUM_TOKENS).astype(np.int64))
    durations = []
    for _ in range(repeats):
        begin_ns = time.thread_time_ns()
        search(adapters, slots)
        durations.append(time.thread_time_ns() - begin_ns)
    return min(durations)


def measure(repeats: int) -> float:
    """Return by how many ms a token takes longer with each further slot.

    Of the least times, because whatever else the machine does can only add to them.
    """
    longer_ns = least_ns(MANY_SLOTS, repeats) - least_ns(FEW_SLOTS, repeats)
    return longer_ns / NUM_TOKENS / (MANY_SLOTS - FEW_SLOTS) / 1e6


def task(cfg: DictConfig) -> None:
    """Measure and write the result."""
    result: dict[str, Any] = {
        # One digit: CPUs of one kind differ by more than the next.
        "ms_per_slot_token": float(f"{measure(cfg.repeats):.1g}"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "cpu": platform.processor() or platform.machine(),
    }
    out = Path(cfg.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, (json.dumps(result, indent=2) + "\n").encode())
    print(
        f"{1e6 * result['ms_per_slot_token']:.0f} ns for a slot and token, Python {result['python']}: {out}"
    )


def main() -> None:
    """Entry point."""
    hydra_entry(task, "bsc_search", "calibrate.bsc.search")


if __name__ == "__main__":
    main()
