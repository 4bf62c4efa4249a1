"""Replay: its clock and its future, what it refuses, and golden miss counts."""

from collections.abc import Collection
from typing import Any

import pytest

from policies.errors import PolicyError
from policies.eviction import POLICIES, KeyOrder, Lru, TierView, replay
from tests.policies.eviction_golden import count_misses, read_misses, read_references


class Spy(Lru):
    """Writes down what the tier says at each miss."""

    def __init__(self, *asked: Any) -> None:
        super().__init__()
        self.asked = asked
        self.seen: list[tuple[Any, ...]] = []

    def on_miss(self, key: str) -> None:
        uses = [self._tier.next_use_ns(name) for name in self.asked]
        self.seen.append((self._tier.now_ns, key, *uses))


def test_says_hit_or_miss_per_reference() -> None:
    assert replay("lru", 2, "abacb") == [False, False, True, False, False]
    assert replay("lru", 2, []) == []


def test_references_may_be_anything_that_can_be_hashed() -> None:
    assert replay("arc", 3, iter([0, "", None, (1, 2), 0, None])) == [False] * 4 + [False, True]
    for name in POLICIES:
        assert replay(name, 4, [0, "", None, (1, 2)] * 2) == [False] * 4 + [True] * 4


def test_the_clock_is_the_index_and_the_future_is_known() -> None:
    never = float("inf")
    spy = Spy("a", "b")
    replay(spy, 3, "abaca")
    assert spy.seen == [(0, "a", 0, 1), (1, "b", 2, 1), (3, "c", 4, never)]


def test_keys_are_of_unit_size_and_cost_and_nobody_waits() -> None:
    class Asks(Lru):
        def bind(self, tier: TierView) -> None:
            assert (tier.capacity, tier.size_bytes("a"), tier.cost_ns("a"), tier.num_waiting("a")) == (
                7,
                1,
                1,
                0,
            )
            super().bind(tier)

    assert len(replay(Asks(), 7, "ab")) == 2


class Wrong(KeyOrder):
    """Gives up whatever it was told to."""

    def __init__(self, victim: Any) -> None:
        super().__init__()
        self._victim = victim

    def on_access(self, key: str) -> None:
        pass

    def victim(self, needed: Collection[str]) -> Any:
        return self._victim


@pytest.mark.parametrize(
    ("victim", "wrong"),
    [
        ("c", "which was just requested"),
        ("z", "which is not in the tier"),
        (None, "which is not in the tier"),
        (["a"], "which is not in the tier"),
    ],
)
def test_a_victim_that_may_not_be_is_an_error(victim: Any, wrong: str) -> None:
    with pytest.raises(PolicyError) as raised:
        replay(Wrong(victim), 2, "abc")
    assert str(raised.value) == f"{__name__}.Wrong returned {victim!r}, {wrong}; allowed: 'a', 'b'"


def test_an_error_does_not_list_thousands() -> None:
    with pytest.raises(PolicyError, match=r"allowed: 0, 1, 2, 3, 4, 5, 6, 7 and 4992 more$"):
        replay(Wrong("z"), 5000, range(5001))


@pytest.mark.parametrize(
    ("policy", "capacity", "message"),
    [
        (
            "lruu",
            3,
            "policy='lruu': expected one of arc, belady, chameleon, fifo, gdsf, lfu, lru, queue_aware",
        ),
        ("lru", 0, "capacity=0: expected a whole number of 1 or more"),
        ("lru", -2, "capacity=-2: expected a whole number of 1 or more"),
        ("lru", 1.5, "capacity=1.5: expected a whole number of 1 or more"),
        ("lru", True, "capacity=True: expected a whole number of 1 or more"),
        ("lru", float("nan"), "capacity=nan: expected a whole number of 1 or more"),
        (
            Lru,
            3,
            "policy=<class 'policies.eviction.lru.Lru'>: is a class; expected an object of it, or a name",
        ),
        (KeyOrder(), 3, "has no on_access, victim; expected an eviction policy"),
        (3, 3, "policy=3: has no bind, on_miss"),
    ],
)
def test_what_cannot_be_replayed_is_named(policy: Any, capacity: Any, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        replay(policy, capacity, "abc")
    assert message in str(raised.value)


def test_golden_miss_counts() -> None:
    """`python -m tests.eviction_golden` writes them anew."""
    golden = read_misses()
    assert {policy for policy, _ in golden} == set(POLICIES)
    references = read_references()
    assert len(references) > 3000
    assert {cell: count_misses(*cell, references) for cell in golden} == golden
