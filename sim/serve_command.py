"""The ``vllm serve`` command line of a simulated engine."""

import json
import shlex

from sim.config import EngineConfig, ModelConfig


def vllm_serve_command(engine: EngineConfig, model: ModelConfig, policy_file: str | None = None) -> str:
    """Return the complete command that starts vLLM 0.25.1 as ``engine`` was simulated.

    What bears on capacity is always spelled out; other flags only where they differ from vLLM's default.
    ``policy_file`` has the policies, where they are not vLLM's own. Flags: vllm/engine/arg_utils.py.
    """
    words = [
        *("vllm", "serve", model.name),
        *("--dtype", model.dtype),
        "--enable-lora",
        *("--max-loras", engine.max_loras),
        *("--max-cpu-loras", engine.host_cache_entries),
        *("--max-lora-rank", engine.max_lora_rank),
        *("--max-num-seqs", engine.max_num_seqs),
        *("--max-num-batched-tokens", engine.max_num_batched_tokens),
        *("--max-model-len", engine.max_model_len),
        *("--gpu-memory-utilization", engine.gpu_memory_utilization),
        *_flags_off_default(engine),
    ]
    command = shlex.join(str(word) for word in words)
    if policy_file is None:
        return command
    return f"LORASIM_POLICY={policy_file} {command} --scheduler-cls calibrate.bridge.PolicyScheduler"


def _flags_off_default(engine: EngineConfig) -> list[str]:
    """Return the flags of the settings that are not at vLLM's default."""
    flags: list[str] = []
    if engine.block_size != 16:
        flags += ["--block-size", str(engine.block_size)]
    if engine.num_gpu_blocks is not None:
        flags += ["--num-gpu-blocks-override", str(engine.num_gpu_blocks)]
    if engine.long_prefill_token_threshold:
        flags += ["--long-prefill-token-threshold", str(engine.long_prefill_token_threshold)]
    if engine.scheduling_policy != "fcfs":
        flags += ["--scheduling-policy", engine.scheduling_policy]
    if not engine.enable_prefix_caching:
        flags.append("--no-enable-prefix-caching")
    if not engine.async_scheduling:
        flags.append("--no-async-scheduling")
    if not engine.scheduler_reserve_full_isl:
        flags.append("--no-scheduler-reserve-full-isl")
    if engine.specialize_active_lora:
        flags.append("--specialize-active-lora")
    if engine.enforce_eager:
        flags.append("--enforce-eager")
    compilation: dict[str, object] = {}
    if engine.cudagraph_mode != "FULL_AND_PIECEWISE":
        compilation["cudagraph_mode"] = engine.cudagraph_mode
    if engine.cudagraph_capture_sizes is not None:
        compilation["cudagraph_capture_sizes"] = engine.cudagraph_capture_sizes
    if compilation:
        flags += ["--compilation-config", json.dumps(compilation)]
    return flags
