"""The adapter cache of Chameleon: frequency, recency and size in one score.

N. Iliakopoulou et al., "Chameleon: Adaptive Caching and Scheduling for Many-Adapter LLM Inference
Environments", MICRO 2025 (arXiv 2411.17741).
"""

from collections.abc import Collection

from policies.eviction.key_order import KeyOrder
from policies.parameters import checked


class Chameleon(KeyOrder):
    """Evict the key with the lowest weighted sum of three parts; of several, the least recent.

    Each part is between 0 and 1 among the keys that may be given up: uses since it entered the tier, against
    the most used; time since its last use, 1 for just now and 0 for the longest; bytes, against the largest,
    since a larger adapter takes longer to bring back. The three parts and their weights are the paper's; how
    they are scaled to one range, and counted, is ours.

    Raises ValueError for a weight that is no number of 0 or more.
    """

    def __init__(
        self, frequency_weight: float = 0.45, recency_weight: float = 0.10, size_weight: float = 0.45
    ) -> None:
        super().__init__()
        self._frequency_weight = checked("frequency_weight", frequency_weight, at_least=0)
        self._recency_weight = checked("recency_weight", recency_weight, at_least=0)
        self._size_weight = checked("size_weight", size_weight, at_least=0)
        self._uses: dict[str, int] = {}
        self._last_use_ns: dict[str, int] = {}
        self._size_bytes: dict[str, int] = {}

    def on_insert(self, key: str) -> None:
        """`key` was used once, now."""
        super().on_insert(key)
        self._uses[key] = 1
        self._last_use_ns[key] = self._tier.now_ns
        self._size_bytes[key] = self._tier.size_bytes(key)

    def on_access(self, key: str) -> None:
        """`key` was used once more, now."""
        self._uses[key] += 1
        self._last_use_ns[key] = self._tier.now_ns
        self._order.move_to_end(key)

    def on_repeat(self, keys: Collection[str], num_steps: int, last_ns: int) -> None:
        """`keys` were used `num_steps` times more, the last time at `last_ns`."""
        super().on_repeat(keys, num_steps, last_ns)
        if num_steps:
            for key in keys:
                self._uses[key] += num_steps
                self._last_use_ns[key] = last_ns

    def on_remove(self, key: str) -> None:
        """Forget `key` and what was counted."""
        super().on_remove(key)
        for of_key in (self._uses, self._last_use_ns, self._size_bytes):
            del of_key[key]

    def victim(self, needed: Collection[str]) -> str:
        """Return the key outside `needed` with the lowest score."""
        keys = list(self._dispensable(needed))
        uses = [self._uses[key] for key in keys]
        sizes_bytes = [self._size_bytes[key] for key in keys]
        last_uses_ns = [self._last_use_ns[key] for key in keys]
        longest_ago_ns = last_uses_ns[0]
        per_use = self._frequency_weight / max(uses)
        per_ns = self._recency_weight / max(1, self._tier.now_ns - longest_ago_ns)
        per_byte = self._size_weight / max(1, *sizes_bytes)
        scores = [
            per_use * count + per_ns * (last_use_ns - longest_ago_ns) + per_byte * size_bytes
            for count, last_use_ns, size_bytes in zip(uses, last_uses_ns, sizes_bytes, strict=True)
        ]
        return keys[scores.index(min(scores))]
