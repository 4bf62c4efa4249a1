"""vLLM's own configuration of captured sizes, and its CudaGraphManager."""
# ruff: noqa: PLC0415 - vLLM is imported where it is used, so that the tests are collected, and skipped, without it.

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from sim.config import EngineConfig
from tests.conformance.graphs import GraphsCase


def their_answers(case: GraphsCase) -> dict[str, Any]:
    """Answer as `tests.conformance.graphs.our_answers` does."""
    from vllm.v1.worker.gpu.cudagraph_utils import get_uniform_token_count

    config = case.config
    compilation_config = their_compilation_config(config)
    manager = their_manager(config, compilation_config)
    choices = []
    for num_reqs, num_tokens, max_query_len, num_adapters in case.shapes:
        uniform = get_uniform_token_count(num_reqs, num_tokens, max_query_len)
        choice = manager.dispatch(num_reqs, num_tokens, uniform, num_adapters)
        choices.append([choice.cg_mode.name.lower(), choice.num_tokens, choice.num_active_loras])
    return {
        "capture_sizes": compilation_config.cudagraph_capture_sizes,
        "lora_cases": manager.lora_capture_cases,
        "choices": choices,
    }


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
