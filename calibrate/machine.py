"""What a measurement ran on: GPU, driver, CPU, versions, and the engine's resolved settings and memory."""

import os
import platform
import subprocess
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from calibrate.engine import VllmEngine

PROFILED = {
    "peak_activation_bytes": "peak_activation_memory",
    "non_torch_bytes": "non_torch_memory",
    "cudagraph_estimate_bytes": "cudagraph_memory_estimate",
    "available_kv_cache_bytes": "available_kv_cache_memory_bytes",
}
"""Memory that vLLM finds as it starts, unless it is told `kv_cache_memory_bytes`."""
PACKAGES = ("vllm", "torch", "triton", "transformers", "safetensors")


def describe_machine() -> dict[str, Any]:
    """Return the machine's GPU, driver, CPU and the versions of what runs on it."""
    import torch

    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    gpu, driver, memory_mib = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split(
        ", "
    )
    return {
        "gpu": gpu,
        "driver": driver,
        "gpu_memory_mib": int(memory_mib.split()[0]),
        "cpu": cpu_name(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "host_memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    """Return the processor's model name as the kernel gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def describe_engine(engine: VllmEngine) -> dict[str, Any]:
    """Return vLLM's resolved configuration, KV blocks and the memory terms of
    `gpu_worker.determine_available_memory`.
    """
    config = engine.core.vllm_config
    worker = engine.core.model_executor.driver_worker.worker
    return {
        "num_gpu_blocks": engine.num_gpu_blocks(),
        "memory": {
            "total_bytes": int(worker.init_snapshot.total_memory),
            "requested_bytes": int(worker.requested_memory),
            "weights_bytes": int(worker.model_runner.model_memory_usage),
            **{
                name: int(getattr(worker, where))
                for name, where in PROFILED.items()
                if hasattr(worker, where)
            },
        },
        "vllm_config": {
            part: plain(getattr(config, f"{part}_config"))
            for part in ("scheduler", "lora", "cache", "model", "parallel", "compilation")
        },
    }


def plain(value: Any, depth: int = 3) -> Any:
    """Return a configuration as nested dicts, lists and scalars; what has no such form, as its text.

    Of paths only the last part is kept: the rest says nothing about the engine.
    """
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth and is_dataclass(value):
        return {f.name: plain(getattr(value, f.name, None), depth - 1) for f in fields(value)}
    if depth and isinstance(value, dict):
        return {str(key): plain(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, list | tuple | set):
        return [plain(item, depth - 1) for item in value]
    return str(value)
