"""The order of use that most eviction policies start from."""

from collections import OrderedDict
from collections.abc import Collection, Iterator

from policies.eviction.protocol import TierView


class KeyOrder:
    """The keys of a tier, the least recent first.

    It answers all of `EvictionPolicy` but `on_access` and `victim`, which a policy adds, with what it counts.
    An `on_access` has to end with ``self._order.move_to_end(key)``.
    """

    _tier: TierView

    def __init__(self) -> None:
        # A plain dict would not do: finding its first key gets slow where keys were deleted at the front.
        self._order: OrderedDict[str, None] = OrderedDict()

    def bind(self, tier: TierView) -> None:
        """Remember the tier."""
        self._tier = tier

    def on_miss(self, key: str) -> None:
        """Nothing to prepare."""

    def on_insert(self, key: str) -> None:
        """`key` is the most recent now."""
        self._order[key] = None

    def on_repeat(self, keys: Collection[str], num_steps: int, last_ns: int) -> None:
        """Nothing changes, unless something was prefetched: the last step has put `keys` in this order."""
        if keys and num_steps and next(reversed(self._order)) not in keys:
            for key in self._in_order(keys):
                self._order.move_to_end(key)

    def on_remove(self, key: str) -> None:
        """Forget `key`."""
        del self._order[key]

    def _in_order(self, keys: Collection[str]) -> list[str]:
        """Return `keys`, which are all in the tier, the least recent first."""
        asked = frozenset(keys)
        found: list[str] = []
        latest_first = reversed(self._order)
        while len(found) < len(asked):
            key = next(latest_first)
            if key in asked:
                found.append(key)
        return found[::-1]

    def _dispensable(self, needed: Collection[str]) -> Iterator[str]:
        """Yield the keys that may be given up without loss to the coming step, the least recent first."""
        spared = frozenset(needed)
        return (key for key in self._order if key not in spared)
