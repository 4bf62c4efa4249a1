"""Page-locked memory and the copies out of it; where there is no GPU, nothing to do."""

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("vllm.lorasim")


def pinned(memory: Any) -> Any:
    """Lock the pages of a tensor's memory (cudaHostRegister), so that copies to the GPU need no staging.

    Shared memory cannot come from torch's own allocator. Returns the tensor.
    """
    import torch

    if torch.cuda.is_available():
        error = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0)
        if error.value != 0:
            logger.warning(
                "cudaHostRegister of %d bytes: error %d; copies will be slower", memory.numel(), error
            )
    return memory


def copies_done() -> Callable[[], bool]:
    """Return what says whether everything that the current stream has been given so far is done."""
    import torch

    if not torch.cuda.is_available():
        return lambda: True
    event = torch.cuda.Event()
    event.record()
    return lambda: bool(event.query())
