"""Adapter tiers: the cascade by hand, inclusion, and the order drawn from the seed."""

import subprocess
import sys
from collections.abc import Collection

from hypothesis import given
from hypothesis import strategies as st

from policies.eviction import Lru
from sim.adapters import AdapterTiers


def tiers(max_loras: int = 2, max_cpu_loras: int = 4, seed: int = 0) -> AdapterTiers:
    return AdapterTiers(max_loras, max_cpu_loras, Lru(), Lru(), seed)


def in_order(tiers: AdapterTiers, names: str) -> tuple[str, str]:
    """Two of `names` that this run applies in this order, when in one step."""
    first, second = names[:2]
    return (first, second) if tiers._application_order([first, second])[0] == first else (second, first)


def test_a_step_may_evict_an_adapter_that_it_still_needs() -> None:
    both = tiers()
    new, old = in_order(both, "ab")
    both.apply([old])
    both.apply(["c"])
    assert both.slots == {old: 0, "c": 1}
    assert both.apply([new, old]) == [
        ("load", new, None),
        ("evict_slot", old, 0),
        ("activate", new, 0),
        ("evict_slot", "c", 1),
        ("activate", old, 1),
    ]


def test_the_same_happens_in_a_small_host_cache_with_loads_from_disk() -> None:
    both = tiers(max_cpu_loras=2)
    new, old = in_order(both, "ab")
    both.apply([old])
    both.apply(["c"])
    assert both.apply([new, old]) == [
        ("load", new, None),
        ("evict_host", old, None),
        ("evict_slot", old, 0),
        ("activate", new, 0),
        ("load", old, None),
        ("evict_host", "c", None),
        ("evict_slot", "c", 1),
        ("activate", old, 1),
    ]


class ProtectingLru(Lru):
    """Spares what the coming step needs."""

    def victim(self, needed: Collection[str]) -> str:
        return next(key for key in self._order if key not in needed)


def test_a_policy_that_spares_the_coming_step_has_no_cascade() -> None:
    both = AdapterTiers(2, 2, ProtectingLru(), ProtectingLru(), seed=0)
    new, old = in_order(both, "ab")
    both.apply([old])
    both.apply(["c"])
    assert both.apply([new, old]) == [
        ("load", new, None),
        ("evict_host", "c", None),
        ("evict_slot", "c", 1),
        ("activate", new, 1),
    ]


def test_the_order_is_the_runs_own() -> None:
    orders = {tuple(tiers(seed=seed)._application_order("abcdefgh")) for seed in range(20)}
    assert len(orders) == 20


def test_the_order_does_not_depend_on_pythons_hash_seed() -> None:
    code = "from tests.sim.test_adapters import tiers; print(tiers()._application_order('abcdefgh'))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout != b""


@given(st.integers(1, 4), st.integers(0, 4), st.lists(st.sets(st.sampled_from("abcdefghij")), max_size=30))
def test_tiers_are_inclusive_and_within_capacity(max_loras: int, more: int, steps: list[set[str]]) -> None:
    both = tiers(max_loras, max_loras + more)
    for adapters in steps:
        step = sorted(adapters)[:max_loras]
        both.apply(step)
        assert set(step) <= set(both.slots) <= both.host_cache
        assert len(both.host_cache) <= max_loras + more
        assert len(set(both.slots.values())) == len(both.slots)
        assert both.apply(step) == []


def test_a_warm_start_evicts_the_oldest_first() -> None:
    warm = tiers(max_loras=2, max_cpu_loras=3)
    warm.fill(["old", "new", "newer"], ["newer", "new"])
    assert warm.slots == {"newer": 0, "new": 1}
    assert warm.host_cache == {"old", "new", "newer"}
    assert warm.apply(["new"]) == []
    assert warm.apply(["other"]) == [
        ("load", "other", None),
        ("evict_host", "old", None),
        ("evict_slot", "newer", 0),
        ("activate", "other", 0),
    ]
