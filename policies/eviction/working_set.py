"""The working set: what was used lately stays.

P. J. Denning, "The working set model for program behavior", CACM 11(5), 1968. Whom to stop when the working
sets do not fit, "the last process activated", is one of the answers in R. W. Carr, "Virtual Memory
Management", 1984.
"""

from collections.abc import Collection

from policies.eviction.key_order import KeyOrder
from policies.parameters import duration_ns


class WorkingSet(KeyOrder):
    """Evict the least recent of the keys that were not used within `window_s`.

    Where all were, the tier is smaller than the working set, and the newcomers take turns in what is left:
    the key that entered last goes, so that those that are in can be used to the end.

    `window_s`: seconds of the tier's clock; in `replay`, where the clock is the index, 1e-9 a reference.

    Raises ValueError where `window_s` is no positive number.
    """

    def __init__(self, window_s: float = 10.0) -> None:
        super().__init__()
        self._window_ns = duration_ns("window_s", window_s, positive=True)
        # In order of entry.
        self._last_use_ns: dict[str, int] = {}

    def on_insert(self, key: str) -> None:
        """`key` is used now."""
        super().on_insert(key)
        self._last_use_ns[key] = self._tier.now_ns

    def on_access(self, key: str) -> None:
        """`key` is used now."""
        self._last_use_ns[key] = self._tier.now_ns
        self._order.move_to_end(key)

    def on_repeat(self, keys: Collection[str], num_steps: int, last_ns: int) -> None:
        """`keys` were last used at `last_ns`."""
        super().on_repeat(keys, num_steps, last_ns)
        if num_steps:
            for key in keys:
                self._last_use_ns[key] = last_ns

    def on_remove(self, key: str) -> None:
        """Forget `key`, and when it was used."""
        super().on_remove(key)
        del self._last_use_ns[key]

    def victim(self, needed: Collection[str]) -> str:
        """Return the least recent key outside `needed` and the window, or else the last that entered."""
        oldest = next(self._dispensable(needed))
        if self._tier.now_ns - self._last_use_ns[oldest] > self._window_ns:
            return oldest
        return next(key for key in reversed(self._last_use_ns) if key not in needed)
