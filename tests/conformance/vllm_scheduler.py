"""vLLM's own Scheduler and AsyncScheduler, with a worker that is made up."""
# ruff: noqa: PLC0415 - vLLM is imported where it is used, so that the tests are collected, and skipped, without it.

import json
from copy import copy
from pathlib import Path
from typing import Any

from sim.config import EngineConfig

END_TOKEN = 7
TINY_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 256,
    "max_position_embeddings": 65536,
    "torch_dtype": "bfloat16",
}


class TheirScheduler:
    """Answers as `tests.conformance.scheduling.Ours` does."""

    lora_path = "/nowhere"

    def __init__(self, config: EngineConfig, vllm_config: Any, v2_model_runner: bool = True) -> None:
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.structured_output import StructuredOutputManager

        init_none_hash(sha256)
        self.block_size = config.block_size
        self.hasher = get_request_block_hasher(config.block_size, sha256)
        vllm_config = configured(vllm_config, config)
        self.scheduler = self.scheduler_class(config)(
            vllm_config,
            kv_cache_config(config),
            StructuredOutputManager(vllm_config),
            block_size=config.block_size,
        )
        self.scheduler.use_v2_model_runner = v2_model_runner
        self.output_lengths: dict[str, int] = {}
        self.num_sampled: dict[str, int] = {}

    @staticmethod
    def scheduler_class(config: EngineConfig) -> Any:
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.core.sched.scheduler import Scheduler

        return AsyncScheduler if config.async_scheduling else Scheduler

    def add(self, arrival: dict[str, Any]) -> None:
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        name, request_id = arrival["adapter"], arrival["request_id"]
        self.output_lengths[request_id] = arrival["output_length"]
        self.num_sampled[request_id] = 0
        request = Request(
            request_id,
            self.prompt(arrival),
            SamplingParams(max_tokens=arrival["max_tokens"], stop_token_ids=[END_TOKEN]),
            None,
            arrival_time=float(arrival["arrival_ns"]),
            lora_request=LoRARequest(name, 1 + int(name.split("-")[1]), self.lora_path) if name else None,
            priority=arrival["priority"],
            block_hasher=self.hasher,
        )
        self.scheduler.add_request(request)

    def prompt(self, arrival: dict[str, Any]) -> list[int]:
        """Tokens that are the same where the hashes are, and else no other request's."""
        shared = [100_000 + number for number in arrival["prefix_hashes"] for _ in range(self.block_size)]
        return shared + [own_token(arrival["request_id"])] * (arrival["num_prompt_tokens"] - len(shared))

    def abort(self, request_id: str) -> None:
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)

    def schedule(self) -> tuple[Any, dict[str, Any]]:
        output = self.scheduler.schedule()
        tokens = [self.sample(request_id) for request_id in output.num_scheduled_tokens]
        return (output, tokens), {
            "plan": [list(pair) for pair in output.num_scheduled_tokens.items()],
            "preempted": sorted(output.preempted_req_ids),
            **self.state(),
        }

    def sample(self, request_id: str) -> list[int]:
        """What the worker returns: a token where the prompt, or the recomputed text, is complete."""
        if self.scheduler.requests[request_id].is_prefill_chunk:
            return []
        self.num_sampled[request_id] += 1
        ends = self.num_sampled[request_id] == self.output_lengths[request_id]
        return [END_TOKEN if ends else own_token(request_id)]

    def update(self, step: Any) -> dict[str, Any]:
        from vllm.v1.outputs import ModelRunnerOutput

        output, tokens = step
        req_ids = list(output.num_scheduled_tokens)
        result = ModelRunnerOutput(
            req_ids=req_ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(req_ids)},
            sampled_token_ids=tokens,
        )
        outputs = self.scheduler.update_from_output(output, result)
        told = [told for client in outputs.values() for told in client.outputs]
        return {
            "tokens": sorted(told.request_id for told in told if told.new_token_ids),
            "finished": sorted(told.request_id for told in told if told.finish_reason is not None),
            **self.state(),
        }

    def state(self) -> dict[str, Any]:
        scheduler = self.scheduler
        return {
            "running": [request.request_id for request in scheduler.running],
            "waiting": len(scheduler.waiting) + len(scheduler.skipped_waiting),
            "free_blocks": scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
        }


def own_token(request_id: str) -> int:
    return 1000 + int(request_id[1:])


def kv_cache_config(config: EngineConfig) -> Any:
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    spec = FullAttentionSpec(config.block_size, num_kv_heads=1, head_size=1, dtype=torch.bfloat16)
    groups = [KVCacheGroupSpec(["layer"], spec)]
    return KVCacheConfig(num_blocks=config.num_gpu_blocks, kv_cache_tensors=[], kv_cache_groups=groups)


def configured(vllm_config: Any, config: EngineConfig) -> Any:
    """A copy of `vllm_config` with the settings of `config`."""
    from vllm.config import CacheConfig, LoRAConfig, SchedulerConfig

    vllm_config = copy(vllm_config)
    vllm_config.model_config = copy(vllm_config.model_config)
    vllm_config.model_config.max_model_len = config.max_model_len
    vllm_config.cache_config = CacheConfig(
        block_size=config.block_size, enable_prefix_caching=config.enable_prefix_caching
    )
    vllm_config.cache_config.num_gpu_blocks = config.num_gpu_blocks
    vllm_config.lora_config = LoRAConfig(max_loras=config.max_loras, max_cpu_loras=config.max_cpu_loras)
    vllm_config.scheduler_config = SchedulerConfig(
        max_model_len=config.max_model_len,
        is_encoder_decoder=False,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        long_prefill_token_threshold=config.long_prefill_token_threshold,
        scheduler_reserve_full_isl=config.scheduler_reserve_full_isl,
        async_scheduling=config.async_scheduling,
        policy=config.scheduling_policy,
    )
    return vllm_config


def base_config(folder: Path) -> Any:
    """A VllmConfig for the CPU; its model's config.json is written to `folder`."""
    from vllm.config import DeviceConfig, ModelConfig, VllmConfig

    Path(folder / "config.json").write_text(json.dumps(TINY_LLAMA))
    model = ModelConfig(model=str(folder), tokenizer=str(folder), skip_tokenizer_init=True, max_model_len=200)
    return VllmConfig(model_config=model, device_config=DeviceConfig(device="cpu"))
