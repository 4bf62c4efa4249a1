"""The generators draw what their settings say (goodness of fit at a fixed seed) and nothing moves them."""

from hashlib import sha256
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sim.errors import UserError
from sim.workload import RequestSpec, WorkloadConfig, requests
from sim.workload.popularity.zipf import Zipf

SEED = 7
OPEN: dict[str, Any] = {
    "mode": "open",
    "request_rate": 8.0,
    "duration_s": 2500,
    "num_adapters": 50,
    "popularity": {"kind": "uniform"},
    "input_length": 128,
    "output_length": 64,
}

ZIPF = {"kind": "zipf", "exponent": 1.0}


def workload(**changes: Any) -> WorkloadConfig:
    return WorkloadConfig.from_mapping(OPEN | changes)


def draw(**changes: Any) -> list[RequestSpec]:
    return list(islice(requests(workload(**changes), SEED), 20_000))


def adapter_counts(drawn: list[RequestSpec], num_adapters: int) -> np.ndarray:
    return np.bincount([int(spec.adapter.removeprefix("adapter-")) for spec in drawn], minlength=num_adapters)


@pytest.mark.parametrize("request_rate", [0.5, 8.0, 400.0])
def test_gaps_are_exponential_with_the_request_rate(request_rate: float) -> None:
    drawn = draw(request_rate=request_rate, duration_s=None, num_requests=20_000)
    gaps_s = np.diff([0, *(spec.arrival_ns for spec in drawn)]) / 1e9
    assert stats.kstest(gaps_s, stats.expon(scale=1 / request_rate).cdf).pvalue > 0.01


def test_a_wrong_rate_would_be_noticed() -> None:
    gaps_s = np.diff([0, *(spec.arrival_ns for spec in draw())]) / 1e9
    assert stats.kstest(gaps_s, stats.expon(scale=1 / 8.4).cdf).pvalue < 0.01


def test_arrivals_per_second_are_poisson() -> None:
    seconds = [spec.arrival_ns // 10**9 for spec in draw(duration_s=2000)]
    counts = np.bincount(seconds, minlength=2000)
    assert stats.chisquare(counts, np.full(len(counts), counts.mean())).pvalue > 0.01


def test_the_fixed_seed_is_not_a_lucky_one() -> None:
    """Over many seeds the p-values of a right distribution are themselves uniform."""
    config = workload(duration_s=250)
    p_values = []
    for seed in range(100):
        gaps_s = np.diff([0, *(spec.arrival_ns for spec in requests(config, seed))]) / 1e9
        p_values.append(stats.kstest(gaps_s, stats.expon(scale=1 / 8).cdf).pvalue)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_uniform_popularity() -> None:
    assert stats.chisquare(adapter_counts(draw(), 50)).pvalue > 0.01


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.0, 1.5])
def test_zipf_popularity(exponent: float) -> None:
    drawn = draw(popularity={"kind": "zipf", "exponent": exponent})
    counts = adapter_counts(drawn, 50)
    expected = np.arange(1, 51) ** -exponent
    assert stats.chisquare(counts, expected / expected.sum() * len(drawn)).pvalue > 0.01


def test_a_wrong_exponent_would_be_noticed() -> None:
    drawn = draw(popularity={"kind": "zipf", "exponent": 1.0})
    expected = Zipf(1.05).probabilities(50) * len(drawn)
    assert stats.chisquare(adapter_counts(drawn, 50), expected).pvalue < 0.01


def test_every_adapter_of_a_thousand_can_be_drawn() -> None:
    assert (adapter_counts(draw(num_adapters=1000), 1000) > 0).all()


def test_arrivals_and_adapters_are_independent() -> None:
    drawn = draw()
    gaps = np.diff([spec.arrival_ns for spec in drawn])
    adapters = [int(spec.adapter.removeprefix("adapter-")) for spec in drawn][1:]
    assert stats.spearmanr(gaps, adapters).pvalue > 0.01


def test_the_first_requests_of_a_seed() -> None:
    drawn = draw(num_adapters=1000, popularity={"kind": "zipf", "exponent": 1.0})[:3]
    assert drawn == [
        RequestSpec("request-000000", 72_652_869, "adapter-0075", 128, 64),
        RequestSpec("request-000001", 129_617_018, "adapter-0002", 128, 64),
        RequestSpec("request-000002", 197_039_679, "adapter-0110", 128, 64),
    ]


@pytest.mark.parametrize(
    ("changes", "seed", "digest"),
    [
        ({}, 1, "d35dd5e9bee25c5b"),
        ({}, 7, "919b8b6a28261f8e"),
        ({"request_rate": 5.0, "popularity": ZIPF}, 1, "bf9f9d7c704ac87a"),
        ({"request_rate": 5.0, "popularity": ZIPF}, 7, "a5149cc675a48eca"),
        ({"mode": "closed", "concurrency": 64, "popularity": ZIPF}, 1, "5d18503a34f944a1"),
        ({"mode": "closed", "concurrency": 64, "popularity": ZIPF}, 7, "2ef9350540e5cb52"),
        ({"mode": "closed", "concurrency": 64}, 1, "bfb4be7a730bf183"),
        ({"mode": "closed", "concurrency": 64}, 7, "b8e0563c26c695ef"),
    ],
)
def test_the_streams_that_were_replayed_on_real_gpus_stay_as_they_are(
    changes: dict[str, Any], seed: int, digest: str
) -> None:
    """Golden: id, arrival in ns, adapter and lengths of the first 10,000 requests."""
    shape = {"num_adapters": 1000, "input_length": 256, "output_length": 128, "duration_s": 1e9}
    drawn = islice(requests(workload(**shape, **changes), seed), 10_000)
    assert sha256(repr([tuple(spec)[:5] for spec in drawn]).encode()).hexdigest()[:16] == digest


def test_one_concern_does_not_move_another() -> None:
    """Common random numbers: the rate plays the same arrivals faster, the popularity leaves them alone."""
    slow, fast = draw(), draw(request_rate=16.0)
    assert [spec.adapter for spec in slow[:5000]] == [spec.adapter for spec in fast[:5000]]
    assert all(abs(s.arrival_ns - 2 * f.arrival_ns) <= 2 for s, f in zip(slow, fast, strict=False))
    zipf = draw(popularity={"kind": "zipf", "exponent": 1.0})
    assert [spec.arrival_ns for spec in slow] == [spec.arrival_ns for spec in zipf]
    assert [spec.adapter for spec in draw(mode="closed", concurrency=4)[:100]] == [
        spec.adapter for spec in slow[:100]
    ]


def test_seeds_differ() -> None:
    first, second = (list(requests(workload(duration_s=10), seed)) for seed in (0, 1))
    assert first != second
    assert {spec.adapter for spec in first} != {spec.adapter for spec in second}


def test_duration_and_num_requests_end_the_arrivals() -> None:
    assert all(spec.arrival_ns < 10 * 10**9 for spec in draw(duration_s=10))
    assert len(draw(duration_s=None, num_requests=7)) == 7
    assert len(draw(duration_s=10**6, num_requests=7)) == 7
    assert len(draw(mode="closed", concurrency=2, num_requests=5)) == 5


def test_arrivals_are_in_order_and_ids_unique() -> None:
    drawn = draw()
    assert all(a.arrival_ns <= b.arrival_ns for a, b in pairwise(drawn))
    assert len({spec.request_id for spec in drawn}) == len(drawn)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"request_rate": -1.0}, "workload.request_rate=-1.0: must be greater than 0"),
        ({"request_rate": None}, "workload.request_rate is null: workload.mode=open needs it"),
        ({"mode": "closed"}, "workload.concurrency is null: workload.mode=closed needs it"),
        ({"mode": "shut"}, "workload.mode='shut': expected one of open, closed"),
        ({"input_length": 0}, "workload.input_length=0: must be greater than 0"),
        ({"input_length": 1.5}, "workload.input_length=1.5: expected int"),
        ({"input_length": True}, "workload.input_length=True: expected int"),
        ({"request_rate": "fast"}, "workload.request_rate='fast': expected a number or null"),
        ({"request_rate": float("nan")}, "workload.request_rate=nan: expected a number or null"),
        ({"duration_s": None}, "workload.duration_s and workload.num_requests are both null"),
        ({"popularity": "zipf"}, "workload.popularity='zipf': expected a mapping of settings"),
        ({"popularity": {"kind": "zip"}}, "workload.popularity.kind='zip': expected one of uniform, zipf"),
        ({"popularity": {"kind": "uniform", "exponent": 1}}, "unknown key workload.popularity.exponent"),
        ({"popularity": {"kind": "zipf", "exponent": -1}}, "workload.popularity.exponent=-1.0: must not be"),
        ({"rate": 1}, "unknown key workload.rate; accepted: mode, popularity, input_length"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        workload(**changes)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
