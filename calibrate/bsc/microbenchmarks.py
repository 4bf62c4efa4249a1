"""The study's microbenchmarks: what was run, and which steps vLLM's scheduler makes of it.

All requests of a run are alike and there from the start, so that its steps follow from the scheduler alone,
whatever they cost: they are found by simulation, and only their durations are left to be fitted.
"""

import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import simpy
from simpy.events import Event

from calibrate.bsc.tables import read
from policies.admission import OneQueue
from policies.eviction import Lru
from sim.adapters import AdapterEvent, AdapterTiers
from sim.config import EngineConfig, ModelConfig
from sim.costs import ConstantCosts
from sim.cudagraph import CudaGraphs
from sim.engine import Engine
from sim.fast_forward import DecodeRun
from sim.fast_scheduler import make_scheduler
from sim.kv_blocks import KVBlockPool
from sim.memory import MemoryProfile, num_gpu_blocks
from sim.request import Request
from sim.scheduler import StepPlan
from sim.steps import StepRecord
from sim.workload.streams import stream

COLUMNS = (
    *("predictor", "dir", "num_prompts", "duration", "total_input_tokens", "total_output_tokens"),
    *("mean_ttft_ms", "mean_itl_ms", "median_itl_ms"),
)
SHAPE = (
    *("graph", "num_padded_tokens", "num_reqs", "num_tokens", "num_prefill_tokens", "num_prefill_reqs"),
    *("num_adapters", "num_lora_tokens", "max_loras", "max_lora_rank"),
)
"""What steps that are counted together have in common; their `kv_tokens` are averaged."""
PATTERNS = (
    (r"predictor_default_latency/(?P<model>[^/]+)/(?P<kind>\w+)/_(?P<seqs>\d+)__(?P<x>\d+)_(?P<out>\d+)", ""),
    (
        r"predictor_latency_overhead/(?P<model>[^/]+)/(?P<kind>initial)_\w+/output/_(?P<seqs>\d+)__1_(?P<out>\d+)",
        "",
    ),
    (
        r"predictor_latency_overhead/(?P<model>[^/]+)/(?P<kind>overhead)_\w+/output/"
        r"_(?P<seqs>\d+)_(?P<slots>\d+)_(?P<rank>\d+)__1_(?P<out>\d+)_(?P<adapters>\d+)",
        "",
    ),
    (
        r"predictor_latency_overhead/(?P<model>[^/]+)/(?P<kind>find_max_batch)_\w+/"
        r"_(?P<slots>\d+)_(?P<rank>\d+)__(?P<x>\d+)_(?P<out>\d+)",
        "all slots",
    ),
    (r"predictor_(?P<kind>loading)/(?P<model>[^/]+)/adapter_rank_(?P<of>\d+)/_(?P<rank>\d+)_", "one slot"),
)
"""What a run's `dir` says of it."""
DEFAULT_MAX_NUM_SEQS = 256
LOADING_OUTPUT, LOADING_ADAPTERS = 50, 50
SUBMIT_MS = 1.1
"""About how long the front end takes to hand a request to the engine; only for the order of events."""
STEP_MS = 30.0


@dataclass(frozen=True)
class Run:
    """One microbenchmark: closed in that all its requests are there from the start."""

    name: str
    model: str
    kind: str
    """`input`, `output` and `initial` without adapters; `overhead`, `find_max_batch`, `loading` with."""
    num_requests: int
    input_length: int
    output_length: int
    max_num_seqs: int
    num_slots: int
    """0: without LoRA."""
    num_adapters: int
    max_lora_rank: int
    adapter_rank: int
    duration_ms: float
    mean_ttft_ms: float
    mean_itl_ms: float
    median_itl_ms: float


def runs(path: Path) -> list[Run]:
    """Return the runs of the CSV at ``path``. Raises UserError; a `dir` of another pattern is left out."""
    table = read(path, COLUMNS, "microbenchmarks")
    return [run for row in table.to_dict("records") if (run := _run(row)) is not None]


def _run(row: Mapping[Any, Any]) -> Run | None:
    for pattern, note in PATTERNS:
        if found := re.fullmatch(pattern, row["dir"]):
            of = found.groupdict()
            slots = 1 if note == "one slot" else int(of.get("slots") or 0)
            adapters = {"all slots": slots, "one slot": LOADING_ADAPTERS}.get(
                note, int(of.get("adapters") or 0)
            )
            return Run(
                name=row["dir"],
                model=of["model"],
                kind=of["kind"],
                num_requests=int(row["num_prompts"]),
                input_length=round(row["total_input_tokens"] / row["num_prompts"]),
                output_length=int(of.get("out") or LOADING_OUTPUT),
                max_num_seqs=int(of.get("seqs") or DEFAULT_MAX_NUM_SEQS),
                num_slots=slots,
                num_adapters=adapters,
                max_lora_rank=int(of.get("rank") or 8),
                adapter_rank=int(of.get("of") or of.get("rank") or 8),
                duration_ms=1e3 * row["duration"],
                mean_ttft_ms=row["mean_ttft_ms"],
                mean_itl_ms=row["mean_itl_ms"],
                median_itl_ms=row["median_itl_ms"],
            )
    return None


def steps(run: Run, engine: EngineConfig, model: ModelConfig, memory: MemoryProfile) -> pd.DataFrame:
    """Return the distinct shapes of the run's steps (`SHAPE`, mean `kv_tokens`), with two weights.

    `steps` says how many steps had the shape, `gaps` how many gaps between a request's tokens they made.
    """
    config = replace(
        engine,
        max_loras=max(run.num_slots, 1),
        max_cpu_loras=max(run.num_slots, run.num_adapters, 1),
        max_lora_rank=run.max_lora_rank,
        max_num_seqs=run.max_num_seqs,
        enable_prefix_caching=False,
        fast_forward=True,
    )
    env, counter = simpy.Environment(), _Shapes()
    kv = KVBlockPool(num_gpu_blocks(config, model, memory), config.block_size)
    tiers = AdapterTiers(config.max_loras, config.host_cache_entries, Lru(), Lru(), 0)
    scheduler = make_scheduler(config, kv, OneQueue())
    loop = Engine(env, config, scheduler, tiers, CudaGraphs(config), ConstantCosts(STEP_MS), counter)
    env.process(_submit(env, loop, run))
    env.run()
    return counter.table()


def _submit(env: simpy.Environment, engine: Engine, run: Run) -> Generator[Event, None, None]:
    """Send all requests, each with an adapter drawn evenly."""
    drawn = stream(0, run.name).integers(0, max(run.num_adapters, 1), run.num_requests).tolist()
    in_turn = run.kind == "loading"
    for number, adapter in enumerate(drawn):
        index = number % run.num_adapters if in_turn else adapter
        name = f"adapter-{index:04d}" if run.num_adapters else None
        request = Request(str(number), int(env.now), run.input_length, run.output_length, adapter=name)
        engine.submit(request)
        yield env.timeout(round(SUBMIT_MS * 1e6))


class _Shapes:
    """Counts the steps of each shape."""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], list[int]] = {}

    def on_step(self, record: StepRecord) -> None:
        """Count a step."""
        shape = record.shape
        key = tuple(getattr(shape, name) for name in SHAPE)
        entry = self._found.setdefault(key, [0, 0])
        entry[0] += 1
        entry[1] += shape.kv_tokens

    def on_run(self, run: DecodeRun) -> None:
        """Count steps that are alike but for their context."""
        shape, num_steps = run.last.shape, run.num_steps
        key = tuple(getattr(shape, name) for name in SHAPE)
        entry = self._found.setdefault(key, [0, 0])
        entry[0] += num_steps
        entry[1] += num_steps * shape.kv_tokens + shape.num_reqs * (num_steps * (num_steps + 1) // 2)

    def on_tokens(self, plan: StepPlan, now_ns: int) -> None:
        """Steps are enough."""

    def on_preempt(self, request: Request, now_ns: int) -> None:
        """It shows in the steps."""

    def on_swaps(self, events: Sequence[AdapterEvent], now_ns: int) -> None:
        """Nothing comes or goes beside the engine's work."""

    def on_finish(self, request: Request, now_ns: int) -> None:
        """It shows in the steps."""

    def table(self) -> pd.DataFrame:
        """Return a row per shape."""
        table = pd.DataFrame([*self._found], columns=list(SHAPE))
        counts = np.array([*self._found.values()], dtype=float)
        table["steps"] = counts[:, 0]
        table["kv_tokens"] = counts[:, 1] / counts[:, 0]
        table["gaps"] = table.steps * (table.num_reqs - table.num_prefill_reqs)
        return table.assign(num_waiting=0, host_cache_entries=0, num_passed_over=0, attention_work=0)
