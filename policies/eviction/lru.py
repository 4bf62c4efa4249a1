"""Least recently used first: vLLM's only policy (vllm/utils/cache.py, `LRUCache`)."""

from collections.abc import Collection

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
        self.protects_batch = checked_flag("protect_batch", protect_batch)
        if type(self) is Lru:
            # Called several times a step: no functions of ours between. Those of a derived policy stay.
            self.on_access = self._order.move_to_end  # type: ignore[method-assign]
            self.on_insert = self._order.setdefault  # type: ignore[method-assign]
            self.on_remove = self._order.__delitem__  # type: ignore[method-assign, assignment]

    def on_access(self, key: str) -> None:
        """`key` is the most recent now."""
        self._order.move_to_end(key)

    def victim(self, needed: Collection[str]) -> str:
        """Return the least recent key, of those outside `needed` with `protect_batch`."""
        return next(self._dispensable(needed) if self.protects_batch else iter(self._order))
