"""Which adapter of the host cache lies in which block of the loader's memory."""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calibrate.bridge.loaded import Loaded
from calibrate.bridge.loader import JOBS, AdapterLoader
from calibrate.bridge.pinning import copies_done, pinned
from calibrate.bridge.read_weights import layout_of, read_adapter
from calibrate.bridge.shared_blocks import SharedBlocks
from calibrate.bridge.slot_copies import SlotCopies

SPARE_BLOCKS = JOBS + 1
"""Beside one block for each entry of the host cache: those to be filled, and one that is not idle yet."""


class AdoptedBlocks:
    """The loader and its memory, made once for an engine, since locking its pages takes seconds.

    `dtype` is that of the slots, as safetensors spells it; `stacks` are the tensors that hold the slots.
    """

    def __init__(
        self,
        max_cpu_loras: int,
        adapter_bytes: int,
        dtype: str,
        max_lora_rank: int,
        stacks: Iterable[Any],
    ) -> None:
        self._blocks = SharedBlocks(max_cpu_loras + SPARE_BLOCKS, adapter_bytes)
        self.loader = AdapterLoader(self._blocks, dtype, max_lora_rank)
        self.copies = SlotCopies(stacks, self._blocks.block_bytes)
        self._dtype, self._max_lora_rank = dtype, max_lora_rank
        self._memory = pinned(self._blocks.tensor())
        self._loaded: dict[int, Loaded] = {}
        self._is_idle: dict[int, Callable[[], bool]] = {}

    def memory(self, block: int) -> Any:
        """Return a block as a uint8 tensor."""
        return self._memory[block]

    def read(self, key: str, folder: Path) -> Loaded | None:
        """Read an adapter here and now; None: no block is free. Raises AdapterError."""
        block = self.loader.take()
        if block is None:
            return None
        with self.given_back_on_error(block):
            config, entries = read_adapter(
                folder, self._blocks.bytes_of(block), self._dtype, self._max_lora_rank
            )
        return Loaded(key, block, config, entries, layout_of(entries))

    @contextmanager
    def given_back_on_error(self, block: int) -> Any:
        """Free the block should what is done with it fail."""
        try:
            yield
        except Exception:
            self.loader.release(block)
            raise

    def of(self, lora_id: int) -> Loaded | None:
        """Return what was loaded for an adapter of the host cache, if it lies in a block."""
        return self._loaded.get(lora_id)

    def on_adopted(self, lora_id: int, loaded: Loaded) -> None:
        """An adapter in the host cache has its weights in a block from now on."""
        self._loaded[lora_id] = loaded

    def on_activated(self, lora_id: int) -> None:
        """Copies out of the adapter's block have been started."""
        if lora_id in self._loaded:
            self._is_idle[lora_id] = copies_done()

    def on_left(self, lora_id: int) -> None:
        """An adapter has left the host cache: its block is free once the copies are done."""
        loaded, is_idle = self._loaded.pop(lora_id, None), self._is_idle.pop(lora_id, lambda: True)
        if loaded is not None:
            self.loader.release(loaded.block, is_idle)
