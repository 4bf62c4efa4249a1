"""S3-FIFO: three queues, of which a small one lets most newcomers go early.

J. Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023 (libCacheSim, eviction/S3FIFO.c:
the version that fills the main queue when the small one is full and nothing was evicted yet).
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator

from policies.eviction.protocol import TierView
from policies.parameters import checked, checked_count

MOST_ROUNDS = 3
"""Times that one key is reinserted into the main queue, at most: its uses are counted in two bits."""


class S3Fifo:
    """Evict from a small queue what was used too little while in it; the rest goes on to the main queue.

    In the main queue a key that was used is reinserted, as long as its uses last. What the small queue evicts
    is remembered for a while, and enters the main queue when it comes back.

    `small_size_ratio`, `ghost_size_ratio`: length of the small queue, and of the memory of its victims, over
    the capacity of the tier. `move_to_main_threshold`: uses in the small queue, after the first, that take a
    key to the main queue; an adapter is used by every step of its requests. The names are libCacheSim's.

    Raises ValueError for a small queue that is not a part of the tier, or a negative length or threshold.
    """

    def __init__(
        self,
        small_size_ratio: float = 0.10,
        ghost_size_ratio: float = 0.90,
        move_to_main_threshold: int = 2,
    ) -> None:
        self._small_size_ratio = checked("small_size_ratio", small_size_ratio, above=0, below=1)
        self._ghost_size_ratio = checked("ghost_size_ratio", ghost_size_ratio, at_least=0)
        self._move_to_main_threshold = checked_count(
            "move_to_main_threshold", move_to_main_threshold, at_least=0
        )
        # Oldest first.
        self._small: OrderedDict[str, None] = OrderedDict()
        self._main: OrderedDict[str, None] = OrderedDict()
        self._ghosts: OrderedDict[str, None] = OrderedDict()
        self._uses: dict[str, int] = {}
        self._returning: set[str] = set()
        self._has_evicted = False

    def bind(self, tier: TierView) -> None:
        """Share the tier's capacity out. The small queue has a place at least."""
        self._small_size = max(1, int(tier.capacity * self._small_size_ratio))
        self._main_size = tier.capacity - self._small_size
        self._num_ghosts = int(tier.capacity * self._ghost_size_ratio)

    def on_miss(self, key: str) -> None:
        """See whether the small queue gave `key` up lately."""
        if key in self._ghosts:
            del self._ghosts[key]
            self._returning.add(key)

    def on_insert(self, key: str) -> None:
        """`key` goes to the end of a queue."""
        filling_main = not self._has_evicted and len(self._small) >= self._small_size
        (self._main if key in self._returning or filling_main else self._small)[key] = None
        self._returning.discard(key)
        self._uses[key] = 0

    def on_access(self, key: str) -> None:
        """`key` was used once more."""
        self._uses[key] += 1

    def on_repeat(self, keys: Collection[str], num_steps: int, last_ns: int) -> None:
        """`keys` were used `num_steps` times more."""
        for key in keys:
            self._uses[key] += num_steps

    def on_remove(self, key: str) -> None:
        """Forget `key`, unless it is a victim of the small queue."""
        del (self._small if key in self._small else self._main)[key]
        del self._uses[key]

    def victim(self, needed: Collection[str]) -> str:
        """Return the first key outside `needed` that its queue lets go."""
        self._has_evicted = True
        victim = next(self._leaving(frozenset(needed)))
        if victim in self._small:
            self._remember(victim)
        return victim

    def _leaving(self, needed: frozenset[str]) -> Iterator[str]:
        """Yield what may leave, and move keys on the way."""
        if len(self._main) <= self._main_size:
            yield from self._leaving_small(needed)
        yield from self._leaving_main(needed)
        yield from self._leaving_small(needed)

    def _leaving_small(self, needed: frozenset[str]) -> Iterator[str]:
        for key in list(self._small):
            if self._uses[key] >= self._move_to_main_threshold:
                del self._small[key]
                self._main[key] = None
                self._uses[key] = 0
            elif key not in needed:
                yield key

    def _leaving_main(self, needed: frozenset[str]) -> Iterator[str]:
        for _ in range(MOST_ROUNDS + 1):
            for key in list(self._main):
                if self._uses[key]:
                    self._main.move_to_end(key)
                    self._uses[key] = min(self._uses[key], MOST_ROUNDS) - 1
                elif key not in needed:
                    yield key

    def _remember(self, victim: str) -> None:
        self._ghosts[victim] = None
        if len(self._ghosts) > self._num_ghosts:
            self._ghosts.popitem(last=False)
