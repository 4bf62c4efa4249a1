"""One simulation: from a resolved configuration to a result."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import simpy
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from sim import profile, results
from sim.adapters import AdapterTiers
from sim.client import Client
from sim.config import EngineConfig, RunConfig
from sim.cudagraph import CudaGraphs
from sim.engine import Engine, Place, Turn
from sim.errors import UserError
from sim.fast_scheduler import make_scheduler
from sim.kv_blocks import KVBlockPool
from sim.lora_grid import lora_grid
from sim.memory import check_host_memory, num_gpu_blocks
from sim.metrics import NS_PER_S
from sim.prefix_cache import PrefixCachingBlockPool
from sim.recorder import Recorder, StepLog
from sim.replicas import Router, replica_seed
from sim.results import Result
from sim.serve_command import vllm_serve_command
from sim.summary import requests_table, summarise, with_replica
from sim.workload import Traffic, traffic


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
    env = simpy.Environment()
    arriving = traffic(config.workload, config.seed)
    client = Client(env, config.workload, config.engine, arriving)
    ranks = _ranks(arriving, config.engine)
    turn = Turn()
    replicas = [
        _Replica(env, config, client, ranks, Place(number, turn)) for number in range(config.replicas)
    ]
    client.start(Router([replica.engine for replica in replicas], _policy(config.routing, "routing")))
    end_ns = _play(env, config, client, arriving)
    for replica in replicas:
        replica.engine.settle()
    summary = {
        "schema_version": results.SCHEMA_VERSION,
        "status": "ok",
        "message": "",
        "seed": config.seed,
        **summarise(client, [replica.recorder for replica in replicas], end_ns),
        "kv_blocks": replicas[0].kv_blocks,
        "vllm_serve_command": vllm_serve_command(config.engine, config.model),
        "profile": {
            "name": replicas[0].profile.name,
            "sha256": replicas[0].profile.sha256,
            "outside_range": list(
                dict.fromkeys(text for replica in replicas for text in replica.profile.outside_range())
            ),
        },
        **({} if arriving.trace is None else {"trace": arriving.trace.report()}),
        "config": dict(cfg),
    }
    return Result(summary, requests_table(client, config.replicas), _steps_table(replicas))


class _Replica:
    """One engine with all that belongs to it."""

    def __init__(
        self, env: simpy.Environment, config: RunConfig, client: Client, ranks: dict[str, int], place: Place
    ) -> None:
        self.place = place
        engine, model, seed = config.engine, config.model, replica_seed(config.seed, place.rank)
        self.profile = profile.load(config.profile, engine, model, set(ranks.values()), seed)
        check_host_memory(engine, model, self.profile.memory, ranks.values())
        self.kv_blocks = num_gpu_blocks(engine, model, self.profile.memory)
        self.recorder = _recorder(config, client)
        self.engine = _engine(env, config, self, ranks, seed)


def _ranks(arriving: Traffic, engine: EngineConfig) -> dict[str, int]:
    """Rank of every adapter that can be served."""
    ranks = {name: engine.max_lora_rank if rank is None else rank for name, rank in arriving.ranks.items()}
    return {name: rank for name, rank in ranks.items() if rank <= engine.max_lora_rank}


def _steps_table(replicas: Sequence[_Replica]) -> pa.Table | None:
    logs = [replica.recorder.step_log for replica in replicas]
    tables = [log.table() for log in logs if log is not None]
    if len(tables) > 1:
        tables = [with_replica(table, [number] * len(table)) for number, table in enumerate(tables)]
    return pa.concat_tables(tables) if tables else None


def _recorder(config: RunConfig, client: Client) -> Recorder:
    return Recorder(
        start_ns=round(config.warmup_s * NS_PER_S),
        end_ns=_duration_ns(config),
        on_finished=client.on_finished,
        step_log=StepLog() if config.record.steps else None,
    )


def _engine(
    env: simpy.Environment, config: RunConfig, replica: _Replica, ranks: Mapping[str, int], seed: int
) -> Engine:
    engine = config.engine
    pool_class = PrefixCachingBlockPool if engine.enable_prefix_caching else KVBlockPool
    kv = pool_class(replica.kv_blocks, engine.block_size)
    scheduler = make_scheduler(engine, kv, _policy(config.admission, "admission"))
    slots_policy, host_policy = (_policy(config.eviction, "eviction") for _ in range(2))
    tiers = AdapterTiers(engine.max_loras, engine.host_cache_entries, slots_policy, host_policy, seed)
    tiers.fill(engine.initial_host_cache, engine.initial_slots)
    costs, recorder = replica.profile.costs, replica.recorder
    grid = lora_grid(config.profile, config.model, engine)
    graphs = CudaGraphs(engine)
    return Engine(env, engine, scheduler, tiers, graphs, costs, recorder, ranks, replica.place, grid)


def _policy(settings: Mapping[str, Any], group: str) -> Any:
    """Make a new policy object of the class that ``_target_`` names."""
    try:
        return instantiate(settings)
    except InstantiationException as error:
        raise UserError(f"{group}: {' '.join(str(error).split())}") from error


def _play(env: simpy.Environment, config: RunConfig, client: Client, arriving: Traffic) -> int:
    """Let the run happen and return its end in ns: ``duration_s``, or earlier when all is done."""
    duration_ns = _duration_ns(config)
    env.run(duration_ns)
    all_done = len(client.requests) == arriving.num_requests and client.num_in_flight == 0
    end_ns = duration_ns
    if end_ns is None or all_done:
        ends = (request.finish_ns or request.abort_ns or 0 for request in client.requests)
        end_ns = max(ends, default=0)
    if end_ns < config.warmup_s * NS_PER_S:
        raise UserError(f"warmup_s={config.warmup_s}: the run was over after {end_ns / NS_PER_S} s")
    return end_ns


def _duration_ns(config: RunConfig) -> int | None:
    duration_s = config.workload.duration_s
    return None if duration_s is None else round(duration_s * NS_PER_S)
