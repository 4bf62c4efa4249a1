"""Least frequently used first (libCacheSim, eviction/LFU.c)."""

from collections.abc import Collection

from policies.eviction.key_order import KeyOrder


class Lfu(KeyOrder):
    """Evict the key with the fewest uses since it entered the tier; of several, the least recent.

    An adapter is used by every step of its requests: long answers count for more than short ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self._uses: dict[str, int] = {}

    def on_insert(self, key: str) -> None:
        """`key` was used once."""
        super().on_insert(key)
        self._uses[key] = 1

    def on_access(self, key: str) -> None:
        """`key` was used once more."""
        self._uses[key] += 1
        self._order.move_to_end(key)

    def on_repeat(self, keys: Collection[str], num_steps: int, last_ns: int) -> None:
        """`keys` were used `num_steps` times more."""
        super().on_repeat(keys, num_steps, last_ns)
        for key in keys:
            self._uses[key] += num_steps

    def on_remove(self, key: str) -> None:
        """Forget `key`, and how often it was used."""
        super().on_remove(key)
        del self._uses[key]

    def victim(self, needed: Collection[str]) -> str:
        """Return the least frequently used key outside `needed`."""
        return min(self._dispensable(needed), key=self._uses.__getitem__)
