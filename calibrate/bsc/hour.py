"""One of the study's hours, simulated."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import simpy

from calibrate.bsc.client import Client
from calibrate.bsc.front_end import FrontEnd, FrontEndCosts
from calibrate.bsc.settings import Setting, adapter_name
from policies.admission import OneQueue
from policies.eviction import Lru
from sim import profile
from sim.adapters import AdapterEvent, AdapterTiers
from sim.config import EngineConfig, ModelConfig
from sim.cudagraph import CudaGraphs
from sim.engine import Engine
from sim.errors import DoesNotFit
from sim.fast_forward import DecodeRun
from sim.fast_scheduler import make_scheduler
from sim.garbage import rarely_collecting_garbage
from sim.kv_blocks import KVBlockPool
from sim.lora_grid import lora_grid
from sim.memory import num_gpu_blocks
from sim.metrics import NS_PER_MS, NS_PER_S
from sim.request import Request
from sim.scheduler import StepPlan
from sim.steps import StepRecord


@dataclass(frozen=True)
class Hour:
    """What a simulated run would have reported; NaN or 0 where it would not have started."""

    status: str
    """`ok`, or `oom`: the engine does not start for want of GPU memory."""
    kv_tokens: int = 0
    completed: int = 0
    sent: float = 0.0
    in_tok_s: float = 0.0
    out_tok_s: float = 0.0
    mean_ttft_ms: float = np.nan
    med_ttft_ms: float = np.nan
    p99_ttft_ms: float = np.nan
    mean_itl_ms: float = np.nan
    num_running_mean: float = np.nan
    num_preempted: int = 0
    adapter_activations: int = 0
    engine_steps: int = 0
    metrics_lines: int = 0

    def columns(self) -> dict[str, Any]:
        """Return the columns that are added to a row."""
        return {f"sim_{name}": value for name, value in asdict(self).items()}


class _Counter:
    """Counts steps, preemptions and activations; tells the front end and the client."""

    def __init__(self, client: Client, front_end: FrontEnd) -> None:
        self._client, self._front_end = client, front_end
        self.num_steps = self.num_preemptions = self.num_activations = 0

    def on_step(self, record: StepRecord) -> None:
        """Count a step."""
        self.num_steps += 1
        for event in record.events:
            self.num_activations += event.kind == "activate"
        self._front_end.on_step()

    def on_run(self, run: DecodeRun) -> None:
        """Count steps that are alike."""
        self.num_steps += run.num_steps
        self._front_end.on_run(run)

    def on_tokens(self, plan: StepPlan, now_ns: int) -> None:
        """Tell the front end; requests tell the client when they are complete."""
        self._front_end.on_tokens(plan, now_ns)

    def on_preempt(self, request: Request, now_ns: int) -> None:
        """Count a preemption."""
        self.num_preemptions += 1
        self._front_end.on_preempt(request)

    def on_swaps(self, events: Sequence[AdapterEvent], now_ns: int) -> None:
        """Nothing comes or goes beside the engine's work."""

    def on_finish(self, request: Request, now_ns: int) -> None:
        """Pass a completion on."""
        self._front_end.on_finish(request)
        self._client.on_finished(request)


@dataclass(frozen=True)
class Server:
    """What all runs of a model have in common."""

    engine: EngineConfig
    """Its flags but for those of a row."""
    model: ModelConfig
    profile: Mapping[str, Any]
    front_end: FrontEndCosts


def simulate(setting: Setting, server: Server, seed: int) -> Hour:
    """Return what the run of `setting` would report; a pure function of the arguments."""
    model, settings = server.model, server.profile
    config = setting.engine(server.engine, model)
    fitted = profile.load(settings, config, model, set(setting.adapter_ranks), seed)
    try:
        num_blocks = num_gpu_blocks(config, model, fitted.memory)
    except DoesNotFit:
        return Hour("oom")
    env = simpy.Environment()
    adapters = [adapter_name(index) for index in range(setting.num_adapters)]
    front_end = FrontEnd(adapters, server.front_end, seed)
    client = Client(env, setting, front_end, seed)
    counter = _Counter(client, front_end)
    tiers = AdapterTiers(config.max_loras, config.host_cache_entries, Lru(), Lru(), seed)
    tiers.fill(config.warm_host_cache, ())
    engine = Engine(
        env,
        config,
        make_scheduler(config, KVBlockPool(num_blocks, config.block_size), OneQueue()),
        tiers,
        CudaGraphs(config),
        fitted.costs,
        counter,
        {adapter_name(index): rank for index, rank in enumerate(setting.adapter_ranks)},
        lora_grid=lora_grid(settings, model, config),
    )
    client.start(engine)
    with rarely_collecting_garbage():
        env.run(round(setting.duration_s * NS_PER_S))
    return _report(setting, client, front_end, counter, num_blocks * config.block_size)


def _report(setting: Setting, client: Client, front_end: FrontEnd, counter: _Counter, kv_tokens: int) -> Hour:
    ttfts_ms = np.array(client.ttfts_ns, dtype=float) / NS_PER_MS
    some = len(ttfts_ms) > 0
    num_gaps = client.num_gaps * (1 - front_end.num_merged / max(front_end.num_gaps, 1))
    return Hour(
        status="ok",
        kv_tokens=kv_tokens,
        completed=client.num_completed,
        sent=client.sent_in(setting.duration_s),
        in_tok_s=client.num_input_tokens / setting.duration_s,
        out_tok_s=client.num_output_tokens / setting.duration_s,
        mean_ttft_ms=float(ttfts_ms.mean()) if some else np.nan,
        med_ttft_ms=float(np.median(ttfts_ms)) if some else np.nan,
        p99_ttft_ms=float(np.quantile(ttfts_ms, 0.99)) if some else np.nan,
        mean_itl_ms=client.gaps_ns / num_gaps / NS_PER_MS if num_gaps else np.nan,
        num_running_mean=client.gaps_ns / NS_PER_S / setting.duration_s,
        num_preempted=counter.num_preemptions,
        adapter_activations=counter.num_activations,
        engine_steps=counter.num_steps,
        metrics_lines=front_end.num_lines,
    )
