"""Latencies are those that vLLM's benchmark would compute from the same times."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.metrics import latencies, statistics, tpot_ns, ttft_ns
from sim.recorder import Recorder
from sim.request import Request
from sim.scheduler import StepPlan

MS = 1_000_000


def request(
    arrival_ms: int = 0, first_ms: int | None = None, finish_ms: int | None = None, tokens: int = 0
) -> Request:
    made = Request("r", arrival_ms * MS, num_prompt_tokens=10, output_length=max(tokens, 1))
    made.first_token_ns = None if first_ms is None else first_ms * MS
    made.finish_ns = None if finish_ms is None else finish_ms * MS
    made.num_tokens += tokens
    return made


def gaps(recorder: Recorder) -> dict[int, int]:
    values, counts = recorder.gaps.histogram()
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=200))
def test_statistics_are_numpys(values_ns: list[int]) -> None:
    found = statistics("itl", *np.unique(values_ns, return_counts=True))
    values_ms = np.array(values_ns) / 1e6
    expected = {
        "mean_itl_ms": np.mean(values_ms),
        "median_itl_ms": np.percentile(values_ms, 50),
        "p99_itl_ms": np.percentile(values_ms, 99),
        "std_itl_ms": np.std(values_ms),
    }
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_tpot_leaves_out_the_first_token() -> None:
    assert tpot_ns(request(first_ms=50, finish_ms=140, tokens=10)) == 10 * MS
    assert tpot_ns(request(first_ms=50, finish_ms=50, tokens=1)) is None
    assert tpot_ns(request(first_ms=50, tokens=5)) is None


def test_ttft_counts_from_arrival() -> None:
    assert ttft_ns(request(arrival_ms=20, first_ms=50)) == 30 * MS
    assert ttft_ns(request(arrival_ms=20)) is None


def test_latencies_of_two_requests() -> None:
    found = latencies(
        [request(0, 10, 40, 4), request(10, 40, 80, 3)], (np.array([10 * MS, 20 * MS]), np.array([3, 2]))
    )
    assert found["mean_ttft_ms"] == 20
    assert found["mean_tpot_ms"] == 15
    assert found["median_e2el_ms"] == 55
    assert found["mean_itl_ms"] == 14
    assert found["median_itl_ms"] == 10


def test_nothing_observed_is_null() -> None:
    assert set(latencies([], (np.array([]), np.array([]))).values()) == {None}


def tokens_at(recorder: Recorder, now_ms: int, *requests: Request) -> None:
    plan = StepPlan()
    plan.sampled_chunks += requests
    recorder.on_tokens(plan, now_ms * MS)
    for sampled in requests:
        sampled.last_token_ns = now_ms * MS


def test_gaps_are_counted_by_length() -> None:
    recorder = Recorder(0, None, lambda request: None, None)
    first, second = request(), request()
    tokens_at(recorder, 10, first)
    tokens_at(recorder, 20, first, second)
    tokens_at(recorder, 35, first, second)
    tokens_at(recorder, 65, second)
    assert gaps(recorder) == {10 * MS: 1, 15 * MS: 2, 30 * MS: 1}
    assert recorder.num_output_tokens == 6


def test_warm_up_is_left_out() -> None:
    """Its tokens do not count, nor do the later gaps of a request that arrived in it; its later tokens do."""
    recorder = Recorder(30 * MS, None, lambda request: None, None)
    early, late = request(arrival_ms=29), request(arrival_ms=30)
    tokens_at(recorder, 29, early)
    tokens_at(recorder, 30, early)
    tokens_at(recorder, 40, early, late)
    tokens_at(recorder, 55, early, late)
    assert recorder.num_output_tokens == 5
    assert gaps(recorder) == {15 * MS: 1}
