"""Goodput and fairness: by hand on few requests, and properties that hold for all."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.config import SloConfig
from sim.errors import UserError
from sim.fairness import fairness, jain_index
from sim.goodput import num_good
from sim.request import Request
from sim.simulation import simulate
from tests.sim.test_simulation import CLOSED, OPEN, config

MS = 1_000_000


def request(adapter: str, *, first: int | None, finish: int | None, tokens: int, at: int = 0) -> Request:
    """Times in ms."""
    made = Request("r", at * MS, num_prompt_tokens=10, output_length=max(tokens, 1), adapter=adapter)
    made.scheduled_ns = made.first_token_ns = None if first is None else first * MS
    made.finish_ns = None if finish is None else finish * MS
    made.num_tokens += tokens
    return made


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_jain_index_is_between_one_adapter_and_all_alike(values: list[float]) -> None:
    found = jain_index(values)
    if found is None:
        assert not any(value * value for value in values)
    else:
        assert 1 / len(values) - 1e-9 <= found <= 1 + 1e-9


def test_jain_index_of_known_shares() -> None:
    assert jain_index([3.0, 3.0, 3.0]) == pytest.approx(1)
    assert jain_index([5.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain_index([1.0, 3.0]) == pytest.approx(0.8)
    assert jain_index([]) is None


def test_fairness_counts_those_that_still_wait() -> None:
    served = request("a", first=100, finish=1000, tokens=10)
    starved = request("b", first=None, finish=None, tokens=0, at=500)
    found = fairness([served, starved], 10_000 * MS)
    assert found == {
        "jain_index": pytest.approx(0.5),
        "worst_adapter_p99_ttft_ms": pytest.approx(100),
        "longest_wait_ms": pytest.approx(9500),
    }


def test_the_worst_adapter_is_by_its_own_p99() -> None:
    common = [request("a", first=10, finish=20, tokens=2) for _ in range(999)]
    common.append(request("a", first=800, finish=900, tokens=2))
    rare = [request("b", first=300, finish=400, tokens=2)]
    assert fairness([*common, *rare], 1000 * MS)["worst_adapter_p99_ttft_ms"] == pytest.approx(300)


def test_an_adapter_that_is_asked_for_more_is_not_favoured() -> None:
    often = [request("a", first=10, finish=1000, tokens=10) for _ in range(50)]
    once = [request("b", first=10, finish=1000, tokens=10)]
    assert fairness([*often, *once], 1000 * MS)["jain_index"] == pytest.approx(1)


def test_goodput_needs_every_target() -> None:
    requests = [
        request("a", first=100, finish=190, tokens=10),
        request("a", first=101, finish=190, tokens=10),
        request("a", first=100, finish=200, tokens=10),
        request("a", first=50, finish=50, tokens=1),
    ]
    assert num_good(requests, SloConfig()) is None
    assert num_good(requests, SloConfig(ttft_ms=100)) == 3
    assert num_good(requests, SloConfig(ttft_ms=100, tpot_ms=10)) == 2
    assert num_good(requests, SloConfig(tpot_ms=10)) == 3
    assert num_good(requests, SloConfig(e2el_ms=60)) == 1


def test_goodput_is_throughput_where_all_is_good() -> None:
    for targets, share in (({"ttft_ms": 1e9, "tpot_ms": 1e9}, 1), ({"ttft_ms": 1e-6}, 0)):
        summary = simulate(config(OPEN, slo=targets)).summary
        assert summary["request_goodput"] == pytest.approx(share * summary["request_throughput"])
    assert "request_goodput" not in simulate(config(OPEN)).summary


@pytest.mark.parametrize("slo", [{"ttft_ms": 0}, {"tpot_ms": -1}, {"itl_ms": 3}, {"e2el_ms": "fast"}])
def test_an_impossible_target_is_named(slo: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"slo\.{next(iter(slo))}"):
        simulate(config(CLOSED, slo=slo))
