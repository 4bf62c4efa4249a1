"""What a prefetch policy is told and what it must answer."""

from collections.abc import Iterable
from typing import Protocol

from policies.view import EngineView, RequestView


class PrefetchPolicy(Protocol):
    """Which adapters to bring from disk to the host cache ahead of need, beside the engine's work.

    With any policy but `none`, the engine's own thread loads nothing: the loader does, one adapter after
    another, and a request whose adapter is not in the host cache yet is not admitted, so that it stalls
    nobody. What waits must therefore be wanted sooner or later.
    """

    def bind(self, engine: EngineView) -> None:
        """Get to know the engine, once, before anything else."""
        ...

    def on_arrival(self, request: RequestView) -> None:
        """`request` waits now: it has arrived, or was preempted."""
        ...

    def on_departure(self, request: RequestView) -> None:
        """`request` waits no longer: it was admitted, or aborted."""
        ...

    def wanted(self) -> Iterable[str]:
        """Yield adapters to bring to the host cache, the most urgent first.

        Asked whenever the loader is free; it takes the first that is not there, and for which there is room:
        one is evicted that neither runs nor has been loaded for somebody who still waits, and is not brought
        back at the same instant unless somebody waits for it.
        """
        ...

    def next_change_ns(self) -> int | None:
        """When `wanted` might yield something else, though no request came or went; None: never."""
        ...
