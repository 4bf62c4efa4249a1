"""How often adapters were swapped into GPU slots: ``/swap_stats``."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sim.adapters import AdapterEvent


@dataclass
class SwapCounts:
    """``swap_calls``: times that adapters were brought into slots (once an engine step, at most);
    ``swap_count``: the adapters that were.
    """

    swap_calls: int = 0
    swap_count: int = 0


class SwapStats:
    """Swaps at start, of the ``preloaded`` adapters of each replica, and those since the last reset."""

    def __init__(self, num_preloaded: int, num_replicas: int) -> None:
        num_calls = num_replicas if num_preloaded else 0
        self._init = SwapCounts(num_calls, num_preloaded * num_replicas)
        self._runtime = SwapCounts()

    def count(self, events: Sequence[AdapterEvent]) -> None:
        """Count the swaps of an engine step."""
        num_swaps = sum(event.kind == "activate" for event in events)
        self._runtime.swap_calls += num_swaps > 0
        self._runtime.swap_count += num_swaps

    def reset(self) -> None:
        """Forget the swaps since the start."""
        self._runtime = SwapCounts()

    def body(self) -> dict[str, Any]:
        """Return the JSON body of ``/swap_stats``."""
        return {"init": asdict(self._init), "runtime": asdict(self._runtime)}
