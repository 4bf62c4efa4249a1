"""Measure what vLLM 0.8.5 takes to find a token's adapter among the slots: `python -m calibrate.bsc.search`.

Whenever the batch has changed, the worker looks up each token's adapter in the list of slots, in Python
(vllm/lora/punica_wrapper/utils.py, `convert_mapping`), and adapters are spread over all slots. The
microbenchmarks leave open which part of what slots cost is this search, so it is measured apart: the same
operations of the interpreter. It depends on the CPU, and on Python: the study had 3.12.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from calibrate.bsc.host_cost import least_ns, write_cost
from sim.cli import hydra_entry

NUM_TOKENS = 256
FEW_SLOTS, MANY_SLOTS = 32, 320


def search(adapters: Sequence[Any], slots: list[int]) -> list[int]:
    """Return the slot of each token's adapter, given as numpy's integers, as `convert_mapping` does."""
    found = list(adapters)
    for index in range(len(found)):
        found[index] = slots.index(adapters[index]) if adapters[index] > 0 else -1
    return found


def search_ns(num_slots: int, repeats: int) -> int:
    """Return the least CPU time for NUM_TOKENS tokens whose adapters are spread over the slots."""
    slots = list(range(1, num_slots + 1))
    adapters = tuple(np.linspace(1, num_slots, NUM_TOKENS).astype(np.int64))
    return least_ns(lambda: search(adapters, slots), repeats)


def measure(repeats: int) -> float:
    """Return by how many ms a token takes longer with each further slot."""
    longer_ns = search_ns(MANY_SLOTS, repeats) - search_ns(FEW_SLOTS, repeats)
    return longer_ns / NUM_TOKENS / (MANY_SLOTS - FEW_SLOTS) / 1e6


def task(cfg: DictConfig) -> None:
    """Measure and write the result."""
    out = Path(cfg.out)
    result = write_cost(out, "ms_per_slot_token", measure(cfg.repeats), numpy=version("numpy"))
    print(
        f"{1e6 * result['ms_per_slot_token']:.0f} ns for a slot and token, Python {result['python']}: {out}"
    )


def main() -> None:
    """Entry point."""
    hydra_entry(task, "bsc_search", "calibrate.bsc.search")


if __name__ == "__main__":
    main()
