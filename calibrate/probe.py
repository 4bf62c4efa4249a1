"""Records of what every engine step contained and how long its phases took, from hooks around vLLM's own
methods.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pandas as pd

from calibrate.engine import VllmEngine

clock = time.perf_counter


class StepRecord(dict[str, Any]):
    """One row of `steps.parquet` while it is filled in; host times in seconds since the probe's epoch."""


class Probe:
    """Times the phases of each engine step on the host and, with CUDA events, on the GPU; notes loads and
    activations.

    Host phases of a step: `schedule` (Scheduler.schedule), `execute` (up to the forward pass: input
    preparation and `set_active_loras`, and in it `mapping`, which vLLM writes only where it differs from the
    last one, waiting for the GPU as it does so), `launch` (forward pass and sampling), `result` (waiting for
    and fetching the sampled tokens), `update` (Scheduler.update_from_output). On the GPU: `gpu_begin` (the
    stream reaches the step), `gpu_forward` (forward pass begins), `gpu_end` (sampling has ended). With
    asynchronous scheduling a step's result is fetched after the next step's launch.

    A swap of kind `prefetch` is an adapter that calibrate.bridge has taken over from its loader: the duration
    is the engine's own, `read_s` what the loader took beside it.
    """

    def __init__(self, engine: VllmEngine) -> None:
        import torch

        self._cuda = torch.cuda
        self.engine = engine
        self.phase, self.cell = "", ""
        self.steps: list[StepRecord] = []
        self.swaps: list[dict[str, Any]] = []
        self._open: deque[StepRecord] = deque()
        self._events: list[tuple[StepRecord, str, Any]] = []
        self._step: StepRecord | None = None
        self._activated_s = 0.0
        self._epoch, self._epoch_event = 0.0, None
        self._install()
        self.synchronize()

    def label(self, phase: str, cell: str = "") -> None:
        """Name what is measured from now on."""
        self.phase, self.cell = phase, cell

    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return (steps, swaps) recorded so far."""
        self.synchronize()
        return pd.DataFrame(self.steps), pd.DataFrame(self.swaps)

    def synchronize(self) -> None:
        """Wait for the GPU, read the events' times, and tie the GPU's clock to the host's anew.

        CUDA hands out differences as 32-bit floats: within minutes of the epoch they are good to a few
        microseconds.
        """
        self._cuda.synchronize()
        for record, name, event in self._events:
            record[name] = self._epoch + self._epoch_event.elapsed_time(event) / 1e3  # type: ignore[attr-defined]
        self._events.clear()
        event = self._cuda.Event(enable_timing=True)
        event.record()
        self._cuda.synchronize()
        self._epoch, self._epoch_event = clock(), event

    def _mark(self, record: StepRecord, name: str) -> None:
        event = self._cuda.Event(enable_timing=True)
        event.record()
        self._events.append((record, name, event))

    def _install(self) -> None:
        from vllm.v1.worker.gpu import model_runner
        from vllm.v1.worker.gpu.async_utils import AsyncOutput

        engine = self.engine
        self._wrap(engine.scheduler, "schedule", self._schedule)
        self._wrap(engine.scheduler, "update_from_output", self._update)
        self._wrap(engine.runner, "execute_model", self._execute)
        self._wrap(engine.runner, "_set_active_loras", self._set_active_loras)
        self._wrap(engine.runner.kv_connector, "pre_forward", self._forward)
        self._wrap(engine.runner, "sample_tokens", self._sample)
        self._wrap(AsyncOutput, "get_output", self._result)
        self._wrap(model_runner, "dispatch_cg_and_sync_dp", self._dispatch)
        self._wrap(engine.lora_manager, "add_adapter", self._add_adapter)
        self._wrap(engine.lora_manager, "_load_adapter", self._load)
        if hasattr(engine.lora_manager, "adopt"):
            self._wrap(engine.lora_manager, "adopt", self._adopt)
        self._wrap(engine.lora_manager._adapter_manager, "activate_adapter", self._activate)
        self._wrap(engine.lora_manager._adapter_manager, "_set_adapter_mapping", self._set_mapping)

    @staticmethod
    def _wrap(owner: Any, name: str, hook: Callable[..., Any]) -> None:
        original = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: hook(original, *args, **kwargs))

    def _schedule(self, schedule: Callable[..., Any], *args: Any) -> Any:
        start = clock()
        output = schedule(*args)
        end = clock()
        if output.total_num_scheduled_tokens:
            record = StepRecord(phase=self.phase, cell=self.cell, schedule_start_s=start, schedule_end_s=end)
            record.update(step_contents(output.num_scheduled_tokens, self.engine))
            record["num_preempted"] = len(output.preempted_req_ids or ())
            self._step = record
            self._open.append(record)
        return output

    def _execute(self, execute: Callable[..., Any], output: Any, *args: Any, **kwargs: Any) -> Any:
        if output.total_num_scheduled_tokens and self._step is not None:
            self._step["execute_start_s"] = clock()
            self._mark(self._step, "gpu_begin_s")
        return execute(output, *args, **kwargs)

    def _dispatch(self, dispatch: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        answer = dispatch(*args, **kwargs)
        if self._step is not None:
            graph = answer[0]
            self._step["graph"] = graph.cg_mode.name.lower()
            self._step["num_padded_tokens"] = graph.num_tokens
            self._step["lora_case"] = graph.num_active_loras
        return answer

    def _set_active_loras(self, set_active: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = clock()
        set_active(*args, **kwargs)
        if self._step is not None:
            self._step["lora_start_s"], self._step["lora_end_s"] = start, clock()

    def _set_mapping(self, set_mapping: Callable[..., None], mapping: Any) -> None:
        start = clock()
        set_mapping(mapping)
        if self._step is not None:
            self._step["mapping_s"] = clock() - start

    def _forward(self, pre_forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._step is not None:
            self._mark(self._step, "gpu_forward_s")
            self._step["launch_start_s"] = clock()
        return pre_forward(*args, **kwargs)

    def _sample(self, sample: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = clock()
        result = sample(*args, **kwargs)
        if self._step is not None:
            self._mark(self._step, "gpu_end_s")
            self._step["sample_start_s"], self._step["launch_end_s"] = start, clock()
            self.steps.append(self._step)
            self._step = None
        return result

    def _result(self, get_output: Callable[..., Any], *args: Any) -> Any:
        start = clock()
        output = get_output(*args)
        if self._open:
            self._open[0]["result_start_s"], self._open[0]["result_end_s"] = start, clock()
        return output

    def _update(self, update: Callable[..., Any], scheduled: Any, *args: Any) -> Any:
        if not scheduled.total_num_scheduled_tokens:
            return update(scheduled, *args)
        start = clock()
        outputs = update(scheduled, *args)
        record = self._open.popleft()
        record["update_start_s"], record["update_end_s"] = start, clock()
        return outputs

    def _add_adapter(self, add_adapter: Callable[..., bool], request: Any) -> bool:
        start, before, self._activated_s = clock(), len(self.swaps), 0.0
        loaded = add_adapter(request)
        if len(self.swaps) > before and self.swaps[before]["kind"] == "load":
            load = self.swaps[before]
            load["duration_s"] = clock() - start - self._activated_s
            if self._step is not None:
                self._step["load_s"] += load["duration_s"] - load["read_s"]
        return loaded

    def _load(self, load: Callable[..., Any], request: Any) -> Any:
        start = clock()
        lora = load(request)
        self._swap("load", request.lora_name, start, lora.rank)
        return lora

    def _adopt(self, adopt: Callable[..., None], request: Any, loaded: Any) -> None:
        start = clock()
        adopt(request, loaded)
        self._swap("prefetch", request.lora_name, start, loaded.config["r"])
        self.swaps[-1]["read_s"] = loaded.seconds

    def _activate(self, activate: Callable[..., bool], lora_id: int) -> bool:
        start = clock()
        activated = activate(lora_id)
        if activated:
            model = self.engine.lora_manager._adapter_manager._registered_adapters.cache[lora_id]
            self._swap("activate", str(lora_id), start, model.rank)
            self._activated_s += self.swaps[-1]["duration_s"]
        return activated

    def _swap(self, kind: str, adapter: str, start: float, rank: int) -> None:
        duration = clock() - start
        self.swaps.append(
            {
                "phase": self.phase,
                "cell": self.cell,
                "step": len(self.steps),
                "kind": kind,
                "adapter": adapter,
                "rank": rank,
                "start_s": start,
                "read_s": duration if kind == "load" else 0.0,
                "duration_s": duration,
                "host_cache_entries": len(self.engine.lora_manager._adapter_manager),
                "num_running": len(self.engine.scheduler.running),
            }
        )
        if self._step is not None and kind in ("load", "activate"):
            self._step[f"{kind}s"] += 1
            self._step[f"{kind}_s"] += duration


def step_contents(num_scheduled_tokens: dict[str, int], engine: VllmEngine) -> dict[str, Any]:
    """Return what a step contains, in the terms of `sim.costs.StepShape`, from vLLM's scheduler just after
    `schedule`.

    `num_scheduled_tokens` maps request ids to tokens of this step; the scheduler has already added them to
    `num_computed_tokens`.
    """
    num_prefill_tokens = num_prefill_reqs = attention_work = kv_tokens = num_lora_tokens = 0
    adapters = set()
    for request_id, tokens in num_scheduled_tokens.items():
        request = engine.scheduler.requests[request_id]
        context = request.num_computed_tokens - tokens
        if context < request.num_prompt_tokens or tokens > 1:
            num_prefill_tokens += tokens
            num_prefill_reqs += 1
            attention_work += tokens * (2 * context + tokens) // 2
        else:
            kv_tokens += context + 1
        if request.lora_request is not None:
            adapters.add(request.lora_request.lora_int_id)
            num_lora_tokens += tokens
    return {
        "num_reqs": len(num_scheduled_tokens),
        "num_tokens": sum(num_scheduled_tokens.values()),
        "num_prefill_tokens": num_prefill_tokens,
        "num_prefill_reqs": num_prefill_reqs,
        "attention_work": attention_work,
        "kv_tokens": kv_tokens,
        "num_adapters": len(adapters),
        "num_lora_tokens": num_lora_tokens,
        "num_waiting": len(engine.scheduler.waiting) + len(engine.scheduler.skipped_waiting),
        "host_cache_entries": len(engine.lora_manager._adapter_manager),
        "loads": 0,
        "load_s": 0.0,
        "activates": 0,
        "activate_s": 0.0,
        "mapping_s": 0.0,
    }
