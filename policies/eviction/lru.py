"""Least recently used first: vLLM's only policy (vllm/utils/cache.py, `LRUCache`)."""

from collections.abc import Callable, Collection

from policies.eviction.key_order import KeyOrder
from policies.parameters import checked_flag


class Lru(KeyOrder):
    """Evict the key that was inserted or accessed longest ago, even when the coming step needs it.

    That is what makes vLLM's cascade: an adapter early in a step's order may evict one that comes later in
    the same order, which is then brought back at the cost of another. `protect_batch` passes over whatever
    the coming step needs, which ends the cascade.
    """

    def __init__(self, protect_batch: bool = False) -> None:
        super().__init__()
        self._protect_batch = checked_flag("protect_batch", protect_batch)
        self.on_access: Callable[[str], None] = self._order.move_to_end
        """`key` is the most recent now. (Called for every adapter of a step: no function of ours between.)"""

    def victim(self, needed: Collection[str]) -> str:
        """Return the least recent key, of those outside `needed` with `protect_batch`."""
        return next(self._dispensable(needed) if self._protect_batch else iter(self._order))
