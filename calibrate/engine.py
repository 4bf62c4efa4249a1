"""The real vLLM engine, in this process and one step at a time, so that it can be timed from inside."""

import json
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.adapters import AdapterStore
from calibrate.bridge.plugin import install
from calibrate.bridge.runtime import bridge
from calibrate.bridge.settings import PolicySettings
from sim.errors import UserError

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def hugging_face_config(model: dict[str, Any]) -> dict[str, Any]:
    """Return the `config.json` of a model of `conf/model`, which vLLM then fills with random weights."""
    shape = {key: value for key, value in model.items() if key not in ("name", "hf", "dtype")}
    return {**shape, "torch_dtype": model["dtype"], **model["hf"]}


def require_vllm() -> None:
    """Raise UserError where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise UserError("vllm is not installed: pip install 'lorasim[gpu]', on the machine that has the GPU")


class VllmEngine:
    """vLLM's EngineCore with dummy weights: what `vllm serve` runs in its engine process, without the front
    end.

    `settings` are vLLM's engine arguments. Prompts are random tokens, outputs are greedy and ignore
    end-of-sequence, so a request generates exactly what it is asked for. With `bridged`, it has
    calibrate.bridge in it, and starts as plain vLLM: see `set_policy`.
    """

    def __init__(
        self,
        model: dict[str, Any],
        settings: dict[str, Any],
        store: AdapterStore,
        seed: int,
        bridged: bool = False,
    ) -> None:
        os.environ.update(ENVIRONMENT)
        from vllm import LLM

        if bridged:
            install()
            settings = settings | {"scheduler_cls": "calibrate.bridge.PolicyScheduler"}
        folder = Path(tempfile.mkdtemp(prefix="lorasim-model-"))
        (folder / "config.json").write_text(json.dumps(hugging_face_config(model)))
        self.llm = LLM(
            model=str(folder),
            load_format="dummy",
            skip_tokenizer_init=True,
            enable_lora=True,
            seed=seed,
            **settings,
        )
        self.core = self.llm.llm_engine.engine_core.engine_core
        self.scheduler = self.core.scheduler
        self.runner = self.core.model_executor.driver_worker.worker.model_runner
        self.store = store
        self._vocab_size = model["vocab_size"]
        self._seed = seed

    def set_policy(self, sections: Mapping[str, Any] | None) -> None:
        """Serve with other policies, while nothing waits or runs: the sections of
        `calibrate.bridge.settings.PolicySettings`; None: plain vLLM. Raises UserError.

        The tiers keep their adapters (`forget_adapters` empties them). The engine must be `bridged`.
        """
        bridge().set_policy(None if sections is None else PolicySettings.from_mapping(sections))

    def prepare(self, request_id: str, input_length: int, output_length: int, adapter: str | None) -> Any:
        """Build vLLM's Request (prompt drawn and hashed), so that `submit` costs the engine's thread next to
        nothing. A request's prompt depends on its id and lengths alone.
        """
        from vllm import SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        request = EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=self._prompt(request_id, input_length),
            mm_features=None,
            sampling_params=SamplingParams(
                temperature=0.0, max_tokens=output_length, ignore_eos=True, detokenize=False
            ),
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None if adapter is None else self.store.request(adapter),
            cache_salt=None,
            data_parallel_rank=None,
        )
        return self.core.preprocess_add_request(request)[0]

    def _prompt(self, request_id: str, input_length: int) -> list[int]:
        rng = np.random.default_rng([self._seed, zlib.crc32(request_id.encode())])
        tokens: list[int] = rng.integers(10, self._vocab_size - 10, input_length).tolist()
        return tokens

    def submit(self, request: Any) -> None:
        """Hand a prepared request to the scheduler; it arrives now."""
        request.arrival_time = time.time()
        self.core.add_request(request)

    def add(self, request_id: str, input_length: int, output_length: int, adapter: str | None = None) -> str:
        """Prepare and submit a request; return its id."""
        self.submit(self.prepare(request_id, input_length, output_length, adapter))
        return request_id

    def has_requests(self) -> bool:
        """Whether a step would have work: requests to schedule, or results to fetch."""
        return bool(self.scheduler.has_requests() or self.core.batch_queue)

    def step(self) -> list[Any]:
        """Run vLLM's engine step once; return its EngineCoreOutputs' outputs (empty while its batch queue
        fills).
        """
        outputs, executed = self.core.step_fn()
        self.core.post_step(executed)
        return [output for client in (outputs or {}).values() for output in client.outputs]

    def step_until(self, done: Callable[[], bool]) -> None:
        """Step until `done()` holds or nothing is left to do."""
        while not done() and self.has_requests():
            self.step()

    def drain(self) -> None:
        """Step until every request has finished."""
        self.step_until(lambda: False)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Abort requests and let the engine forget them."""
        self.core.abort_requests(list(request_ids))

    def reassign(self, adapters: dict[str, str | None]) -> None:
        """Give running requests other adapters, so that one prefill serves measurements with any number of
        them.

        Writes where vLLM keeps a running request's adapter: the scheduler's request and the model runner's
        LoRA state (`vllm/v1/worker/gpu/lora_utils.py`). The keys and values cached before stay those of the
        old adapter, which changes what is generated but not what a step costs.
        """
        state, slots = self.runner.lora_state, self.runner.req_states.req_id_to_index
        for request_id, adapter in adapters.items():
            lora_request = None if adapter is None else self.store.request(adapter)
            self.scheduler.requests[request_id].lora_request = lora_request
            state.remove_request(request_id)
            state.add_request(request_id, slots[request_id], lora_request)

    @property
    def lora_manager(self) -> Any:
        """vLLM's LRUCacheWorkerLoRAManager."""
        return self.runner.lora_manager

    def forget_adapters(self) -> None:
        """Empty the host cache and the slots; torch keeps their pinned memory for the next adapters."""
        self.lora_manager.remove_all_adapters()

    def forget_prompts(self) -> None:
        """Empty the prefix cache, so that a workload can be played again; nothing may be running."""
        self.scheduler.reset_prefix_cache()

    def set_max_cpu_loras(self, count: int) -> None:
        """Make the empty host cache smaller than the engine was started with, or as large again.

        Raises UserError for less than the slots, or more than at the start.
        """
        most = self.lora_manager._adapter_manager._registered_adapters.capacity
        if not self.lora_manager._adapter_manager.lora_slots <= count <= most:
            raise UserError(f"max_cpu_loras={count}: the engine was started with {most:.0f}")
        self.core.vllm_config.lora_config.max_cpu_loras = count

    def set_max_num_seqs(self, count: int) -> None:
        """Let fewer requests run at a time than the engine was started with, or as many again; UserError for
        more.
        """
        most = self.core.vllm_config.scheduler_config.max_num_seqs
        if not 1 <= count <= most:
            raise UserError(f"max_num_seqs={count}: the engine was started with {most}")
        self.scheduler.max_num_running_reqs = count

    def preload(self, host_cache: Sequence[str], slots: Sequence[str]) -> None:
        """Bring adapters into the host cache, and some of these into slots, oldest first, as they were used;
        nothing may be running.
        """
        manager = self.lora_manager._adapter_manager
        requests = {adapter: self.store.request(adapter) for adapter in [*host_cache, *slots]}
        for adapter in host_cache:
            self.lora_manager.add_adapter(requests[adapter])  # This activates, too, and so evicts others.
        for adapter in host_cache:
            manager.deactivate_adapter(requests[adapter].lora_int_id)
        for adapter in slots:
            manager.activate_adapter(requests[adapter].lora_int_id)
        for adapter in host_cache:  # Activating made them the latest here.
            manager._registered_adapters.touch(requests[adapter].lora_int_id)

    def release_pinned_memory(self) -> None:
        """Give the pinned memory of adapters that have left back to the system, as on a fresh start."""
        import torch

        torch.cuda.synchronize()
        torch._C._host_emptyCache()

    def num_gpu_blocks(self) -> int:
        """KV blocks of the engine, the null block included."""
        return int(self.core.vllm_config.cache_config.num_gpu_blocks)
