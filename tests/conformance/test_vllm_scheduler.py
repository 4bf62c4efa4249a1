"""Step plans against vLLM's own Scheduler and AsyncScheduler, on random workloads: exact equality."""
# ruff: noqa: PLC0415 - vLLM is imported where it is used, so that the tests are collected, and skipped, without it.

import json
import random
from collections import deque
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from policies.admission import FcfsSkip
from sim.config import EngineConfig
from sim.kv_blocks import KVBlockPool
from sim.request import Request
from sim.scheduler import AsyncScheduler, Scheduler, StepPlan

NUM_CASES = 1500
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


@dataclass
class Case:
    config: EngineConfig
    arrivals: dict[int, list[dict[str, Any]]]
    """Requests by the iteration of the engine's loop that they come before."""


def draw_case(rng: random.Random, async_scheduling: bool) -> Case:
    block_size = rng.choice([1, 4, 16])
    max_model_len = rng.choice([24, 64, 200])
    max_num_seqs = rng.choice([1, 2, 4, 8, 16])
    few, many = max_model_len // block_size + 2, 6 * max_model_len // block_size + 8
    config = EngineConfig(
        max_loras=rng.choice([1, 2, 4]),
        max_cpu_loras=4,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=rng.choice([max_num_seqs, 16, 40, 64, 512]) + max_num_seqs,
        max_model_len=max_model_len,
        block_size=block_size,
        num_gpu_blocks=rng.choice([few, rng.randint(few, many), many]) - (rng.random() < 0.05),
        async_scheduling=async_scheduling,
        scheduler_reserve_full_isl=rng.random() < 0.5,
        long_prefill_token_threshold=rng.choice([0, 0, 3, 16]),
    )
    return Case(config, draw_arrivals(rng, max_model_len))


def draw_arrivals(rng: random.Random, max_model_len: int) -> dict[int, list[dict[str, Any]]]:
    adapters = [None, *(f"adapter-{n}" for n in range(rng.choice([0, 1, 3, 8])))]
    gap, burst = rng.choice([0, 1, 4]), rng.choice([1, 1, 8])
    arrivals: dict[int, list[dict[str, Any]]] = {}
    iteration = 0
    for number in range(rng.randint(1, 40)):
        longest = rng.choice([4, max_model_len // 2, max_model_len - 1])
        prompt = rng.randint(1, min(longest, max_model_len - 1))
        max_tokens = rng.randint(1, min(rng.choice([3, 30, 200]), max_model_len - prompt))
        output = rng.randint(1, max_tokens) if rng.random() < 0.4 else max_tokens
        arrivals.setdefault(iteration, []).append(
            {
                "request_id": f"r{number}",
                "num_prompt_tokens": prompt,
                "max_tokens": max_tokens,
                "output_length": output,
                "adapter": rng.choice(adapters),
            }
        )
        if number % burst == 0:
            iteration += rng.randint(0, gap)
    return arrivals


class Ours:
    def __init__(self, config: EngineConfig) -> None:
        assert config.num_gpu_blocks is not None
        self.kv = KVBlockPool(config.num_gpu_blocks, config.block_size)
        self.scheduler = (AsyncScheduler if config.async_scheduling else Scheduler)(
            config, self.kv, FcfsSkip()
        )

    def add(self, arrival: dict[str, Any]) -> None:
        self.scheduler.add_request(Request(arrival_ns=0, **arrival))

    def schedule(self) -> tuple[StepPlan, dict[str, Any]]:
        plan = self.scheduler.schedule()
        return plan, {
            "plan": [(request.request_id, tokens) for request, tokens in plan.num_scheduled_tokens.items()],
            "preempted": {request.request_id for request in plan.preempted},
            "running": [request.request_id for request in self.scheduler.running],
            "waiting": len(self.scheduler.admission),
            "free blocks": self.kv.num_free_blocks,
        }

    def update(self, plan: StepPlan) -> dict[str, Any]:
        finished = self.scheduler.update_from_output(plan)
        return {
            "tokens": {request.request_id for request in plan.sampled},
            "finished": {request.request_id for request in finished},
            "running": [request.request_id for request in self.scheduler.running],
            "waiting": len(self.scheduler.admission),
            "free blocks": self.kv.num_free_blocks,
        }


class Theirs:
    """vLLM's scheduler behind the same four methods, with a worker that is made up."""

    def __init__(self, config: EngineConfig, vllm_config: Any, v2_model_runner: bool) -> None:
        from vllm.v1.structured_output import StructuredOutputManager

        vllm_config = configured(vllm_config, config)
        self.scheduler = scheduler_class(config)(
            vllm_config,
            kv_cache_config(config),
            StructuredOutputManager(vllm_config),
            block_size=config.block_size,
        )
        self.scheduler.use_v2_model_runner = v2_model_runner
        self.output_lengths: dict[str, int] = {}
        self.num_sampled: dict[str, int] = {}

    def add(self, arrival: dict[str, Any]) -> None:
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request as VllmRequest

        name = arrival["adapter"]
        lora = LoRARequest(name, 1 + int(name.split("-")[1]), "/nowhere") if name else None
        params = SamplingParams(max_tokens=arrival["max_tokens"], stop_token_ids=[END_TOKEN])
        request_id = arrival["request_id"]
        self.output_lengths[request_id] = arrival["output_length"]
        self.num_sampled[request_id] = 0
        prompt = [0] * arrival["num_prompt_tokens"]
        self.scheduler.add_request(VllmRequest(request_id, prompt, params, None, lora_request=lora))

    def schedule(self) -> tuple[Any, dict[str, Any]]:
        output = self.scheduler.schedule()
        tokens = [self.sample(request_id) for request_id in output.num_scheduled_tokens]
        return (output, tokens), {
            "plan": list(output.num_scheduled_tokens.items()),
            "preempted": set(output.preempted_req_ids),
            **self.state(),
        }

    def sample(self, request_id: str) -> list[int]:
        """What the worker returns: a token where the prompt, or the recomputed text, is complete."""
        if self.scheduler.requests[request_id].is_prefill_chunk:
            return []
        self.num_sampled[request_id] += 1
        return [END_TOKEN if self.num_sampled[request_id] == self.output_lengths[request_id] else 0]

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
            "tokens": {told.request_id for told in told if told.new_token_ids},
            "finished": {told.request_id for told in told if told.finish_reason is not None},
            **self.state(),
        }

    def state(self) -> dict[str, Any]:
        scheduler = self.scheduler
        return {
            "running": [request.request_id for request in scheduler.running],
            "waiting": len(scheduler.waiting) + len(scheduler.skipped_waiting),
            "free blocks": scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
        }


def scheduler_class(config: EngineConfig) -> Any:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler as VllmAsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler as VllmScheduler

    return VllmAsyncScheduler if config.async_scheduling else VllmScheduler


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
    vllm_config.cache_config = CacheConfig(block_size=config.block_size, enable_prefix_caching=False)
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
    )
    return vllm_config


@pytest.fixture(scope="session")
def vllm_config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from vllm.config import DeviceConfig, ModelConfig, VllmConfig

    path = tmp_path_factory.mktemp("model")
    Path(path / "config.json").write_text(json.dumps(TINY_LLAMA))
    model = ModelConfig(model=str(path), tokenizer=str(path), skip_tokenizer_init=True, max_model_len=200)
    return VllmConfig(model_config=model, device_config=DeviceConfig(device="cpu"))


def compare(case: Case, ours: Ours, theirs: Theirs, seen: dict[str, int]) -> None:
    """Run both through vLLM's engine loop (`step`, or `step_with_batch_queue`), comparing after each call."""
    batch_queue: deque[tuple[StepPlan, Any]] = deque()
    for iteration in range(400):
        for arrival in case.arrivals.get(iteration, []):
            ours.add(arrival)
            theirs.add(arrival)
        our_plan, our_state = ours.schedule()
        their_plan, their_state = theirs.schedule()
        assert our_state == their_state, f"schedule {iteration}"
        seen["steps"] += bool(our_plan.num_scheduled_tokens)
        seen["preemptions"] += len(our_plan.preempted)
        seen["at max_loras"] += len(our_plan.adapters) == case.config.max_loras and our_state["waiting"] > 0
        seen["chunks"] += len(our_plan.num_scheduled_tokens) - len(our_plan.sampled)
        if our_plan.num_scheduled_tokens:
            batch_queue.append((our_plan, their_plan))
            if len(batch_queue) < (2 if case.config.async_scheduling else 1):
                continue
        if batch_queue:
            our_plan, their_plan = batch_queue.popleft()
            assert ours.update(our_plan) == theirs.update(their_plan), f"update {iteration}"
            seen["updates"] += 1


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
def test_step_plans(vllm_config: Any, async_scheduling: bool) -> None:
    seen = {"steps": 0, "updates": 0, "preemptions": 0, "at max_loras": 0, "chunks": 0}
    for seed in range(NUM_CASES):
        rng = random.Random(seed)
        case = draw_case(rng, async_scheduling)
        try:
            compare(case, Ours(case.config), Theirs(case.config, vllm_config, rng.random() < 0.5), seen)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {case.config}") from error
    print(NUM_CASES, "cases:", seen)
    assert all(count > NUM_CASES for count in seen.values())
