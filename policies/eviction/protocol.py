"""What an eviction policy is told and what it must answer."""

from collections.abc import Collection
from typing import Protocol


class TierView(Protocol):
    """The tier that an eviction policy works for: the GPU slots, or the host cache."""

    @property
    def capacity(self) -> int:
        """Most keys in the tier."""
        ...

    @property
    def now_ns(self) -> int:
        """The clock, in ns."""
        ...

    def size_bytes(self, key: str) -> int:
        """What `key` takes of the tier below, or, in `replay`, 1."""
        ...

    def cost_ns(self, key: str) -> int:
        """Expected time to bring `key` back into the tier."""
        ...

    def num_waiting(self, key: str) -> int:
        """Requests that wait for `key`."""
        ...

    def next_use_ns(self, key: str) -> float:
        """When `key` will be asked for next: now, where somebody waits or runs; infinity: never again.

        Only a simulation, or `replay`, knows the future.
        """
        ...


class EvictionPolicy(Protocol):
    """Order of the keys in one tier. The tier owns capacity and contents; each has a policy of its own."""

    def bind(self, tier: TierView) -> None:
        """Get to know the tier, once, before anything else."""
        ...

    def on_miss(self, key: str) -> None:
        """`key` is not in the tier and will be brought in: `victim` may be asked next, then `on_insert`."""
        ...

    def on_insert(self, key: str) -> None:
        """`key` has entered the tier."""
        ...

    def on_access(self, key: str) -> None:
        """`key`, which is in the tier, is used by the step that is being prepared."""
        ...

    def on_repeat(self, keys: Collection[str], num_steps: int, last_ns: int) -> None:
        """`keys`, those of the last step, are accessed in `num_steps` further steps in the same order.

        The order is that in which the last step accessed or inserted them, whatever that of `keys` is. None
        of them has left the tier since; others may have entered. `last_ns`: when the last of the steps was
        scheduled. The effect is that of as many times `on_access`.
        """
        ...

    def on_remove(self, key: str) -> None:
        """`key` has left the tier, as a victim or because it left the tier below."""
        ...

    def victim(self, needed: Collection[str]) -> str:
        """Choose the key that leaves the full tier next; `needed` are the adapters of the coming step.

        A key in `needed` that was not yet accessed for this step may be given up, as vLLM does: it is then
        brought back at the cost of another. One that was inserted or accessed for this step may not. The tier
        always holds at least one key that is not in `needed`.
        """
        ...
