"""What a user must know of a run beside its numbers."""

from collections.abc import Mapping
from typing import Any


def caveats_of(summary: Mapping[str, Any]) -> list[str]:
    """Return the sentences in ``summary.json`` that warn, of settings and of what was measured."""
    return [*summary.get("warnings", ()), *(summary.get("profile") or {}).get("outside_range", ())]
