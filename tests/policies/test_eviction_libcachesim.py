"""The policies that libCacheSim has too, against it: the same hits and misses, reference by reference."""

import platform
import random
import sys
from collections.abc import Iterator

import pytest

from policies.eviction import replay
from tests.policies.eviction_golden import read_references

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="libcachesim is installed on Linux on x86-64 only (pyproject.toml)",
)
CLASSES = {"arc": "ARC", "belady": "Belady", "fifo": "FIFO", "lfu": "LFU", "lru": "LRU", "s3fifo": "S3FIFO"}
NEVER = 2**63 - 1
LENGTH = 3000
CAPACITIES = (32, 33, 50, 128)
"""Its S3-FIFO refuses capacities below 10, and up to 19 it never inserts anything."""


def libcachesim(name: str, capacity: int, references: list[int]) -> list[bool]:
    """Return hit or miss per reference of libCacheSim's class with its default parameters."""
    import libcachesim  # noqa: PLC0415

    following = [NEVER] * len(references)
    next_use: dict[int, int] = {}
    for index in range(len(references) - 1, -1, -1):
        following[index] = next_use.get(references[index], NEVER)
        next_use[references[index]] = index
    # `hashpower` is the size of its hash table, a matter of memory.
    cache = getattr(libcachesim, CLASSES[name])(capacity, hashpower=12)
    return [
        cache.get(libcachesim.Request(obj_id=key, obj_size=1, clock_time=index, next_access_vtime=next_index))
        for index, (key, next_index) in enumerate(zip(references, following, strict=True))
    ]


def zipf(rng: random.Random, num_keys: int, alpha: float, length: int = LENGTH) -> list[int]:
    weights = [1 / rank**alpha for rank in range(1, num_keys + 1)]
    return rng.choices(range(num_keys), weights, k=length)


def shuffled(rng: random.Random, num_keys: int, times: int) -> list[int]:
    references = [key for key in range(num_keys) for _ in range(times)]
    rng.shuffle(references)
    return references


def strings() -> Iterator[tuple[str, list[int]]]:
    rng = random.Random(0)
    yield "zipf 0.6 of 300", zipf(rng, 300, 0.6)
    yield "zipf 0.9 of 1000", zipf(rng, 1000, 0.9)
    yield "zipf 1.2 of 1000", zipf(rng, 1000, 1.2)
    yield "scan", list(range(LENGTH))
    yield (
        "zipf and scan in turn",
        [
            key
            for place, popular in enumerate(zipf(rng, 500, 1.0, LENGTH // 2))
            for key in (popular, 1000 + place)
        ],
    )
    yield "scan then zipf", [*range(1000, 1400), *zipf(rng, 300, 0.9)]
    for length in (31, 33, 48, 150):
        yield f"loop of {length}", [index % length for index in range(LENGTH)]
    yield "shuffled, 150 each 20 times", shuffled(rng, 150, 20)
    yield "shuffled rounds", [key for _ in range(20) for key in rng.sample(range(150), 150)]
    yield "the golden one", read_references()


STRINGS = dict(strings())


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("string", STRINGS)
def test_hits_and_misses_are_those_of_libcachesim(name: str, string: str) -> None:
    references = STRINGS[string]
    for capacity in CAPACITIES:
        assert replay(name, capacity, references) == libcachesim(name, capacity, references), capacity
