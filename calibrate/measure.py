"""Measure real vLLM on this machine's GPU: `python -m calibrate.measure`, raw records under
`calibrate/measurements/`.
"""

import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from calibrate.adapters import AdapterStore
from calibrate.engine import require_vllm
from calibrate.phases import (
    Bench,
    backlog,
    decode,
    host_cache,
    loads,
    long_prompts,
    mixed,
    reference,
    waiting,
    warm_up,
)
from calibrate.records import write_records
from sim.cli import hydra_entry
from sim.errors import UserError
from sim.fields import plain_values


def plan(settings: list[dict[str, int]], repeats: int) -> list[tuple[str, dict[str, int]]]:
    """Return the engine runs as (name, engine settings): every choice of `engines` once, then all again."""
    return [
        (f"{'-'.join(f'{key}{value}' for key, value in engine.items())}-run{repeat}", engine)
        for repeat in range(repeats)
        for engine in settings
    ]


def mixed_cells(
    rng: np.random.Generator, config: dict[str, Any], max_loras: int, budget: int
) -> list[tuple[int, int, int, int]]:
    """Draw cells (decoding, prefill tokens, prefill requests, adapters) of at most `budget` tokens.

    All token counts occur; the rest is drawn at random.
    """
    counts = [0, 1, 1, 4, 8, max_loras]
    cells = []
    for tokens in config["prefill_tokens"] * config["mixed_rounds"]:
        parts = int(rng.choice([1, 1, 4]))
        cells.append((int(rng.choice(config["mixed_decoding"])), tokens, parts, int(rng.choice(counts))))
    return [cell for cell in cells if cell[1] + cell[0] <= budget]


def measure_engine(name: str, engine: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    """Start one engine and run all phases in it; `meta.json`, written last, marks the run as complete."""
    from calibrate.engine import VllmEngine
    from calibrate.machine import describe_engine, describe_machine
    from calibrate.probe import Probe

    began = time.time()
    seed = config["seed"] + int(name.rpartition("run")[2])
    rng = np.random.default_rng([seed, engine["max_loras"], engine["max_lora_rank"]])
    store = AdapterStore(
        Path(config["adapters_dir"]), config["model"], engine["max_lora_rank"], config["adapter_files"]
    )
    vllm = VllmEngine(config["model"], {**config["engine"], **engine}, store, seed)
    started = time.time()
    probe = Probe(vllm)
    budget = config["engine"]["max_num_batched_tokens"]
    run_phases(Bench(vllm, probe, engine["max_loras"], budget, rng), config["phases"])
    steps, swaps = probe.tables()
    meta = {
        "name": name,
        "settings": {**config["engine"], **engine},
        "model": config["model"],
        "seed": seed,
        "engine_start_s": round(started - began, 1),
        "measuring_s": round(time.time() - started, 1),
        **describe_machine(),
        **describe_engine(vllm),
    }
    write_records(folder, {"steps": steps, "swaps": swaps}, meta)


def run_phases(bench: Bench, phases: dict[str, Any]) -> None:
    """Run all phases in order on a started engine."""
    warm_up(bench)
    reference(bench)
    for grid in phases["decode"]:
        decode(bench, grid["context"], list(grid["batches"]), list(grid["adapters"]), phases["decode_steps"])
    mixed(
        bench,
        mixed_cells(bench.rng, phases, bench.max_loras, bench.budget),
        phases["mixed_decoding"],
        phases["mixed_repeats"],
    )
    long_prompts(bench, phases["long_prompts"])
    tokens = bench.rng.choice(phases["prefill_tokens"], phases["backlog_cells"])
    backlog(
        bench, [(int(t), int(bench.rng.choice([0, 1, 8, bench.max_loras]))) for t in tokens if t <= 4096], 32
    )
    for batch in (0, 32):
        loads(bench, phases["loads"], phases["loads"], batch)
    for entries in phases["host_cache_entries"]:
        host_cache(bench, entries, [1, 8, 32, bench.max_loras], 64, phases["decode_steps"])
    waiting(bench, phases["waiting"], phases["decode_steps"])


def task(cfg: DictConfig) -> None:
    """Measure every engine run of the plan that is not there yet, each in a process of its own."""
    config = plain_values(cfg)
    root = Path(config["out"]) / config["host"] / Path(config["model"]["name"]).name
    runs = plan(config["engines"], config["repeats"])
    require_vllm()
    missing = [run for run in runs if not (root / run[0] / "meta.json").exists()]
    print(f"{len(runs)} engine runs, {len(runs) - len(missing)} of them measured already; results in {root}")
    for name, engine in tqdm(missing, desc="engine runs", file=sys.stderr):
        process = multiprocessing.get_context("spawn").Process(
            target=measure_engine, args=(name, engine, config, root / name)
        )
        process.start()
        process.join()
        if process.exitcode:
            raise UserError(
                f"engine run {name} failed with exit status {process.exitcode}: see vLLM's messages above; "
                "runs measured so far are kept, and the same command goes on from there"
            )


def main() -> None:
    """Entry point."""
    hydra_entry(task, "measure", "calibrate.measure")


if __name__ == "__main__":
    main()
