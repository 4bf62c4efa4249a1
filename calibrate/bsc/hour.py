"""One of the study's hours, simulated."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import simpy

from calibrate.bsc.client import Client
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

    def columns(self) -> dict[str, Any]:
        """Return the columns that are added to a row."""
        return {f"sim_{name}": value for name, value in asdict(self).items()}


class _Counter:
    """Counts steps, preemptions and activations; passes completions on."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.num_steps = self.num_preemptions = self.num_activations = 0

    def on_step(self, record: StepRecord) -> None:
        """Count a step."""
        self.num_steps += 1
        for event in record.events:
            self.num_activations += event.kind == "activate"

    def on_run(self, run: DecodeRun) -> None:
        """Count steps that are alike."""
        self.num_steps += run.num_steps

    def on_tokens(self, plan: StepPlan, now_ns: int) -> None:
        """Requests tell when they are complete."""

    def on_preempt(self, request: Request, now_ns: int) -> None:
        """Count a preemption."""
        self.num_preemptions += 1

    def on_swaps(self, events: Sequence[AdapterEvent], now_ns: int) -> None:
        """Nothing comes or goes beside the engine's work."""

    def on_finish(self, request: Request, now_ns: int) -> None:
        """Pass a completion on."""
        self._client.on_finished(request)


def simulate(
    setting: Setting, base: EngineConfig, model: ModelConfig, settings: Mapping[str, Any], seed: int
) -> Hour:
    """Return what the run of `setting` would report with the profile `settings`; a pure function of these."""
    config = setting.engine(base, model)
    fitted = profile.load(settings, config, model, set(setting.adapter_ranks), seed)
    try:
        num_blocks = num_gpu_blocks(config, model, fitted.memory)
    except DoesNotFit:
        return Hour("oom")
    env = simpy.Environment()
    client = Client(env, setting, seed)
    counter = _Counter(client)
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
    env.run(round(setting.duration_s * NS_PER_S))
    return _report(setting, client, counter, num_blocks * config.block_size)


def _report(setting: Setting, client: Client, counter: _Counter, kv_tokens: int) -> Hour:
    ttfts_ms = np.array(client.ttfts_ns, dtype=float) / NS_PER_MS
    some = len(ttfts_ms) > 0
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
        mean_itl_ms=client.gaps_ns / client.num_gaps / NS_PER_MS if client.num_gaps else np.nan,
        num_running_mean=client.gaps_ns / NS_PER_S / setting.duration_s,
        num_preempted=counter.num_preemptions,
        adapter_activations=counter.num_activations,
        engine_steps=counter.num_steps,
    )
