"""The lowest point of a function on a lattice, found by a pattern search."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

Point = tuple[int, ...]
SCALES = (8, 4, 2, 1)
"""Steps of the lattice that a move takes, one after another."""


def descend(error: Callable[[Point], float], start: Sequence[int]) -> tuple[Point, Mapping[Point, float]]:
    """Return the lowest point that is found from `start`, and all that were tried with their errors.

    Of the neighbours a step away in any direction, diagonals included, the lowest is taken until none is
    lower; then the step is halved (Hooke and Jeeves 1961). No coordinate is below 0. A lattice, because its
    points are the same on every machine, where a descent in the reals ends in other last digits.
    """
    tried: dict[Point, float] = {}

    def value(point: Point) -> float:
        if point not in tried:
            tried[point] = error(point)
        return tried[point]

    best = tuple(start)
    for scale in SCALES:
        while True:
            moves = product((-scale, 0, scale), repeat=len(best))
            around = [tuple(map(sum, zip(best, move, strict=True))) for move in moves]
            lowest = min((point for point in around if min(point) >= 0), key=value)
            if value(lowest) >= value(best):
                break
            best = lowest
    return best, tried
