"""Arrival times as the simulator counts them."""

import numpy as np
from numpy.typing import NDArray

LATEST_NS = 2**62
"""146 years: no run lasts as long, and a sum of two such times still fits in 64 bits."""


def whole_ns(times_ns: NDArray[np.float64]) -> list[int]:
    """Return whole ns, none after `LATEST_NS`, beyond which a time would wrap round into the past."""
    whole: list[int] = np.rint(np.minimum(times_ns, LATEST_NS)).astype(np.int64).tolist()
    return whole
