"""Memory that the engine and the loader's process share: blocks of one adapter each."""

import mmap
import os
from typing import Any


class SharedBlocks:
    """`num_blocks` blocks of `block_bytes` bytes in one mapping, which a child process finds by `fd`.

    An anonymous file (memfd_create), so that the size of /dev/shm, 64 MB in many containers, is no limit; it
    goes with the last process that has it.
    """

    def __init__(self, num_blocks: int, block_bytes: int) -> None:
        page = mmap.PAGESIZE
        self.block_bytes = -(-block_bytes // page) * page
        self.num_blocks = num_blocks
        self.fd = os.memfd_create("lorasim-adapters")
        os.ftruncate(self.fd, self.num_bytes)
        self._memory = mmap.mmap(self.fd, self.num_bytes)

    @property
    def num_bytes(self) -> int:
        """Size of all blocks together."""
        return self.num_blocks * self.block_bytes

    def bytes_of(self, block: int) -> memoryview:
        """Return a block's memory, to be written."""
        begin = block * self.block_bytes
        return memoryview(self._memory)[begin : begin + self.block_bytes]

    def tensor(self) -> Any:
        """Return all blocks as one torch tensor of uint8, of shape [num_blocks, block_bytes]."""
        import torch

        return torch.frombuffer(self._memory, dtype=torch.uint8).view(self.num_blocks, self.block_bytes)

    def close(self) -> None:
        """Close the file; the mapping goes when nobody refers to it any more."""
        os.close(self.fd)


def attached(fd: int, num_blocks: int, block_bytes: int) -> SharedBlocks:
    """Return the blocks that another process made."""
    blocks = SharedBlocks.__new__(SharedBlocks)
    blocks.fd, blocks.num_blocks, blocks.block_bytes = fd, num_blocks, block_bytes
    # All pages are entered in this process's page table now: an adapter's 20,000 would treble its load.
    blocks._memory = mmap.mmap(fd, num_blocks * block_bytes, mmap.MAP_SHARED | mmap.MAP_POPULATE)
    return blocks
