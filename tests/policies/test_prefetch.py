"""What the prefetch policies want, and when."""

from copy import deepcopy
from importlib.resources import files
from typing import Any

import pytest
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import policies.prefetch
from policies.prefetch import LookaheadPrefetch, NoPrefetch, PopularPrefetch, PrefetchPolicy, QueuePrefetch
from sim.request import Request
from tests.policies.engine_double import EngineDouble, S
from tests.policies.parameter_conformance import assert_refuses_bad_parameters

NAMES = sorted(file.name.removesuffix(".yaml") for file in files("conf.prefetch").iterdir())


def make_policy(name: str) -> PrefetchPolicy:
    policy: PrefetchPolicy = instantiate(OmegaConf.load(str(files("conf.prefetch") / f"{name}.yaml")))
    return policy


class Traffic:
    """Lets requests come and go."""

    def __init__(self, policy: PrefetchPolicy, max_cpu_loras: int = 4) -> None:
        self.policy, self.engine = policy, EngineDouble(max_cpu_loras=max_cpu_loras)
        policy.bind(self.engine)

    def arrive(self, time_ns: int, adapter: str | None) -> Request:
        self.engine.now_ns = time_ns
        request = Request(f"r{time_ns}", time_ns, 1, 1, adapter=adapter)
        self.engine.waiting.append(request)
        self.policy.on_arrival(request)
        return request

    def depart(self, request: Request, *, runs: bool = False) -> None:
        self.engine.waiting.remove(request)
        self.policy.on_departure(request)
        if runs:
            self.engine.running.append(request)

    def pass_by(self, time_ns: int, adapter: str | None) -> None:
        self.depart(self.arrive(time_ns, adapter))

    def wanted(self, time_ns: int) -> list[str]:
        self.engine.now_ns = time_ns
        return list(self.policy.wanted())


def test_every_policy_has_a_configuration() -> None:
    classes = {type(make_policy(name)).__name__ for name in NAMES}
    assert classes == set(policies.prefetch.__all__) - {"PrefetchPolicy"}


def test_none_wants_nothing() -> None:
    traffic = Traffic(NoPrefetch())
    traffic.arrive(0, "v")
    assert traffic.wanted(1) == []


def test_queue_wants_what_waits_in_the_order_of_waiting() -> None:
    traffic = Traffic(QueuePrefetch())
    v, w, _ = (traffic.arrive(time_ns, adapter) for time_ns, adapter in enumerate(["v", "w", "v"]))
    traffic.arrive(3, None)
    assert traffic.wanted(4) == ["v", "w"]
    traffic.depart(v)
    assert traffic.wanted(5) == ["v", "w"]
    traffic.depart(w)
    traffic.arrive(6, "x")
    traffic.arrive(7, "w")
    assert traffic.wanted(8) == ["v", "x", "w"]


def test_lookahead_wants_what_is_due_within_the_horizon_the_next_first() -> None:
    traffic = Traffic(LookaheadPrefetch(horizon_s=2))
    for time_s, adapter in ((0, "v"), (1, "w"), (5, "w"), (10, "v"), (10, "x"), (11, None)):
        traffic.pass_by(time_s * S, adapter)
    # Expected: v at 20 s, w at 9 s, and x, which has come only once, never.
    changes = []
    time_ns: int | None = 5 * S
    while time_ns is not None:
        changes.append((time_ns / S, traffic.wanted(time_ns)))
        time_ns = traffic.policy.next_change_ns()
    assert changes == [(5.0, []), (7.0, ["w"]), (13.0, []), (18.0, ["v"]), (30.0, [])]


def test_lookahead_wants_first_what_waits_and_no_more_than_fits() -> None:
    traffic = Traffic(LookaheadPrefetch(horizon_s=100), max_cpu_loras=4)
    for time_s in (0, 10):
        for later_s, adapter in enumerate("vwxyz"):
            traffic.pass_by((time_s + later_s) * S, adapter)
    assert traffic.wanted(15 * S) == ["v", "w", "x", "y"]
    runs = traffic.arrive(15 * S, "a")
    traffic.depart(runs, runs=True)
    traffic.arrive(15 * S, "x")
    assert traffic.wanted(15 * S) == ["x", "v", "w"]


def test_lookahead_follows_an_interval_that_changes() -> None:
    traffic = Traffic(LookaheadPrefetch(horizon_s=0, newest_weight=0.5))
    for time_s in (0, 10, 14):
        traffic.pass_by(time_s * S, "v")
    assert traffic.policy.next_change_ns() == (14 + 7) * S


def test_a_preempted_request_does_not_arrive_again() -> None:
    lookahead, popular = Traffic(LookaheadPrefetch(horizon_s=1)), Traffic(PopularPrefetch())
    for traffic in (lookahead, popular):
        old = traffic.arrive(0, "v")
        traffic.pass_by(10 * S, "v")
        for time_s in (10, 10, 11):
            traffic.pass_by(time_s * S, "w")
        traffic.depart(old)
        traffic.engine.now_ns = 12 * S
        for _ in range(5):
            traffic.engine.waiting.append(old)
            traffic.policy.on_arrival(old)
            traffic.depart(old)
    assert lookahead.wanted(19 * S) == ["v"]
    assert popular.wanted(19 * S) == ["w", "v"]


def test_popular_wants_what_came_most_lately() -> None:
    traffic = Traffic(PopularPrefetch(half_life_s=10, top_k=2))
    for time_s, adapter in ((0, "v"), (0, "v"), (0, "v"), (5, "w"), (5, "w"), (5, None), (6, "x")):
        traffic.pass_by(time_s * S, adapter)
    assert traffic.wanted(6 * S) == ["v", "w"]
    traffic.pass_by(20 * S, "x")
    # After two half-lives: v 3 / 4, w 2 / 2.8, x 1 + 1 / 2.6.
    assert traffic.wanted(20 * S) == ["x", "v"]
    assert traffic.wanted(10_000_000 * S) == ["x", "v"]
    assert traffic.policy.next_change_ns() is None


def test_popular_wants_first_what_waits_and_no_more_than_fits() -> None:
    traffic = Traffic(PopularPrefetch(), max_cpu_loras=3)
    for adapter in "vwxyz":
        traffic.pass_by(0, adapter)
    traffic.arrive(1, "z")
    assert traffic.wanted(2) == ["z", "v", "w"]
    traffic.depart(traffic.arrive(3, "a"), runs=True)
    assert traffic.wanted(4) == ["z", "a"]
    traffic.engine.max_cpu_loras = 1
    assert traffic.wanted(5) == ["z"]


EVENTS = st.lists(
    st.tuples(st.integers(0, 5 * S), st.sampled_from([None, *"vwxyz"]), st.booleans()), max_size=40
)


@pytest.mark.parametrize("name", NAMES)
def test_what_waits_is_wanted_once_and_nothing_changes_before_next_change_ns(name: str) -> None:
    @settings(deadline=None, max_examples=60)
    @given(EVENTS, st.floats(0, 1))
    def check(events: list[tuple[int, str | None, bool]], when: float) -> None:
        traffic = Traffic(make_policy(name))
        time_ns = 0
        for wait_ns, adapter, stays in events:
            time_ns += wait_ns
            request = traffic.arrive(time_ns, adapter)
            if not stays:
                traffic.depart(request)
        wanted = traffic.wanted(time_ns)
        assert len(wanted) == len(set(wanted))
        waiting = [request.adapter for request in traffic.engine.waiting if request.adapter is not None]
        if name != "none":
            assert wanted[: len(set(waiting))] == list(dict.fromkeys(waiting))
        change_ns = traffic.policy.next_change_ns()
        assert change_ns is None or change_ns > time_ns
        end_ns = time_ns + 600 * S if change_ns is None else change_ns - 1
        later = deepcopy(traffic)
        assert later.wanted(time_ns + round(when * (end_ns - time_ns))) == wanted

    check()


@pytest.mark.parametrize("make", [LookaheadPrefetch, NoPrefetch, PopularPrefetch, QueuePrefetch])
def test_what_is_no_value_for_a_parameter_is_refused_by_name(make: Any) -> None:
    assert_refuses_bad_parameters(make)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LookaheadPrefetch(horizon_s=-1), "horizon_s=-1: expected a number at least 0"),
        (
            lambda: LookaheadPrefetch(newest_weight=2),
            "newest_weight=2: expected a number above 0 and at most 1",
        ),
        (lambda: PopularPrefetch(half_life_s=0), "half_life_s=0: expected a number above 0"),
        (lambda: PopularPrefetch(top_k=0), "top_k=0: expected a whole number of 1 or more"),
    ],
)
def test_bad_parameters_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()
