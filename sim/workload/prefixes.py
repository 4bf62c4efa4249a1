"""Shared prompt prefixes: from a trace's ``hash_ids`` to the engine's blocks."""

from collections.abc import Sequence

MAX_BLOCKS = 2**24


def prefix_hashes(
    hash_ids: Sequence[int], input_length: int, hash_block_size: int, block_size: int
) -> tuple[int, ...]:
    """Return what stands for the prompt up to the end of each full engine block that ``hash_ids`` cover.

    As in Mooncake's traces, ``hash_ids[i]`` stands for all tokens up to the end of the i-th block of
    ``hash_block_size``, or to the end of the prompt, so prompts with the same id there begin alike. An engine
    block of ``block_size`` that ends in it is told from its neighbours by its own number.
    """
    num_covered = min(input_length, len(hash_ids) * hash_block_size) // block_size
    return tuple(
        hash_ids[((number + 1) * block_size - 1) // hash_block_size] * MAX_BLOCKS + number
        for number in range(num_covered)
    )
