"""Independent random streams by name: common random numbers across settings and policies."""

import zlib

import numpy as np


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the generator of one concern (``"arrivals"``, ``"popularity"``, ...) of a run.

    Two names never share draws, and what one concern consumes never moves another, so a run that differs
    in a policy, an engine setting or another concern sees the same numbers here. ``seed`` >= 0.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(name.encode()),)))
