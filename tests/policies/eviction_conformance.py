"""What every eviction policy must do.

A test class inherits `EvictionConformance`, and says how to make a policy.
"""

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.eviction import POLICIES, EvictionPolicy, replay
from tests.policies.parameter_conformance import assert_refuses_bad_parameters

KEYS = "abcdefgh"
STEP_NS = 30_000_000
"""From one step to the next."""


def unlike(key: str, modulus: int) -> int:
    """A number that differs between keys."""
    return 1 + sum(map(ord, key)) * 7 % modulus


@dataclass
class Tier:
    """A tier with its policy, and steps applied as `sim.adapters` does; it remembers all victims."""

    policy: EvictionPolicy
    capacity: int
    spares: bool = True
    """Whether the policy promises to keep what the coming step needs."""
    now_ns: int = 0
    contents: dict[str, None] = field(default_factory=dict)
    last_step: list[str] = field(default_factory=list)
    """Its keys, in order, as long as all of them are there."""
    victims: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.policy.bind(self)

    def size_bytes(self, key: str) -> int:
        return unlike(key, 3)

    def cost_ns(self, key: str) -> int:
        return unlike(key, 5)

    def num_waiting(self, key: str) -> int:
        return (self.now_ns // STEP_NS + unlike(key, 11)) % 3

    def next_use_ns(self, key: str) -> float:
        return self.now_ns + (self.now_ns // STEP_NS * unlike(key, 7)) % 13

    def step(self, keys: list[str]) -> None:
        self.now_ns += STEP_NS
        done: list[str] = []
        for key in keys:
            if key in self.contents:
                self.policy.on_access(key)
            else:
                self.bring_in(key, keys, done)
            done.append(key)
        self.last_step = keys

    def bring_in(self, key: str, needed: Collection[str], done: Collection[str] = ()) -> None:
        self.policy.on_miss(key)
        if len(self.contents) == self.capacity:
            victim = self.policy.victim(needed)
            assert victim in self.contents, f"{victim!r} is not in the tier"
            assert victim not in done, f"{victim!r} was used by this step"
            assert not self.spares or victim not in needed, f"the step needs {victim!r}"
            self.victims.append(victim)
            self.leave(victim)
        self.contents[key] = None
        self.policy.on_insert(key)

    def prefetch(self, key: str) -> None:
        """Bring `key` in between two steps, as long as that takes nothing from the last step's keys."""
        if key not in self.contents and set(self.last_step) != set(self.contents):
            self.bring_in(key, [*self.last_step, key] if self.spares else [key])

    def leave(self, key: str) -> None:
        if key in self.last_step:
            self.last_step = []
        del self.contents[key]
        self.policy.on_remove(key)

    def repeat(self, num_steps: int, at_once: bool) -> None:
        """The last step comes again, unless one of its keys has left."""
        if at_once:
            self.now_ns += num_steps * STEP_NS
            self.policy.on_repeat(frozenset(self.last_step), num_steps, self.now_ns)
            return
        for _ in range(num_steps):
            self.step(self.last_step)


keys = st.sampled_from(KEYS)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.lists(keys, unique=True, max_size=4)),
        st.tuples(st.just("repeat"), st.integers(0, 5)),
        st.tuples(st.just("prefetch"), keys),
        st.tuples(st.just("leave"), keys),
        st.tuples(st.just("wait"), st.integers(1, 1000)),
    ),
    max_size=40,
)
Operations = list[tuple[str, Any]]


def play(tier: Tier, operations: Operations, at_once: bool = True) -> list[str]:
    """Do everything that the tier's contents allow, drain it, and return the victims."""
    for operation, argument in operations:
        if operation == "step":
            tier.step(argument[: tier.capacity])
        elif operation == "repeat":
            tier.repeat(argument, at_once)
        elif operation == "prefetch":
            tier.prefetch(argument)
        elif operation == "leave" and argument in tier.contents:
            tier.leave(argument)
        elif operation == "wait":
            tier.now_ns += argument * STEP_NS
    for number in range(2 * tier.capacity):
        tier.step([f"new{number}"])
    return tier.victims


# Each policy's class runs the same inherited test.
inherited = settings(suppress_health_check=[HealthCheck.differing_executors], deadline=None, max_examples=60)


class EvictionConformance:
    """Inherit, and override `make`; or name a shipped policy. `spares`: whether the batch is protected."""

    name: ClassVar[str]
    spares: ClassVar[bool] = True

    def make(self) -> EvictionPolicy:
        """A new policy object."""
        return POLICIES[self.name]()

    def tier(self, capacity: int) -> Tier:
        return Tier(self.make(), capacity, self.spares)

    @inherited
    @given(st.integers(1, 5), operations)
    def test_gives_up_what_it_may_and_repeats_as_it_accesses(self, capacity: int, todo: Operations) -> None:
        """`Tier` asserts the first at each victim."""
        at_once, one_by_one = self.tier(capacity), self.tier(capacity)
        assert play(at_once, todo) == play(one_by_one, todo, at_once=False)

    @settings(inherited, max_examples=20)
    @given(st.integers(1, 5), operations)
    def test_two_of_a_kind_agree(self, capacity: int, todo: Operations) -> None:
        assert play(self.tier(capacity), todo) == play(self.tier(capacity), todo)

    def test_many_repetitions_are_as_many_accesses(self) -> None:
        """The same in histories that are longer, and the same each time."""
        for seed in range(40):
            rng = random.Random(seed)
            todo: Operations = []
            for _ in range(60):
                todo.append(("step", rng.sample(KEYS, rng.randint(1, 3))))
                todo.append(("prefetch", rng.choice(KEYS)))
                todo.append(("repeat", rng.choice([0, 0, 1, 2, 3, 50])))
            at_once, one_by_one = self.tier(3 + seed % 4), self.tier(3 + seed % 4)
            assert play(at_once, todo) == play(one_by_one, todo, at_once=False)

    def test_ten_thousand_repetitions(self) -> None:
        def victims(at_once: bool) -> list[str]:
            tier = self.tier(4)
            for step in steps_of("ab cd ca"):
                tier.step(step)
            tier.repeat(10_000, at_once)
            return play(tier, [("step", step) for step in steps_of("e b ef bd")])

        assert victims(at_once=True) == victims(at_once=False)

    def test_what_left_the_tier_below_is_never_named(self) -> None:
        tier = self.tier(4)
        tier.step(list("abcd"))
        tier.leave("a")
        tier.leave("c")
        for key in "efghea":
            tier.step([key])
        assert not {"a", "c"} & set(tier.victims[:2])

    def test_what_is_no_value_for_a_parameter_is_refused_by_name(self) -> None:
        assert_refuses_bad_parameters(type(self.make()))

    @inherited
    @given(st.integers(1, 6), st.lists(keys, max_size=60))
    def test_belady_is_never_beaten(self, capacity: int, references: list[str]) -> None:
        assert sum(replay(self.make(), capacity, references)) <= sum(replay("belady", capacity, references))

    @inherited
    @given(st.lists(keys, max_size=60))
    def test_misses_only_once_where_all_fits(self, references: list[str]) -> None:
        expected = [key in references[:index] for index, key in enumerate(references)]
        assert replay(self.make(), len(KEYS), references) == expected


def steps_of(text: str) -> Iterator[list[str]]:
    """Steps written as ``"ab c"``."""
    return (list(step) for step in text.split())
