"""What an engine may use of the machine's CPU while it plays."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Keep this thread on one CPU core: cores, and what shares them, may differ in speed."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch use so many threads for its work on the CPU, as OMP_NUM_THREADS does for a whole process.

    Its default is one a core, also in vLLM with one GPU (with more, vllm/v1/executor/multiproc_executor.py
    sets one): each of the hundreds of tensors of an adapter is copied by all of them, and waits for the
    slowest.
    """
    if count is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
