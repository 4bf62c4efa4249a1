"""One adapter tier of a running engine, GPU slots or host cache, and the policy that says who leaves it."""

from collections import OrderedDict
from collections.abc import Callable, Collection

from calibrate.bridge.guard import GuardedEviction
from calibrate.bridge.live_engine import LiveEngine
from policies.eviction import EngineTier


class LiveTier(EngineTier):
    """The adapters in `present`, told by vLLM's managers what happens.

    Calls come in the order of `sim.adapters`, so that a policy sees what it sees in the simulator.
    """

    def __init__(
        self,
        engine: LiveEngine,
        capacity: int,
        present: OrderedDict[str, None],
        cost_ns: Callable[[str], int],
        policy: GuardedEviction,
    ) -> None:
        super().__init__(engine, capacity, cost_ns)
        self.present = present
        """The keys, the one used longest ago first."""
        self._is_in_use = engine.is_in_use
        self._policy = policy
        self._needed: Collection[str] = ()
        self._used: set[str] = set()
        self.on_entered: Callable[[str], None] = _nothing
        """Told of each key that has come in."""
        policy.bind(self)

    def begin_step(self, needed: Collection[str]) -> None:
        """The adapters of a step come next, `needed`; none of them has been used for it yet."""
        self._needed = needed
        self._used.clear()

    def on_miss(self, key: str) -> None:
        """`key` will be brought in."""
        self._policy.on_miss(key)

    def on_insert(self, key: str) -> None:
        """`key` has entered the tier."""
        self.present[key] = None
        self._used.add(key)
        self._policy.on_insert(key)
        self.on_entered(key)

    def on_access(self, key: str) -> None:
        """`key` is used by the step."""
        self.present.move_to_end(key)
        self._used.add(key)
        self._policy.on_access(key)

    def on_remove(self, key: str) -> None:
        """`key` has left the tier, if it was in it."""
        if key in self.present:
            del self.present[key]
            self._policy.on_remove(key)

    def victim(self) -> str | None:
        """Return the key that the policy gives up for the step; None: it has failed, vLLM is to choose."""
        return self._policy.victim(self._needed, self.present, self._used)

    def spare(self) -> str | None:
        """Return the key to give up between two steps, for which nobody asks; None: all are asked for.

        The policy's choice, unless somebody asks for that (which a policy may give up in a step, as LRU
        does): then the key that was used longest ago.
        """
        kept = {key for key in self.present if self._is_in_use(key)}
        if len(kept) == len(self.present):
            return None
        choice = self._policy.victim(kept, self.present, ())
        if choice is None or choice in kept:
            choice = next(key for key in self.present if key not in kept)
        return choice


def _nothing(key: str) -> None:
    """Nobody wants to know."""
