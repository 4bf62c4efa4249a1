"""One simulation: from a resolved configuration to a result."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import simpy

from sim import results
from sim.ceiling import ceiling
from sim.client import Client
from sim.compiled.limits import LeavesCompiledError
from sim.config import EngineConfig, RunConfig
from sim.engine import Observer, Place, Turn
from sim.errors import UserError
from sim.fallback import Fallback
from sim.garbage import rarely_collecting_garbage
from sim.gateway import Gateway
from sim.ledger import Ledger
from sim.logs import Logs
from sim.memory import never_admitted
from sim.metrics import NS_PER_S
from sim.policy.bridged import bridged_policies
from sim.policy.future import WorkloadFuture
from sim.policy.objects import policy
from sim.recorder import Recorder, StepLog
from sim.replica import Replica, Shared, naming_the_step
from sim.request import Request
from sim.results import Result
from sim.router import Router
from sim.serve_command import vllm_serve_command
from sim.summary import gateway_metrics, requests_table, summarise, with_replica
from sim.trace import perfetto_trace
from sim.workload import Traffic, traffic
from sim.workload.without_effect import without_effect


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
    try:
        return _simulate(cfg, config, compiled=True)
    except LeavesCompiledError:
        return _simulate(cfg, config, compiled=False)


def _simulate(cfg: Mapping[str, Any], config: RunConfig, compiled: bool) -> Result:
    env = simpy.Environment()
    arriving = traffic(config.workload, config.seed)
    ledger = Ledger()
    client = Client(env, config.workload, config.engine, arriving, ledger)
    future = WorkloadFuture(config.workload, config.seed, lambda: len(ledger.requests))
    shared = Shared(env, config, _ranks(arriving, config.engine), future, compiled)
    records = [Records(config, client.on_finished) for _ in range(config.replicas)]
    replicas: list[Replica] = []
    turn = Turn()
    with naming_the_step(env, replicas):
        for number, record in enumerate(records):
            replicas.append(Replica(shared, Place(number, turn), record.observe))
        gateway = _gateway(env, config, client, replicas)
        client.on_done = lambda: _stop_loaders(replicas)
        client.start(gateway)
        end_ns = _play(env, config, client)
        _settle(replicas, gateway)
    summary = {
        "schema_version": results.SCHEMA_VERSION,
        "status": "ok",
        "message": "",
        "seed": config.seed,
        **summarise(ledger, [record.recorder for record in records], end_ns, config),
        **({"gateway": gateway_metrics(gateway)} if config.has_gateway else {}),
        **({"ceiling": ceiling(config)} if config.bound == "throughput" else {}),
        **_description(config, replicas, arriving),
        "config": dict(cfg),
    }
    return _result(config, summary, ledger, records, end_ns)


def _description(config: RunConfig, replicas: Sequence[Replica], arriving: Traffic) -> dict[str, Any]:
    """Return what ``summary.json`` says of a run beside its metrics."""
    policy_file = None if bridged_policies(config) is None else results.POLICY_FILE
    outside_range = (text for replica in replicas for text in replica.profile.outside_range())
    profile = replicas[0].profile
    warnings = [
        *config.engine.refused_by_vllm(),
        *never_admitted(config.engine, replicas[0].num_gpu_blocks),
        *_warm_in_vain(config.engine, arriving),
        *without_effect(config.workload, arriving),
        *_late(config, arriving),
    ]
    return {
        "kv_blocks": replicas[0].num_gpu_blocks,
        "vllm_serve_command": vllm_serve_command(config.engine, config.model, policy_file),
        **({"warnings": warnings} if warnings else {}),
        "profile": {
            "name": profile.name,
            "sha256": profile.sha256,
            "outside_range": list(dict.fromkeys(outside_range)),
        },
        **({} if arriving.trace is None else {"trace": arriving.trace.report()}),
    }


def _late(config: RunConfig, arriving: Traffic) -> list[str]:
    """Warn of a trace whose times begin long after the run."""
    if arriving.trace is None or config.workload.mode == "closed":
        return []
    return arriving.trace.late_start(config.warmup_s)


def _warm_in_vain(engine: EngineConfig, arriving: Traffic) -> list[str]:
    """Return a sentence where a warm start has adapters that no request can ask for, as with a typo."""
    unknown = [adapter for adapter in engine.warm_host_cache if adapter not in arriving.ranks]
    return [f"engine.initial_host_cache: no request asks for {', '.join(unknown)}"] if unknown else []


def _result(
    config: RunConfig, summary: dict[str, Any], ledger: Ledger, records: Sequence["Records"], end_ns: int
) -> Result:
    """Return the summary with the tables and files that ``record`` asks for."""
    step_logs = [record.recorder.step_log for record in records]
    return Result(
        summary,
        requests_table(ledger, config.replicas),
        _table_of_all([step_log.table() for step_log in step_logs if step_log is not None]),
        _table_of_all([r.logs.adapters.table() for r in records] if config.record.adapters else []),
        perfetto_trace([r.logs.trace for r in records], end_ns) if config.record.trace else None,
        bridged_policies(config),
    )


class Records:
    """What one replica leaves behind."""

    def __init__(self, config: RunConfig, on_finished: Callable[[Request], None]) -> None:
        self.recorder = Recorder(
            start_ns=round(config.warmup_s * NS_PER_S),
            end_ns=config.duration_ns,
            on_finished=on_finished,
            step_log=StepLog() if config.record.steps else None,
        )
        self.logs = Logs(config.record, config.engine.max_loras)

    def observe(self, slots: Mapping[str, int]) -> Observer:
        """Return who is to be told of the replica's doings."""
        return self.logs.beside(self.recorder, slots)


def _ranks(arriving: Traffic, engine: EngineConfig) -> dict[str, int]:
    """Rank of every adapter that can be served."""
    ranks = {name: engine.max_lora_rank if rank is None else rank for name, rank in arriving.ranks.items()}
    return {name: rank for name, rank in ranks.items() if rank <= engine.max_lora_rank}


def _gateway(
    env: simpy.Environment, config: RunConfig, client: Client, replicas: Sequence[Replica]
) -> Gateway:
    """Return what the client talks to."""
    router = Router([replica.engine for replica in replicas], policy(config.routing, "routing"))
    fallback = None if config.fallback is None else Fallback(env, config.fallback, client.on_finished)
    return Gateway(env, router, client.ledger, config.failover, fallback, client.on_finished)


def _settle(replicas: Sequence[Replica], gateway: Gateway) -> None:
    """Bring everything up to date when the simulation has stopped."""
    for replica in replicas:
        replica.engine.settle()
    if gateway.fallback is not None:
        gateway.fallback.settle()


def _table_of_all(tables: list[pa.Table]) -> pa.Table | None:
    """Return the tables of the replicas as one; None where there are none."""
    if len(tables) > 1:
        tables = [with_replica(table, [number] * len(table)) for number, table in enumerate(tables)]
    return pa.concat_tables(tables) if tables else None


def _stop_loaders(replicas: Sequence[Replica]) -> None:
    """A loader that nobody waits for any more would bring adapters in, and drop them, for ever."""
    for replica in replicas:
        if replica.engine.loader is not None:
            replica.engine.loader.stop()


def _play(env: simpy.Environment, config: RunConfig, client: Client) -> int:
    """Let the run happen and return its end in ns: ``duration_s``, or earlier when all is done."""
    duration_ns = config.duration_ns
    with rarely_collecting_garbage():
        env.run(duration_ns)
    end_ns = duration_ns
    if end_ns is None or client.is_done:
        ends = (request.finish_ns or request.abort_ns or 0 for request in client.ledger.requests)
        end_ns = max(ends, default=0)
    if end_ns < config.warmup_s * NS_PER_S:
        raise UserError(f"warmup_s={config.warmup_s}: the run was over after {end_ns / NS_PER_S} s")
    return end_ns
