"""KV cache blocks, counted."""

from collections.abc import Sequence
from typing import Any

from sim.request import Request


class KVBlockPool:
    """What vLLM's `KVCacheManager` decides for one full-attention group without prefix caching.

    Only the number of blocks matters for a decision, so none has an identity. `num_gpu_blocks` is vLLM's: one
    of them is the null block, which is never given out.
    """

    def __init__(self, num_gpu_blocks: int, block_size: int) -> None:
        self.num_gpu_blocks = num_gpu_blocks
        self.block_size = block_size
        self.num_free_blocks = num_gpu_blocks - 1

    @property
    def num_used_blocks(self) -> int:
        """Blocks that requests hold."""
        return self.num_gpu_blocks - 1 - self.num_free_blocks

    def computed_blocks(self, request: Request) -> Sequence[Any]:
        """Return the blocks that `request`, which waits, need not compute: none."""
        return ()

    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        computed_blocks: Sequence[Any] = (),
        full_sequence_must_fit: bool = False,
    ) -> bool:
        """Give `request` the blocks it lacks for `num_new_tokens` more, or nothing and return False.

        `full_sequence_must_fit` asks for room for every known token, also where only a first chunk is
        scheduled (`KVCacheManager.allocate_slots`; its watermark is off by default).
        """
        needed_tokens = request.num_computed_tokens + num_new_tokens
        num_new_blocks = -(-needed_tokens // self.block_size) - request.num_kv_blocks
        required_tokens = max(needed_tokens, request.num_tokens) if full_sequence_must_fit else needed_tokens
        if -(-required_tokens // self.block_size) - request.num_kv_blocks > self.num_free_blocks:
            return False
        self.num_free_blocks -= num_new_blocks
        request.num_kv_blocks += num_new_blocks
        return True

    def take(self, num_blocks: int) -> None:
        """Give `num_blocks` of the free blocks to requests that hold them together."""
        self.num_free_blocks -= num_blocks

    def cache_blocks(self, request: Request, num_tokens: int) -> None:
        """Take note that the first `num_tokens` of `request` are known; nothing is kept of it here."""

    def free(self, request: Request) -> None:
        """Take back all blocks of `request`."""
        self.num_free_blocks += request.num_kv_blocks
        request.num_kv_blocks = 0

    def reset_prefix_cache(self) -> None:
        """Forget the contents of all blocks, of which none is in use; nothing is kept of them here."""
