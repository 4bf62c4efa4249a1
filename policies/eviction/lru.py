"""Least recently used first: vLLM's only policy (vllm/utils/cache.py, `LRUCache`)."""

from collections import OrderedDict
from collections.abc import Callable, Collection

from policies.eviction.protocol import TierView


class Lru:
    """Evict the key that was inserted or accessed longest ago, even when the coming step needs it.

    That is what makes vLLM's cascade: an adapter early in a step's order may evict one that comes later in
    the same order, which is then brought back at the cost of another.
    """

    def __init__(self) -> None:
        # A plain dict would not do: finding its first key gets slow where keys were deleted at the front.
        self._order: OrderedDict[str, None] = OrderedDict()
        self.on_access: Callable[[str], None] = self._order.move_to_end
        """`key` is the most recent now. (Called for every adapter of a step: no function of ours between.)"""

    def bind(self, tier: TierView) -> None:
        """Only the order of use decides."""

    def on_miss(self, key: str) -> None:
        """Nothing to prepare."""

    def on_insert(self, key: str) -> None:
        """`key` is the most recent now."""
        self._order[key] = None

    def on_repeat(self, keys: Collection[str], num_steps: int, last_ns: int) -> None:
        """Nothing changes: the last step has put them in this order."""

    def on_remove(self, key: str) -> None:
        """Forget `key`."""
        del self._order[key]

    def victim(self, needed: Collection[str]) -> str:
        """Return the least recent key."""
        return next(iter(self._order))
