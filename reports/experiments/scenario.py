"""One scenario of an experiment: the figures of its run that tables are made of."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from sim.config import ModelConfig, RunConfig
from sim.memory import slot_bytes
from sim.prices import Prices
from sim.results import read_adapters, read_requests
from sim.sweep.objective import metric
from sim.sweep.runs import Run

HOURS_A_MONTH = 8760 / 12


class Scenario:
    """A run that has an answer."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.values: Mapping[str, Any] = run.summary["config"]
        self.config = RunConfig.from_mapping(self.values)

    @property
    def model(self) -> ModelConfig:
        """The shape of the base model."""
        return self.config.model

    @property
    def replicas(self) -> int:
        """Boxes, with a GPU each."""
        return self.config.replicas

    @property
    def max_lora_rank(self) -> int:
        """The rank that every slot has room for."""
        return self.config.engine.max_lora_rank

    @property
    def gpu(self) -> str | None:
        """The GPU of the profile."""
        name = self.values["profile"].get("provenance", {}).get("gpu")
        return None if name is None else str(name)

    @property
    def profile(self) -> str:
        """The profile's name."""
        return str(self.run.summary["profile"]["name"])

    @property
    def outside_range(self) -> Sequence[str]:
        """Where the run left what the profile has measured."""
        return [str(text) for text in self.run.summary["profile"]["outside_range"]]

    @property
    def failover_at_s(self) -> float | None:
        """When a box is lost."""
        return self.config.failover.at_s

    @property
    def traffic_in_words(self) -> str:
        """How much is asked for."""
        workload = self.values["workload"]
        rate = self.config.workload.offered_rate
        how_many = (
            f"{workload['concurrency']} requests in flight" if rate is None else f"{60 * rate:g} requests/min"
        )
        return (
            f"{how_many}, prompts {workload['input_length']} and answers {workload['output_length']} tokens"
        )

    @property
    def slo_in_words(self) -> str:
        """The targets."""
        slo = self.config.slo
        words = {"TTFT": slo.ttft_ms, "TPOT": slo.tpot_ms, "latency": slo.e2el_ms}
        return " and ".join(f"{name} ≤ {value:g} ms" for name, value in words.items() if value is not None)

    @cached_property
    def requests(self) -> pa.Table:
        """The run's requests, as REQUESTS_SCHEMA."""
        return read_requests(self.run.path)

    @cached_property
    def ranks(self) -> list[int]:
        """The rank of each adapter."""
        workload = self.config.workload
        if workload.adapter_rank is None:
            return [self.max_lora_rank] * workload.num_adapters
        return workload.adapter_rank.draw(self.config.seed, workload.num_adapters)

    def metric(self, name: str) -> float | None:
        """Return a number of ``summary.json``."""
        return metric(self.run.summary, name)

    def metric_of_adapters(self, name: str, per_box: bool = False) -> float | None:
        """Return a number of the group ``adapters``."""
        return self.per_box(f"adapters.{name}") if per_box else self.metric(f"adapters.{name}")

    def per_box(self, name: str) -> float | None:
        """Return a number of all boxes divided by how many they are."""
        value = self.metric(name)
        return None if value is None else value / self.replicas

    @property
    def served_share(self) -> float | None:
        """Requests completed a second, of those offered."""
        offered, done = self.config.workload.offered_rate, self.metric("request_throughput")
        return None if not offered or done is None else done / offered

    @property
    def host_cache_bytes(self) -> int:
        """Adapters of the workload in the host memory of a box when its cache is as full as it gets."""
        cached = sorted(self.ranks, reverse=True)[: self.config.engine.host_cache_entries]
        return self.model.lora_bytes(sum(cached))

    @property
    def slots_bytes(self) -> int:
        """What vLLM reserves on the GPU for all slots."""
        return self.config.engine.max_loras * slot_bytes(self.model, self.max_lora_rank)

    def usd_per_month(self, prices: Prices, num_gpus: int) -> float | None:
        """Return what so many of the profile's GPUs cost a month; None without a price."""
        price = prices.of(self.gpu)
        return None if price is None else price * num_gpus * HOURS_A_MONTH

    def p50_of_swaps_ms(self, kind: str) -> float | None:
        """Return the median duration of a kind of swap, those of the warm-up included."""
        if not self.config.record.adapters:
            return None
        moves = read_adapters(self.run.path)
        pairs = zip(moves.column("kind").to_pylist(), moves.column("duration_ms").to_pylist(), strict=True)
        durations = [duration for name, duration in pairs if name == kind and duration is not None]
        return float(np.median(durations)) if durations else None
