"""vLLM's own EngineCore, scheduler and adapter managers, with real adapter files; only the model is made up.

The worker stands for the model runner (vllm/v1/worker/gpu/model_runner.py): it brings a step's adapters into
slots, which are tensors on the CPU with vLLM's own code to fill them, and then samples tokens that are all
the same. Where a request's adapter is not in its slot, it raises.
"""
# ruff: noqa: PLC0415 - vLLM is imported where it is used, so that the tests are collected, and skipped, without it.

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sim.config import EngineConfig
from tests.conformance.vllm_scheduler import configured

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
}
PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
SIZES = {
    "self_attn.qkv_proj": (64, [64, 64, 64]),
    "self_attn.o_proj": (64, [64]),
    "mlp.gate_up_proj": (64, [128, 128]),
    "mlp.down_proj": (128, [64]),
}
TOKEN = 11


def layer(max_loras: int, rank: int, inputs: int, outputs: list[int]) -> Any:
    """One of vLLM's LoRA layers, as far as its slots go."""
    import torch
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
    from vllm.lora.layers.column_parallel_linear import MergedColumnParallelLinearWithLoRA

    kind = MergedColumnParallelLinearWithLoRA if len(outputs) > 1 else BaseLinearLayerWithLoRA
    made = kind.__new__(kind)
    torch.nn.Module.__init__(made)
    made.tp_size, made.n_slices, made.output_sizes = 1, len(outputs), outputs
    zeros = {"dtype": torch.bfloat16}
    made.lora_a_stacked = tuple(torch.zeros(max_loras, 1, rank, inputs, **zeros) for _ in outputs)
    made.lora_b_stacked = tuple(torch.zeros(max_loras, 1, size, rank, **zeros) for size in outputs)
    return made


def make_manager(vllm_config: Any, worker_class: Any) -> Any:
    """A worker manager for the made-up model, made by what the model runner looks up."""
    from vllm.lora.model_manager import AdapterLRUCache

    lora = vllm_config.lora_config
    worker = worker_class(vllm_config, "cpu", {})
    models = worker._manager_cls.__new__(worker._manager_cls)
    models.lora_config, models.vocab_size, models.model = lora, 256, SimpleNamespace()
    models.supported_lora_modules = [name.split(".")[1] for name in SIZES]
    models.packed_modules_mapping, models.packed_modules, models.modules = PACKED, {}, {}
    for number in range(SHAPE["num_hidden_layers"]):
        for name, (inputs, outputs) in SIZES.items():
            full_name = f"model.layers.{number}.{name}"
            models.modules[full_name] = layer(lora.max_loras, lora.max_lora_rank, inputs, outputs)
            models._register_packed_modules(full_name)
    models.is_pooling_model = models._is_moe = models._enable_mixed_moe_lora_format = False
    models.moe_ep_load_spec = models._last_mapping = None
    models.lora_index_to_id = [None] * lora.max_loras
    models._registered_adapters = AdapterLRUCache(models.capacity, models.deactivate_adapter)
    models._active_adapters = AdapterLRUCache(models.lora_slots, models._deactivate_adapter)
    models._set_adapter_mapping = lambda mapping: check_mapping(mapping, models.lora_index_to_id)
    worker._adapter_manager = models
    return worker


def check_mapping(mapping: Any, lora_index_to_id: list[int | None]) -> None:
    """As `convert_mapping` (vllm/lora/punica_wrapper/utils.py) looks ids up."""
    indices = {lora_id: index for index, lora_id in enumerate(lora_index_to_id) if lora_id is not None}
    for lora_id in (*mapping.index_mapping, *mapping.prompt_mapping):
        assert lora_id == 0 or indices[lora_id] >= 0


def slot_tensors(manager: Any, lora_id: int) -> list[Any]:
    """What an adapter's GPU slot holds, layer after layer."""
    models = manager._adapter_manager
    index = models.lora_index_to_id.index(lora_id)
    return [
        stacked[index]
        for module in models.modules.values()
        for stacked in (*module.lora_a_stacked, *module.lora_b_stacked)
    ]


class MadeUpWorker:
    """Stands for vllm.v1.worker.gpu_worker.Worker and its model runner."""

    def __init__(self, vllm_config: Any) -> None:
        from vllm.v1.worker import lora_model_runner_mixin
        from vllm.v1.worker.gpu.lora_utils import LoraState

        self.config = vllm_config
        self.lora_manager = make_manager(vllm_config, lora_model_runner_mixin.LRUCacheWorkerLoRAManager)
        self.lora_state = LoraState(1)
        self.num_computed: dict[str, int] = {}
        self.num_cached: dict[str, int] = {}
        self.num_prefill: dict[str, int] = {}
        self.steps: list[dict[str, int]] = []
        self._output: Any = None

    def get_kv_cache_spec(self) -> dict[str, Any]:
        import torch
        from vllm.v1.kv_cache_interface import FullAttentionSpec

        block_size = self.config.cache_config.block_size
        return {"layer": FullAttentionSpec(block_size, num_kv_heads=1, head_size=8, dtype=torch.bfloat16)}

    def determine_available_memory(self) -> int:
        return 1 << 24

    def initialize_from_config(self, configs: Any) -> None:
        pass

    def compile_or_warm_up_model(self) -> Any:
        """As the real one, with adapters of zeros that leave again."""
        from vllm.lora.request import LoRARequest

        manager = self.lora_manager
        manager._adapter_manager.create_dummy_lora = lambda lora_id, rank, _: SimpleNamespace(
            id=lora_id, rank=rank, loras={"none": SimpleNamespace(lora_a=SimpleNamespace(device="gpu"))}
        )
        manager._adapter_manager._create_merged_loras_inplace, merge = (
            lambda lora: None,
            manager._adapter_manager._create_merged_loras_inplace,
        )
        manager._adapter_manager._get_lora_layer_weights = lambda lora, name: None
        requests = {LoRARequest(f"warmup_{n}", n, "/not/a/real/path") for n in range(1, 3)}
        for request in requests:
            manager.add_dummy_lora(request, rank=8)
        manager.set_active_adapters(requests, None)
        manager.remove_all_adapters()
        del manager._adapter_manager._get_lora_layer_weights
        manager._adapter_manager._create_merged_loras_inplace = merge
        return SimpleNamespace(language_model=0.0, encoder=0.0)

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def add_lora(self, request: Any) -> bool:
        return bool(self.lora_manager.add_adapter(request))

    def shutdown(self) -> None:
        pass

    def execute_model(self, scheduled: Any) -> Any:
        from vllm.lora.layers import LoRAMapping
        from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput

        for request_id in scheduled.finished_req_ids:
            self.lora_state.remove_request(request_id)
        for new in scheduled.scheduled_new_reqs:
            self.lora_state.add_request(new.req_id, 0, new.lora_request)
            self.num_cached[new.req_id] = self.num_computed[new.req_id] = new.num_computed_tokens
            self.num_prefill[new.req_id] = len(new.prefill_token_ids or new.prompt_token_ids)
        if not scheduled.total_num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        req_ids = list(scheduled.num_scheduled_tokens)
        requests = self.lora_state.lora_requests
        ids = [requests[name].lora_int_id if name in requests else 0 for name in req_ids]
        active = self.lora_state.get_activate_loras(req_ids)
        self.lora_manager.set_active_adapters(active, LoRAMapping(tuple(ids), tuple(ids), is_prefill=True))
        self.steps.append(dict(zip(req_ids, ids, strict=True)))
        tokens = []
        for name, num_tokens in scheduled.num_scheduled_tokens.items():
            self.num_computed[name] += num_tokens
            tokens.append([TOKEN] if self.num_computed[name] >= self.num_prefill[name] else [])
        index = {name: number for number, name in enumerate(req_ids)}
        self._output = ModelRunnerOutput(req_ids=req_ids, req_id_to_index=index, sampled_token_ids=tokens)
        return None

    def sample_tokens(self, grammar: Any) -> Any:
        output, self._output = self._output, None
        return output


class MadeUpCore:
    """EngineCore with the made-up worker; requests in, the ends of requests out."""

    def __init__(self, vllm_config: Any, engine: EngineConfig, bridged: bool) -> None:
        from vllm.v1.engine.core import EngineCore
        from vllm.v1.executor.uniproc_executor import UniProcExecutor

        class MadeUpExecutor(UniProcExecutor):  # type: ignore[misc]
            def _init_executor(self) -> None:
                self.driver_worker = MadeUpWorker(self.vllm_config)

        config = configured(vllm_config, engine)
        config.cache_config.num_gpu_blocks_override = engine.num_gpu_blocks
        config.lora_config.max_lora_rank = engine.max_lora_rank
        config.lora_config.lora_dtype = config.model_config.dtype
        if bridged:
            config.scheduler_config.scheduler_cls = "calibrate.bridge.PolicyScheduler"
        self.core = EngineCore(config, MadeUpExecutor, log_stats=False)
        self.worker = self.core.model_executor.driver_worker
        self.ends: dict[str, Any] = {}
        self.num_tokens: dict[str, int] = {}

    def add(self, request_id: str, lora_request: Any | None, prompt: int = 5, output: int = 4) -> None:
        from vllm import SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        request = EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=list(range(20, 20 + prompt)),
            mm_features=None,
            sampling_params=SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True),
            pooling_params=None,
            arrival_time=0.0,
            lora_request=lora_request,
            cache_salt=None,
            data_parallel_rank=None,
        )
        self.core.add_request(self.core.preprocess_add_request(request)[0])

    def step(self) -> None:
        """As EngineCoreProc._process_engine_step."""
        outputs, executed = self.core.step_fn()
        self.core.post_step(executed)
        if not executed:
            time.sleep(0.001)
        for client in (outputs or {}).values():
            for output in client.outputs:
                count = self.num_tokens.get(output.request_id, 0)
                self.num_tokens[output.request_id] = count + len(output.new_token_ids)
                if output.finished:
                    self.ends[output.request_id] = output

    def has_work(self) -> bool:
        """As EngineCoreProc.has_work."""
        return bool(self.core.scheduler.has_requests() or self.core.batch_queue)

    def drain(self, most_s: float = 120) -> None:
        deadline = time.monotonic() + most_s
        while time.monotonic() < deadline:
            if not self.has_work():
                return
            self.step()
        raise AssertionError("it never ends")


def lora_request(name: str, number: int, path: Path) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(name, number, str(path))
