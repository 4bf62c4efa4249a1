"""What an eviction policy is told and what it must answer."""

from collections.abc import Collection
from typing import Protocol


class EvictionPolicy(Protocol):
    """Order of the keys in one tier. The tier owns capacity and contents; each has a policy of its own."""

    def on_insert(self, key: str) -> None:
        """`key` has entered the tier."""
        ...

    def on_access(self, key: str) -> None:
        """`key`, which is in the tier, is used by the step that is being prepared."""
        ...

    def on_repeat(self, keys: Collection[str], num_steps: int) -> None:
        """`keys`, those of the last step, are accessed in `num_steps` further steps in the same order."""
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
