"""Which adapter of the host cache lies in which block of the loader's memory."""

from collections.abc import Callable
from typing import Any

from calibrate.bridge.loader import AdapterLoader
from calibrate.bridge.pinning import copies_done, pinned
from calibrate.bridge.shared_blocks import SharedBlocks

SPARE_BLOCKS = 2
"""Beside one block for each entry of the host cache: one is being filled, one waits until it is idle."""


class AdoptedBlocks:
    """The loader and its memory, made once for an engine, since locking its pages takes seconds.

    `dtype` is that of the slots, as safetensors spells it.
    """

    def __init__(self, max_cpu_loras: int, adapter_bytes: int, dtype: str, max_lora_rank: int) -> None:
        blocks = SharedBlocks(max_cpu_loras + SPARE_BLOCKS, adapter_bytes)
        self.loader = AdapterLoader(blocks, dtype, max_lora_rank)
        self._memory = pinned(blocks.tensor())
        self._block_of: dict[int, int] = {}
        self._is_idle: dict[int, Callable[[], bool]] = {}

    def memory(self, block: int) -> Any:
        """Return a block as a uint8 tensor."""
        return self._memory[block]

    def on_adopted(self, lora_id: int, block: int) -> None:
        """An adapter in the host cache has its weights in `block` from now on."""
        self._block_of[lora_id] = block

    def on_activated(self, lora_id: int) -> None:
        """Copies out of the adapter's block have been started."""
        if lora_id in self._block_of:
            self._is_idle[lora_id] = copies_done()

    def on_left(self, lora_id: int) -> None:
        """An adapter has left the host cache: its block is free once the copies are done."""
        block, is_idle = self._block_of.pop(lora_id, None), self._is_idle.pop(lora_id, lambda: True)
        if block is not None:
            self.loader.release(block, is_idle)
