"""One simulation: from a resolved configuration to a result."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import simpy
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from sim import profile, results
from sim.adapters import AdapterTiers
from sim.client import Client
from sim.config import RunConfig
from sim.costs import CostModel
from sim.cudagraph import CudaGraphs
from sim.engine import Engine
from sim.errors import UserError
from sim.kv_blocks import KVBlockPool
from sim.memory import check_host_memory, num_gpu_blocks
from sim.metrics import NS_PER_S
from sim.recorder import Recorder, StepLog
from sim.results import Result
from sim.scheduler import AsyncScheduler, Scheduler
from sim.serve_command import vllm_serve_command
from sim.summary import requests_table, run_metrics
from sim.workload import requests


def run(cfg: Mapping[str, Any], out_dir: Path) -> Result:
    """Simulate ``cfg`` and write the result to ``out_dir``. Raises UserError and OSError."""
    result = simulate(cfg)
    results.write(result, out_dir)
    return result


def simulate(cfg: Mapping[str, Any]) -> Result:
    """Return the result of a resolved configuration (plain dicts): a pure function of it.

    Raises UserError for an impossible configuration, DoesNotFit for one that needs too much memory.
    """
    config = RunConfig.from_mapping(cfg)
    engine, model, workload = config.engine, config.model, config.workload
    loaded = profile.load(config.profile, engine, model, config.adapter_rank, config.seed)
    check_host_memory(engine, model, loaded.memory, workload.num_adapters, config.adapter_rank)
    kv_blocks = num_gpu_blocks(engine, model, loaded.memory)
    env = simpy.Environment()
    client = Client(env, workload, requests(workload, config.seed))
    recorder = _recorder(config, client)
    client.start(_engine(env, config, loaded.costs, kv_blocks, recorder))
    end_ns = _play(env, config, client)
    summary = {
        "schema_version": results.SCHEMA_VERSION,
        "status": "ok",
        "message": "",
        "seed": config.seed,
        **run_metrics(client, recorder, end_ns),
        "kv_blocks": kv_blocks,
        "vllm_serve_command": vllm_serve_command(engine, model),
        "profile": {
            "name": loaded.name,
            "sha256": loaded.sha256,
            "outside_range": loaded.outside_range(),
        },
        "config": dict(cfg),
    }
    steps = None if recorder.step_log is None else recorder.step_log.table()
    return Result(summary, requests_table(client), steps)


def _recorder(config: RunConfig, client: Client) -> Recorder:
    return Recorder(
        start_ns=round(config.warmup_s * NS_PER_S),
        end_ns=_duration_ns(config),
        on_finished=client.on_finished,
        step_log=StepLog() if config.record.steps else None,
    )


def _engine(
    env: simpy.Environment, config: RunConfig, costs: CostModel, kv_blocks: int, recorder: Recorder
) -> Engine:
    engine = config.engine
    kv = KVBlockPool(kv_blocks, engine.block_size)
    scheduler_class = AsyncScheduler if engine.async_scheduling else Scheduler
    scheduler = scheduler_class(engine, kv, _policy(config.admission, "admission"))
    slots_policy, host_policy = (_policy(config.eviction, "eviction") for _ in range(2))
    tiers = AdapterTiers(engine.max_loras, engine.host_cache_entries, slots_policy, host_policy, config.seed)
    return Engine(env, engine, scheduler, tiers, CudaGraphs(engine), costs, recorder)


def _policy(settings: Mapping[str, Any], group: str) -> Any:
    """Make a new policy object of the class that ``_target_`` names."""
    try:
        return instantiate(settings)
    except InstantiationException as error:
        raise UserError(f"{group}: {' '.join(str(error).split())}") from error


def _play(env: simpy.Environment, config: RunConfig, client: Client) -> int:
    """Let the run happen and return its end in ns: ``duration_s``, or earlier when all is done."""
    duration_ns = _duration_ns(config)
    env.run(duration_ns)
    num_requests = config.workload.num_requests
    all_done = len(client.requests) == num_requests and client.num_in_flight == 0
    end_ns = duration_ns
    if end_ns is None or all_done:
        end_ns = max((request.finish_ns or 0 for request in client.requests), default=0)
    if end_ns < config.warmup_s * NS_PER_S:
        raise UserError(f"warmup_s={config.warmup_s}: the run was over after {end_ns / NS_PER_S} s")
    return end_ns


def _duration_ns(config: RunConfig) -> int | None:
    duration_s = config.workload.duration_s
    return None if duration_s is None else round(duration_s * NS_PER_S)
