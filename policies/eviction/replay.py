"""One eviction policy on its own, over a string of references."""

from collections.abc import Hashable, Iterable, Iterator
from math import inf
from typing import cast

from policies.errors import is_one_of, wrong_answer
from policies.eviction.names import POLICIES
from policies.eviction.protocol import EvictionPolicy
from policies.parameters import checked_count

METHODS = ("bind", "on_miss", "on_insert", "on_access", "on_repeat", "on_remove", "victim")


def replay(policy: str | EvictionPolicy, capacity: int, references: Iterable[Hashable]) -> list[bool]:
    """Return for each reference whether it was a hit, in a tier of `capacity` keys that starts empty.

    `policy`: a name in `POLICIES`, for its default parameters, or a new object. `references`: anything that
    can be hashed, each of size 1 and cost 1; policies take them for adapters' names. The clock is the index
    of the reference, in ns. Nobody waits. The future is known, to `belady` and to whoever asks
    `next_use_ns`.

    Raises ValueError for an unknown name, an object that is no policy, or a capacity that is no whole number
    of 1 or more, and PolicyError where the policy gives up a key that is not in the tier.
    """
    checked_count("capacity", capacity)
    chosen = _policy(policy)
    tier = _References(capacity, cast("list[str]", list(references)))
    chosen.bind(tier)
    # A dict, since a set would list its keys in another order in the next process.
    contents: dict[str, None] = {}
    hits = []
    for key in tier.play():
        hit = key in contents
        hits.append(hit)
        if hit:
            chosen.on_access(key)
            continue
        chosen.on_miss(key)
        if len(contents) == capacity:
            victim = _victim(chosen, key, contents)
            del contents[victim]
            chosen.on_remove(victim)
        contents[key] = None
        chosen.on_insert(key)
    return hits


def _policy(policy: str | EvictionPolicy) -> EvictionPolicy:
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise ValueError(f"policy={policy!r}: expected one of {', '.join(POLICIES)}, or a policy object")
        return POLICIES[policy]()
    missing = [name for name in METHODS if not callable(getattr(policy, name, None))]
    if isinstance(policy, type):
        raise ValueError(f"policy={policy!r}: is a class; expected an object of it, or a name")
    if missing:
        raise ValueError(f"policy={policy!r}: has no {', '.join(missing)}; expected an eviction policy")
    return policy


def _victim(policy: EvictionPolicy, requested: str, contents: dict[str, None]) -> str:
    victim = policy.victim((requested,))
    if victim == requested:
        raise wrong_answer(policy, victim, "which was just requested", contents)
    if not is_one_of(victim, contents):
        raise wrong_answer(policy, victim, "which is not in the tier", contents)
    return victim


class _References:
    """The tier of a replay: it knows when each key is referenced next."""

    def __init__(self, capacity: int, references: list[str]) -> None:
        self.capacity = capacity
        self.now_ns = 0
        self._references = references
        self._next_use: dict[str, float] = {}

    def play(self) -> Iterator[str]:
        """Yield the references, with the clock and the future as they are then."""
        following = [inf] * len(self._references)
        for index in range(len(following) - 1, -1, -1):
            key = self._references[index]
            following[index] = self._next_use.get(key, inf)
            self._next_use[key] = index
        for index, key in enumerate(self._references):
            self.now_ns = index
            yield key
            self._next_use[key] = following[index]

    def size_bytes(self, key: str) -> int:
        return 1

    def cost_ns(self, key: str) -> int:
        return 1

    def num_waiting(self, key: str) -> int:
        return 0

    def next_use_ns(self, key: str) -> float:
        return self._next_use.get(key, inf)
