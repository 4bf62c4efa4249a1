"""Runs with and without the compiled engine."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sim.compiled import choice


@contextmanager
def without_compiled_code() -> Iterator[None]:
    """As where there was no compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "CompiledEngine", None)
        yield
