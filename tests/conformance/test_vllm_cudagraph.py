"""Captured sizes, LoRA cases and graph choice against vLLM's own configuration and CudaGraphManager."""
# ruff: noqa: PLC0415 - vLLM is imported where it is used, so that the tests are collected, and skipped, without it.

import random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from sim.config import EngineConfig
from sim.cudagraph import CudaGraphs, capture_sizes, lora_cases

NUM_CASES = 1000


def their_compilation_config(config: EngineConfig) -> Any:
    from vllm.config import CompilationConfig, VllmConfig
    from vllm.config.compilation import CUDAGraphMode

    compilation_config = CompilationConfig(cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE)
    vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=config.enforce_eager),
        compilation_config=compilation_config,
        scheduler_config=config,
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        num_speculative_tokens=0,
        performance_mode="balanced",
    )
    VllmConfig._set_cudagraph_sizes(vllm_config)
    return compilation_config


def their_manager(config: EngineConfig, compilation_config: Any) -> Any:
    from vllm.config import LoRAConfig
    from vllm.v1.worker.gpu import cudagraph_utils
    from vllm.v1.worker.gpu.lora_utils import get_lora_capture_cases

    lora_config = LoRAConfig(max_loras=config.max_loras, specialize_active_lora=config.specialize_active_lora)
    cases = get_lora_capture_cases(lora_config, compilation_config)
    vllm_config = SimpleNamespace(
        scheduler_config=config,
        compilation_config=compilation_config,
        parallel_config=SimpleNamespace(data_parallel_size=1, tensor_parallel_size=1),
        speculative_config=None,
        num_speculative_tokens=0,
    )
    rank = SimpleNamespace(is_first_rank=True, is_last_rank=True)
    with (
        patch.object(cudagraph_utils, "get_pp_group", lambda: rank),
        patch.object(cudagraph_utils, "current_platform"),
    ):
        manager = cudagraph_utils.CudaGraphManager(
            vllm_config, None, compilation_config.cudagraph_mode, 1, lora_capture_cases=cases
        )
    manager._graphs_captured = True
    return manager


def test_graph_choice() -> None:
    from vllm.v1.worker.gpu.cudagraph_utils import get_uniform_token_count

    modes = {"full": 0, "piecewise": 0, "none": 0}
    for seed in range(NUM_CASES):
        rng = random.Random(seed)
        max_num_seqs = rng.choice([1, 2, 3, 7, 8, 100, 128, 255, 256, 300, rng.randint(1, 600)])
        config = EngineConfig(
            max_loras=rng.choice([1, 2, 3, 4, 8, 13, 32, 64]),
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + rng.choice([0, 1, 7, 100, 8192]),
            specialize_active_lora=rng.random() < 0.5,
            enforce_eager=rng.random() < 0.1,
        )
        compilation_config = their_compilation_config(config)
        manager = their_manager(config, compilation_config)
        assert config.enforce_eager or compilation_config.cudagraph_capture_sizes == capture_sizes(
            config.max_num_seqs, config.max_num_batched_tokens
        )
        assert manager.lora_capture_cases == lora_cases(config.max_loras, config.specialize_active_lora)
        graphs = CudaGraphs(config)
        for _ in range(100):
            num_reqs = rng.randint(1, config.max_num_seqs)
            num_tokens = rng.choice([num_reqs, rng.randint(num_reqs, config.max_num_batched_tokens)])
            max_query_len = rng.randint(-(-num_tokens // num_reqs), num_tokens - num_reqs + 1)
            num_adapters = rng.randint(0, min(num_reqs, config.max_loras))
            uniform = get_uniform_token_count(num_reqs, num_tokens, max_query_len)
            theirs = manager.dispatch(num_reqs, num_tokens, uniform, num_adapters)
            ours = graphs.choose(num_reqs, num_tokens, max_query_len, num_adapters)
            expected = (theirs.cg_mode.name.lower(), theirs.num_tokens, theirs.num_active_loras)
            assert ours == expected, f"seed {seed}: {config}"
            modes[ours.mode] += 1
    print(NUM_CASES * 100, "choices:", modes)
    assert min(modes.values()) > NUM_CASES
