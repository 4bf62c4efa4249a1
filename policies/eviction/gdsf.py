"""GreedyDual-Size-Frequency: what a byte of the tier saves.

L. Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy", HP Labs
1998 (HPL-98-69R1).
"""

from collections.abc import Collection

from policies.eviction.key_order import KeyOrder


class Gdsf(KeyOrder):
    """Evict the key with the lowest ``age + uses x cost / size``; of several, the least recent.

    `cost`: the time to bring the key back, `size`: its bytes, both as they were when it entered; `uses`:
    since then; `age`: the value of the last victim at the time of the key's last use. So what was used much
    long ago falls behind, and where all keys are of one size and cost this is LFU with ageing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._age = 0.0
        self._ns_per_byte: dict[str, float] = {}
        self._uses: dict[str, int] = {}
        self._value: dict[str, float] = {}

    def on_insert(self, key: str) -> None:
        """`key` was used once."""
        super().on_insert(key)
        self._ns_per_byte[key] = self._tier.cost_ns(key) / max(1, self._tier.size_bytes(key))
        self._uses[key] = 0
        self._use(key, 1)

    def on_access(self, key: str) -> None:
        """`key` was used once more."""
        self._use(key, 1)
        self._order.move_to_end(key)

    def on_repeat(self, keys: Collection[str], num_steps: int, last_ns: int) -> None:
        """`keys` were used `num_steps` times more."""
        super().on_repeat(keys, num_steps, last_ns)
        if num_steps:
            for key in keys:
                self._use(key, num_steps)

    def on_remove(self, key: str) -> None:
        """Forget `key`, and how often it was used."""
        super().on_remove(key)
        for of_key in (self._ns_per_byte, self._uses, self._value):
            del of_key[key]

    def victim(self, needed: Collection[str]) -> str:
        """Return the key outside `needed` that is worth least; later uses of others start from its value."""
        victim = min(self._dispensable(needed), key=self._value.__getitem__)
        self._age = self._value[victim]
        return victim

    def _use(self, key: str, times: int) -> None:
        uses = self._uses[key] = self._uses[key] + times
        self._value[key] = self._age + uses * self._ns_per_byte[key]
