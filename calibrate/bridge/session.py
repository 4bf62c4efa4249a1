"""The policies in force in one engine, and everything that they were introduced to."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calibrate.bridge.adapter_check import AdapterCheck
from calibrate.bridge.adapter_file import AdapterError, read_config
from calibrate.bridge.costs import AdapterSizes, expected_costs
from calibrate.bridge.guard import GuardedAdmission, GuardedEviction
from calibrate.bridge.live_engine import LiveEngine
from calibrate.bridge.live_request import LiveRequest
from calibrate.bridge.names import AdapterNames
from calibrate.bridge.prefetcher import Prefetcher
from calibrate.bridge.settings import PolicySettings
from calibrate.bridge.tier import LiveTier
from calibrate.bridge.waiting_queue import PolicyQueue
from policies.admission import vllm_queue
from sim.config import EngineConfig

LOGGER = "vllm.lorasim"
"""A child of vLLM's logger, so that vLLM's handlers and levels hold."""

logger = logging.getLogger(LOGGER)


class Session:
    """One set of policies, from `Bridge.set_policy` to the next.

    Raises UserError for settings that make no policies.
    """

    def __init__(
        self,
        settings: PolicySettings,
        vllm_config: Any,
        names: AdapterNames,
        manager: Any,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.names = names
        self.in_one_piece = settings.swaps == "one_piece"
        """Whether adapters are read, and copied to their slots, in one piece."""
        self._ranks: dict[str, int] = {}
        self._failed: list[tuple[str, str]] = []
        self._epoch_ns = clock() - time.time_ns()
        config = self._config = engine_config(vllm_config)
        of_engine = asdict(config)
        profile = settings.profile_settings()
        sizes = AdapterSizes(self._rank, manager.adapter_bytes() / config.max_lora_rank)
        self.engine = LiveEngine(config, lambda cache: expected_costs(profile, config, sizes, cache), clock)
        costs = self.engine.costs
        self.admission = GuardedAdmission(
            settings.make_admission(of_engine), lambda: vllm_queue(config.scheduling_policy), _report
        )
        self.admission.bind(self.engine)
        slots = GuardedEviction(settings.make_eviction(of_engine), "GPU slots", _report)
        host = GuardedEviction(settings.make_host_eviction(of_engine), "host cache", _report)
        of_slots, of_host = self.engine.slots, self.engine.host_cache
        self.slots = LiveTier(self.engine, config.max_loras, of_slots, costs.activate_ns, slots)
        self.host = LiveTier(self.engine, config.host_cache_entries, of_host, costs.load_ns, host)
        self._check = AdapterCheck(config.max_lora_rank)
        prefetch = settings.make_prefetch(of_engine)
        self.prefetcher = None if prefetch is None else Prefetcher(prefetch, self, manager, _report)

    def attach(self, queue: PolicyQueue) -> None:
        """The scheduler's waiting queue is there."""
        if self.prefetcher is not None:
            self.prefetcher.attach(queue)

    def before_step(self) -> None:
        """A step is about to be put together."""
        if self.prefetcher is not None:
            self.prefetcher.advance()

    def describe(self, request: Any) -> LiveRequest:
        """Return what policies see of a request of vLLM's."""
        lora_request = request.lora_request
        return LiveRequest(
            request,
            request.request_id,
            round(request.arrival_time * 1e9) + self._epoch_ns,
            request.priority,
            None if lora_request is None else self.names.key(lora_request),
            request.num_prompt_tokens,
            request.max_tokens,
        )

    def problem(self, lora_request: Any) -> str | None:
        """Return why requests for this adapter must not be scheduled, if so."""
        if self.names.key(lora_request) in self.engine.host_cache:
            return None
        return self._check.problem(lora_request)

    def fail(self, key: str, problem: str) -> None:
        """An adapter cannot be loaded: its requests are to end."""
        self._check.failed(self.names.lora_request(key), problem)
        self._failed.append((key, problem))

    def take_failed(self) -> list[tuple[str, str]]:
        """Return each adapter that has failed since the last call, and why."""
        failed, self._failed = self._failed, []
        return failed

    def _rank(self, key: str) -> int:
        """The adapter's rank as its configuration has it; `max_lora_rank` where that cannot be read."""
        if key not in self._ranks:
            try:
                rank = read_config(Path(self.names.lora_request(key).lora_path)).get("r")
            except (AdapterError, KeyError):
                rank = None
            self._ranks[key] = rank if isinstance(rank, int) else self._config.max_lora_rank
        return self._ranks[key]


def engine_config(vllm_config: Any) -> EngineConfig:
    """Return vLLM's settings as the simulator has them."""
    scheduler, lora, cache = (
        vllm_config.scheduler_config,
        vllm_config.lora_config,
        vllm_config.cache_config,
    )
    return EngineConfig(
        max_loras=lora.max_loras,
        max_cpu_loras=lora.max_cpu_loras,
        max_lora_rank=lora.max_lora_rank,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        max_model_len=vllm_config.model_config.max_model_len,
        block_size=cache.block_size,
        num_gpu_blocks=cache.num_gpu_blocks,
        gpu_memory_utilization=cache.gpu_memory_utilization,
        enable_prefix_caching=bool(cache.enable_prefix_caching),
        async_scheduling=bool(scheduler.async_scheduling),
        scheduling_policy=scheduler.policy,
        scheduler_reserve_full_isl=scheduler.scheduler_reserve_full_isl,
        specialize_active_lora=lora.specialize_active_lora,
        enforce_eager=vllm_config.model_config.enforce_eager,
        long_prefill_token_threshold=scheduler.long_prefill_token_threshold,
    )


def _report(what: str, error: BaseException) -> None:
    logger.error(
        "The %s policy failed, and vLLM's default takes its place from now on: %s: %s",
        what,
        type(error).__name__,
        error,
        exc_info=error,
    )
