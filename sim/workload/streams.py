"""Independent random streams by name: common random numbers across settings and policies."""

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 4096


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the generator of one concern (``"arrivals"``, ``"popularity"``, ...) of a run.

    Two names never share draws, and what one concern consumes never moves another, so a run that differs
    in a policy, an engine setting or another concern sees the same numbers here. ``seed`` >= 0.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(name.encode()),)))


def endless(draw: Callable[[int], NDArray[Any]]) -> Iterator[Any]:
    """Yield the numbers of ``draw(CHUNK)``, one by one and over and over, as Python's."""
    while True:
        yield from draw(CHUNK).tolist()
