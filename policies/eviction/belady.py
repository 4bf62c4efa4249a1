"""Belady's MIN: the bound that no policy can beat where every key costs the same.

L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2),
1966 (libCacheSim, eviction/Belady.c).
"""

from collections.abc import Collection

from policies.eviction.lru import Lru


class Belady(Lru):
    """Evict the key that will be asked for last, or never again; of several, the least recent.

    It asks the tier for the future, so it works in a simulation and in `replay` only. `replay` knows the
    exact next use. A simulation knows the next arrival, which admission may turn into a later use.
    """

    def __init__(self) -> None:
        super().__init__(protect_batch=True)

    def victim(self, needed: Collection[str]) -> str:
        """Return the key outside `needed` whose next use is farthest away."""
        return max(self._dispensable(needed), key=self._tier.next_use_ns)
