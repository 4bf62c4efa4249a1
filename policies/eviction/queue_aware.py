"""LRU that looks at the batch and at the waiting queue.

Belady's rule, as far as the queue tells the future: whatever waits is certain to be asked for, and soon.
"""

from collections.abc import Collection

from policies.eviction.lru import Lru


class QueueAware(Lru):
    """Evict the least recent key for which nobody waits, or else the one for which the fewest wait.

    A key that the coming step needs is never given up.
    """

    def __init__(self) -> None:
        super().__init__(protect_batch=True)

    def victim(self, needed: Collection[str]) -> str:
        """Return the least recent key outside `needed` for which nobody, or else the fewest, wait."""
        num_waiting = self._tier.num_waiting
        fewest: tuple[int, str] | None = None
        for key in self._dispensable(needed):
            waiting = num_waiting(key)
            if not waiting:
                return key
            if fewest is None or waiting < fewest[0]:
                fewest = waiting, key
        assert fewest is not None
        return fewest[1]
