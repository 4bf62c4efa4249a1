"""Which adapters must not reach a step: those whose files are bad, and those whose load has failed."""

from pathlib import Path
from typing import Any

from calibrate.bridge.adapter_file import AdapterError, check_adapter, signature


class AdapterCheck:
    """Looks at the files of an adapter before a step needs it, and remembers what it found.

    vLLM looks only when it loads, in the middle of a step: an adapter that is missing, corrupt or of too
    large a rank raises there (vllm/lora/worker_manager.py, `_load_adapter`), and the engine dies with every
    request. An answer holds until the files change.
    """

    def __init__(self, max_lora_rank: int) -> None:
        self._max_lora_rank = max_lora_rank
        self._known: dict[str, tuple[tuple[Any, ...], str | None]] = {}

    def problem(self, lora_request: Any) -> str | None:
        """Return what is wrong with the adapter, if anything; paths that only vLLM can resolve pass."""
        folder = local_folder(lora_request)
        if folder is None:
            return None
        now = signature(folder)
        known = self._known.get(lora_request.lora_path)
        if known is None or known[0] != now:
            known = self._known[lora_request.lora_path] = now, self._look(folder)
        return known[1]

    def failed(self, lora_request: Any, problem: str) -> None:
        """Its load has failed, though the files looked well: refuse it until they change."""
        folder = local_folder(lora_request)
        if folder is not None:
            self._known[lora_request.lora_path] = signature(folder), problem

    def _look(self, folder: Path) -> str | None:
        try:
            check_adapter(folder, self._max_lora_rank)
        except AdapterError as error:
            return str(error)
        return None


def local_folder(lora_request: Any) -> Path | None:
    """The adapter's folder, unless vLLM would ask a hub for it, or read it with tensorizer
    (vllm/lora/utils.py, `get_adapter_absolute_path`).
    """
    if lora_request.tensorizer_config_dict:
        return None
    path = Path(lora_request.lora_path).expanduser()
    return path if path.is_absolute() or path.exists() else None
