"""The most memory that this machine's GPUs had in use during a run, from NVML."""

import importlib
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

PERIOD_S = 1.0


@dataclass(frozen=True)
class NoGpuMemory:
    """In place of GpuMemory where there is no sense in asking."""

    reason: str

    @property
    def result(self) -> dict[str, Any]:
        """Why there is none."""
        return {"unavailable": self.reason}


class GpuMemory(AbstractContextManager["GpuMemory"]):
    """Asks NVML once a second while it is open; afterwards `result` says what it saw."""

    def __init__(self, period_s: float = PERIOD_S) -> None:
        self._period_s = period_s
        self._over = threading.Event()
        self._gpus: list[dict[str, Any]] = []
        self._unavailable = ""
        self._thread = threading.Thread(target=self._keep_asking, daemon=True)

    @property
    def result(self) -> dict[str, Any]:
        """`gpus`, a mapping for each with bytes in use, or why it is `unavailable`."""
        return {"unavailable": self._unavailable} if self._unavailable else {"gpus": self._gpus}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _keep_asking(self) -> None:
        try:
            # Without type information, and not installed everywhere.
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
        except Exception as error:  # NVML's errors have no class of ours to name before it is there.
            self._unavailable = f"NVML does not answer: {error}"
            return
        try:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            self._gpus = [{"name": _text(nvml.nvmlDeviceGetName(handle))} for handle in handles]
            while True:
                for gpu, handle in zip(self._gpus, handles, strict=True):
                    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
                    gpu["total_bytes"] = int(memory.total)
                    gpu["max_used_bytes"] = max(int(memory.used), gpu.get("max_used_bytes", 0))
                if self._over.wait(self._period_s):
                    return
        except nvml.NVMLError as error:
            self._unavailable = f"NVML does not answer: {error}"
        finally:
            nvml.nvmlShutdown()


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
