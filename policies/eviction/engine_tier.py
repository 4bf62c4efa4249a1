"""A tier of an engine, as its eviction policy sees it."""

from collections.abc import Callable

from policies.view import EngineView


class EngineTier:
    """A `TierView` by what the engine's view says; nothing here is a copy.

    `cost_ns`: expected time to bring a key back into the tier.
    """

    def __init__(self, engine: EngineView, capacity: int, cost_ns: Callable[[str], int]) -> None:
        self.capacity = capacity
        self._engine = engine
        self.cost_ns = cost_ns
        self.size_bytes = engine.costs.size_bytes
        self.num_waiting = engine.num_waiting

    @property
    def now_ns(self) -> int:
        """The engine's clock."""
        return self._engine.now_ns

    def next_use_ns(self, key: str) -> float:
        """Now, where somebody runs or waits; else when the next request for `key` will arrive, if known."""
        engine = self._engine
        if engine.num_running(key) or engine.num_waiting(key):
            return engine.now_ns
        return engine.next_arrival_ns(key)
