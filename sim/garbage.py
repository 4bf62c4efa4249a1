"""When Python looks for garbage that refers to itself."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

COLLECT_EVERY = 500_000
"""New objects, beyond those that have gone, between two looks for garbage."""


@contextmanager
def rarely_collecting_garbage() -> Iterator[None]:
    """Look for cycles less often, and not among what was there before.

    A run keeps its requests and makes no cycles, though a policy may; nor does a configuration while it is
    composed. Each look costs as much as there are objects.
    """
    first, *others = gc.get_threshold()
    gc.set_threshold(max(first, COLLECT_EVERY), *others)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(first, *others)


def leave_garbage_at_exit() -> None:
    """Spare the process its last look for cycles, among all that it holds: its memory goes in any case.

    What is no part of a cycle goes as ever, so that files are closed and written out.
    """
    atexit.register(gc.freeze)
