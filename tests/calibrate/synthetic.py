"""Measurement folders as `calibrate.measure` writes them, made up from known costs instead of a GPU."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import yaml

import conf
from calibrate.records import compact
from sim.config import ModelConfig
from sim.fields import build
from sim.memory import slot_bytes
from sim.terms import TERMS

MODEL: dict[str, Any] = yaml.safe_load((Path(conf.__file__).parent / "model/llama_3_1_8b.yaml").read_text())
OVERHEAD_BYTES = 1_500_000_000
NOISE = 0.01

Costs = dict[str, float]
STEPS: dict[str, dict[str, Costs]] = {
    "full": {
        "gpu_ms": {"constant": 6.0, "padded_tokens": 0.01, "kv_tokens": 4e-5, "lora": 1.5, "adapters": 0.3},
        "launch_ms": {"constant": 1.0, "lora": 0.5},
    },
    "piecewise": {
        "gpu_ms": {"constant": 8.0, "padded_tokens": 0.02, "lora": 1.0, "adapters": 0.4},
        "launch_ms": {"constant": 5.0, "lora": 1.0},
    },
    "none": {
        "gpu_ms": {"constant": 9.0, "padded_tokens": 0.04, "attention_work": 1e-6, "adapters": 0.5},
        "launch_ms": {"constant": 20.0, "lora": 15.0},
    },
}
HOST: dict[str, Costs] = {
    "schedule_ms": {"constant": 0.3, "reqs": 0.005, "waiting": 0.002, "cache_entries_adapters": 1e-5},
    "prepare_ms": {"constant": 0.4, "reqs": 0.001},
    "remap_ms": {"constant": 1.2, "reqs": 0.002},
    "update_ms": {"constant": 0.1, "reqs": 0.003},
}
SWAPS = {"load_growing": (20.0, 4.0), "load_recycled": (10.0, 1.0), "activate": (4.0, 0.5)}
"""Kind -> (ms, ms for each of the adapter's rank)."""


def total(costs: Costs, step: Any) -> float:
    """Sum of costs of a step, in ms."""
    return float(sum(value * TERMS[term].count(step) for term, value in costs.items()))


def decode_cells(max_loras: int) -> Iterator[dict[str, Any]]:
    for batch in (128, 64, 16, 4, 1):
        for count in sorted({0, 1, 4, 8, max_loras}):
            for context, waiting, entries in ((128, 0, 10), (2000, 0, 300), (128, 500, 1000)):
                if count <= min(batch, max_loras):
                    yield {
                        "phase": "decode",
                        "cell": f"batch={batch} adapters={count} context={context}",
                        "graph": "full",
                        "num_reqs": batch,
                        "num_tokens": batch,
                        "num_padded_tokens": batch,
                        "num_prefill_tokens": 0,
                        "num_prefill_reqs": 0,
                        "attention_work": 0,
                        "kv_tokens": batch * context,
                        "num_adapters": count,
                        "num_waiting": waiting,
                        "host_cache_entries": entries,
                    }


def mixed_cells(max_loras: int) -> Iterator[dict[str, Any]]:
    for decoding in (0, 8, 128):
        for tokens in (64, 128, 300, 500, 800, 1500, 3000, 6000):
            for count in sorted({0, 1, 4, max_loras}):
                num_tokens = decoding + tokens
                yield {
                    "phase": "mixed",
                    "cell": f"decoding={decoding} tokens={tokens} parts=1 adapters={count}",
                    "graph": "piecewise" if num_tokens <= 512 else "none",
                    "num_reqs": decoding + 1,
                    "num_tokens": num_tokens,
                    "num_padded_tokens": -(-num_tokens // 8) * 8 if num_tokens <= 512 else num_tokens,
                    "num_prefill_tokens": tokens,
                    "num_prefill_reqs": 1,
                    "attention_work": tokens * tokens // 2,
                    "kv_tokens": decoding * 128,
                    "num_adapters": min(count, decoding + 1),
                    "num_waiting": 0,
                    "host_cache_entries": max_loras,
                }


class Recorder:
    """Lets steps happen on a host and a GPU, two deep, and notes what calibrate.probe would."""

    def __init__(self, max_loras: int, rank: int, seed: int) -> None:
        self.max_loras, self.rank = max_loras, rank
        self.rng = np.random.default_rng([seed, max_loras, rank])
        self.steps: list[dict[str, Any]] = []
        self.swaps: list[dict[str, Any]] = []
        self._host_s, self._gpu_s, self._update_end_s = 100.0, 0.0, 0.0

    def seconds(self, milliseconds: float) -> float:
        return float(milliseconds * self.rng.normal(1, NOISE)) / 1e3

    def step(self, cell: dict[str, Any], remapped: bool, swaps: dict[str, float] | None = None) -> None:
        """Record a step; `swaps`: kind -> seconds of what it loads and activates."""
        swaps = swaps or {}
        shape = SimpleNamespace(**cell, max_loras=self.max_loras, max_lora_rank=self.rank)
        host = {name: self.seconds(total(costs, shape)) for name, costs in HOST.items()}
        gpu, launch = (self.seconds(total(costs, shape)) for costs in STEPS[shape.graph].values())
        start = self._host_s
        gpu_begin = max(start + host["schedule_ms"] / 2, self._gpu_s)
        lora_start = start + 0.8 * host["schedule_ms"]
        mapping_start = lora_start + 0.2 * host["schedule_ms"] + sum(swaps.values())
        if remapped:
            launch_start = max(mapping_start, gpu_begin) + host["remap_ms"]
            lora_end = launch_start - 0.3 * host["remap_ms"]
        else:
            lora_end = mapping_start
            launch_start = lora_end + host["prepare_ms"]
        launch_end = launch_start + launch
        gpu_forward = max(launch_start, gpu_begin)
        gpu_end = max(gpu_forward + gpu, launch_end)
        self.steps.append(
            {
                "phase": cell["phase"],
                "cell": cell["cell"],
                "schedule_start_s": start,
                "schedule_end_s": start + host["schedule_ms"] / 3,
                **{key: value for key, value in cell.items() if key not in ("phase", "cell")},
                "num_lora_tokens": cell["num_tokens"] if cell["num_adapters"] else 0,
                "loads": sum(kind != "activate" for kind in swaps),
                "load_s": sum(seconds for kind, seconds in swaps.items() if kind != "activate"),
                "activates": sum(kind == "activate" for kind in swaps),
                "activate_s": swaps.get("activate", 0.0),
                "mapping_s": lora_end - mapping_start,
                "num_preempted": 0,
                "execute_start_s": start + host["schedule_ms"] / 2,
                "lora_case": self.max_loras + 1 if cell["num_adapters"] else 0,
                "lora_start_s": lora_start,
                "lora_end_s": lora_end,
                "launch_start_s": launch_start,
                "sample_start_s": launch_end - launch / 10,
                "launch_end_s": launch_end,
                "result_start_s": launch_end,
                "result_end_s": gpu_end,
                "update_start_s": gpu_end,
                "update_end_s": gpu_end + host["update_ms"],
                "gpu_begin_s": gpu_begin,
                "gpu_forward_s": gpu_forward,
                "gpu_end_s": gpu_end,
            }
        )
        self._host_s = max(launch_end, self._update_end_s)
        self._gpu_s, self._update_end_s = gpu_end, gpu_end + host["update_ms"]

    def load(self, cell: dict[str, Any], kind: str, number: int, entries: int) -> None:
        """Record a step that loads one adapter beside `entries` others, and activates it."""
        seconds = {
            name: self.seconds(SWAPS[name][0] + SWAPS[name][1] * self.rank) for name in (kind, "activate")
        }
        for name, present in ((kind, entries), ("activate", entries + 1)):
            self.swaps.append(
                {
                    "phase": cell["phase"],
                    "cell": cell["cell"],
                    "step": len(self.steps),
                    "kind": name.partition("_")[0],
                    "adapter": f"{kind}-{number}" if name == kind else str(number),
                    "rank": self.rank,
                    "start_s": self._host_s,
                    "read_s": 0.0 if name == "activate" else seconds[name] / 2,
                    "duration_s": seconds[name],
                    "host_cache_entries": present,
                    "num_running": cell["num_reqs"],
                }
            )
        self.step({**cell, "host_cache_entries": entries}, remapped=True, swaps=seconds)


def reference(recorder: Recorder) -> None:
    """Record what a validation repeats: steps without a graph, loads, activations."""
    eager = next(cell for cell in mixed_cells(recorder.max_loras) if cell["graph"] == "none")
    for number in range(10):
        recorder.step({**eager, "phase": "reference", "cell": "eager"}, remapped=True)
        recorder.load(
            {**next(decode_cells(1)), "phase": "reference", "cell": "swap", "num_adapters": 1},
            "load_growing",
            number,
            entries=number,
        )


def record(max_loras: int, rank: int, seed: int) -> Recorder:
    """Record all phases of an engine run."""
    recorder = Recorder(max_loras, rank, seed)
    reference(recorder)
    for cell in (*decode_cells(max_loras), *mixed_cells(max_loras)):
        for number in range(3):
            recorder.step(cell, remapped=number == 0)
    idle = {**next(decode_cells(max_loras)), "phase": "load", "num_adapters": 1}
    for number in range(10):
        # The reference run's adapters have left; their memory has not.
        recorder.load({**idle, "cell": "fresh batch=0"}, "load_recycled", number, entries=number)
    for number in range(10, 20):
        recorder.load({**idle, "cell": "fresh batch=0"}, "load_growing", number, entries=number)
    for number in range(20):
        recorder.load({**idle, "cell": "recycled batch=0"}, "load_recycled", number, entries=19)
    return recorder


def meta(max_loras: int, rank: int, run: int) -> dict[str, Any]:
    """Return a run's meta.json."""
    model = build(ModelConfig, MODEL, "model")
    requested = 76_000_000_000
    return {
        "name": f"max_loras{max_loras}-max_lora_rank{rank}-run{run}",
        "settings": {
            "max_cpu_loras": 1200,
            "max_num_seqs": 256,
            "max_loras": max_loras,
            "max_lora_rank": rank,
        },
        "model": MODEL,
        "seed": run,
        "engine_start_s": 100.0,
        "measuring_s": 60.0,
        "gpu": "NVIDIA H100 80GB HBM3",
        "driver": "580.0",
        "gpu_memory_mib": 81559,
        "cpu": "Some CPU",
        "cpu_cores": 16,
        "host_memory_bytes": 135_000_000_000,
        "python": "3.12.3",
        "versions": {"vllm": "0.25.1"},
        "date": f"2026-01-0{1 + run}T00:00:00+00:00",
        "num_gpu_blocks": 27000,
        "memory": {
            "total_bytes": 85_000_000_000,
            "requested_bytes": requested,
            "weights_bytes": model.weight_bytes(),
            "peak_activation_bytes": 1_200_000_000,
            "non_torch_bytes": 240_000_000,
            "cudagraph_estimate_bytes": 0,
            "available_kv_cache_bytes": (
                requested - model.weight_bytes() - max_loras * slot_bytes(model, rank) - OVERHEAD_BYTES
            ),
        },
        "vllm_config": {},
    }


def write_measurements(root: Path) -> None:
    """Write two runs with other values of `max_loras` and one with another rank below `root`."""
    for max_loras, rank, run in ((8, 16, 0), (32, 16, 0), (8, 64, 0)):
        described = meta(max_loras, rank, run)
        folder = root / described["name"]
        folder.mkdir(parents=True)
        recorded = record(max_loras, rank, run)
        for name, rows in (("steps", recorded.steps), ("swaps", recorded.swaps)):
            compact(pd.DataFrame(rows)).to_parquet(folder / f"{name}.parquet", compression="zstd")
        (folder / "meta.json").write_text(json.dumps(described, indent=1, sort_keys=True))
