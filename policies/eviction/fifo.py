"""First in, first out (libCacheSim, eviction/FIFO.c)."""

from collections.abc import Collection

from policies.eviction.key_order import KeyOrder


class Fifo(KeyOrder):
    """Evict the key that has been in the tier longest, however often it is used."""

    def on_access(self, key: str) -> None:
        """Use does not count."""

    def on_repeat(self, keys: Collection[str], num_steps: int, last_ns: int) -> None:
        """Use does not count."""

    def victim(self, needed: Collection[str]) -> str:
        """Return the key that came first, of those outside `needed`."""
        return next(self._dispensable(needed))
