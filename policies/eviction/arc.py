"""Adaptive replacement cache: recency and frequency share the tier as misses tell.

N. Megiddo and D. S. Modha, "ARC: a self-tuning, low overhead replacement cache", FAST 2003 (libCacheSim,
eviction/ARC.c, whose target is a real number too).
"""

from collections import OrderedDict
from collections.abc import Collection
from itertools import chain

from policies.eviction.key_order import KeyOrder


class Arc(KeyOrder):
    """Keep keys used once and keys used more often apart, and evict the least recent of one of the two.

    Of either kind, victims are remembered for a while (the paper's B1 and B2, beside T1 and T2). A miss on
    one of them says that its kind should have had more room, and moves the target size of T1.

    An adapter is used by every step of its requests, so that T1 soon holds nothing but what was brought in
    for a single step, or prefetched.
    """

    def __init__(self) -> None:
        super().__init__()
        # Least recent first.
        self._once: OrderedDict[str, None] = OrderedDict()
        self._often: OrderedDict[str, None] = OrderedDict()
        self._once_before: OrderedDict[str, None] = OrderedDict()
        self._often_before: OrderedDict[str, None] = OrderedDict()
        self._target = 0.0
        self._missed_often_before = False
        self._returning: set[str] = set()

    def on_miss(self, key: str) -> None:
        """Where `key` is remembered, its kind gets more room."""
        once, often = len(self._once_before), len(self._often_before)
        self._missed_often_before = key in self._often_before
        if key in self._once_before:
            self._target = min(self._target + max(often / once, 1), self._tier.capacity)
            del self._once_before[key]
            self._returning.add(key)
        elif self._missed_often_before:
            self._target = max(self._target - max(once / often, 1), 0)
            del self._often_before[key]
            self._returning.add(key)

    def on_insert(self, key: str) -> None:
        """`key` was used once, or more often where it was remembered."""
        super().on_insert(key)
        (self._often if key in self._returning else self._once)[key] = None
        self._returning.discard(key)
        self._forget()

    def on_access(self, key: str) -> None:
        """`key` was used more than once."""
        self._once.pop(key, None)
        self._often[key] = None
        self._often.move_to_end(key)
        self._order.move_to_end(key)

    def on_repeat(self, keys: Collection[str], num_steps: int, last_ns: int) -> None:
        """All of `keys` were used more than once, in the order of the last step."""
        if num_steps:
            for key in self._in_order(keys):
                self.on_access(key)

    def on_remove(self, key: str) -> None:
        """Forget `key`, unless it is a victim."""
        super().on_remove(key)
        del (self._once if key in self._once else self._often)[key]

    def victim(self, needed: Collection[str]) -> str:
        """Return, and remember, the least recent key outside `needed` of the kind that has too much room."""
        once = len(self._once)
        too_many_once = once > self._target or (once == self._target and self._missed_often_before)
        kinds = (self._once, self._often) if too_many_once else (self._often, self._once)
        victim = next(key for key in chain(*kinds) if key not in needed)
        (self._once_before if victim in self._once else self._often_before)[victim] = None
        return victim

    def _forget(self) -> None:
        """Hold T1 and B1 within the tier's capacity, and all four within twice as much, oldest first."""
        capacity = self._tier.capacity
        while len(self._once) + len(self._once_before) > capacity:
            self._once_before.popitem(last=False)
        in_tier = len(self._once) + len(self._often)
        while in_tier + len(self._once_before) + len(self._often_before) > 2 * capacity:
            self._often_before.popitem(last=False)
