"""Which adapters are asked for: hot sets, rates of their own, drift. Uniform and Zipf: see test_workload."""

from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sim.errors import UserError
from sim.workload import RequestSpec, WorkloadConfig, requests
from sim.workload.popularity import HotSet, Rates

SEED = 7
NUMBER = 20_000
OPEN: dict[str, Any] = {
    "mode": "open",
    "request_rate": 8.0,
    "num_requests": NUMBER,
    "num_adapters": 50,
    "popularity": {"kind": "uniform"},
    "input_length": 128,
    "output_length": 64,
}


def draw(seed: int = SEED, **changes: Any) -> list[RequestSpec]:
    return list(islice(requests(WorkloadConfig.from_mapping(OPEN | changes), seed), NUMBER))


def counts(drawn: list[RequestSpec], num_adapters: int = 50) -> np.ndarray:
    names = [str(spec.adapter).removeprefix("adapter-") for spec in drawn]
    return np.bincount([int(name) for name in names], minlength=num_adapters)


def fit(observed: np.ndarray, expected: np.ndarray) -> float:
    assert observed[expected == 0].sum() == 0
    possible = expected > 0
    if possible.sum() == 1:
        return float(observed[possible].item() == expected[possible].item())
    return float(stats.chisquare(observed[possible], expected[possible]).pvalue)


@pytest.mark.parametrize("size", [1, 5, 49, 50, 90])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_hot_set(size: int, share: float) -> None:
    found = counts(draw(popularity={"kind": "hot_set", "size": size, "share": share}))
    expected = np.full(50, NUMBER / 50)
    if size < 50:
        expected[:size] = NUMBER * share / size
        expected[size:] = NUMBER * (1 - share) / (50 - size)
    assert fit(found, expected) > 0.01


def test_a_wrong_share_would_be_noticed() -> None:
    found = counts(draw(popularity={"kind": "hot_set", "size": 5, "share": 0.9}))
    expected = np.concatenate([np.full(5, NUMBER * 0.88 / 5), np.full(45, NUMBER * 0.12 / 45)])
    assert fit(found, expected) < 0.01


def test_hot_set_reaches_its_edges_and_no_further() -> None:
    last = np.nextafter(1, 0)
    for size, share in ((3, 0.7), (32, 0.9), (1, 0.1)):
        uniforms = np.array([0, np.nextafter(share, 0), share, last])
        assert HotSet(size, share).adapters(uniforms, 1000).tolist() == [0, size - 1, size, 999]


RATES = {"kind": "rates", "rate_values": [0.4, 0.1, 0.0], "rate_counts": [10, 30, 10]}


def test_rates_give_each_adapter_its_own() -> None:
    expected = np.repeat(RATES["rate_values"], RATES["rate_counts"]) / 7 * NUMBER  # type: ignore[call-overload]
    assert fit(counts(draw(popularity=RATES)), expected) > 0.01


def test_rates_are_one_poisson_process_per_adapter() -> None:
    drawn = draw(popularity=RATES, request_rate=None, num_adapters=None)
    for adapter, rate in (("adapter-0003", 0.4), ("adapter-0020", 0.1)):
        times = [spec.arrival_ns / 1e9 for spec in drawn if spec.adapter == adapter]
        assert stats.kstest(np.diff(times, prepend=0), stats.expon(scale=1 / rate).cdf).pvalue > 0.01


def test_rates_add_up_unless_there_is_a_rate_for_all() -> None:
    config = WorkloadConfig.from_mapping(OPEN | {"popularity": RATES, "request_rate": None})
    assert config.offered_rate == pytest.approx(7)
    assert WorkloadConfig.from_mapping(OPEN | {"popularity": RATES}).offered_rate == 8
    assert Rates([1.6, 0.4], [3, 2]).num_adapters == 5


def test_drift_moves_the_ranking_once_a_period() -> None:
    still = draw(popularity={"kind": "zipf", "exponent": 1.0})
    moving = draw(popularity={"kind": "zipf", "exponent": 1.0}, drift={"period_s": 60, "shift": 3})
    for before, after in zip(still, moving, strict=True):
        periods = after.arrival_ns // (60 * 10**9)
        index = (int(str(before.adapter)[-4:]) + 3 * periods) % 50
        assert after == before._replace(adapter=f"adapter-{index:04d}")
    assert len({spec.arrival_ns // (60 * 10**9) for spec in moving}) > 40


@pytest.mark.parametrize("shift", [1, 7])
@pytest.mark.parametrize("period_s", [100.0, 400.0])
def test_each_period_has_the_popularity_moved_on(shift: int, period_s: float) -> None:
    drawn = draw(popularity={"kind": "zipf", "exponent": 1.0}, drift={"period_s": period_s, "shift": shift})
    weights = np.arange(1, 51) ** -1.0
    p_values = []
    for period in range(int(drawn[-1].arrival_ns / 1e9 / period_s)):
        inside = [s for s in drawn if period * period_s <= s.arrival_ns / 1e9 < (period + 1) * period_s]
        expected = np.roll(weights, shift * period) / weights.sum() * len(inside)
        p_values.append(fit(counts(inside), expected))
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_drift_by_requests_in_a_closed_loop() -> None:
    closed: dict[str, Any] = {"mode": "closed", "concurrency": 4}
    still = draw(**closed)
    moving = draw(**closed, drift={"period_requests": 1000, "shift": 5})
    moved = [
        (int(str(b.adapter)[-4:]) - int(str(a.adapter)[-4:])) % 50 for a, b in zip(still, moving, strict=True)
    ]
    assert Counter(moved) == dict.fromkeys(range(0, 50, 5), 2000)
    assert moved[:1001] == [0] * 1000 + [5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"popularity": {"kind": "hot_set", "size": 0}},
            "workload.popularity.size=0: must be greater than 0",
        ),
        ({"popularity": {"kind": "hot_set", "share": 2}}, "workload.popularity.share=2.0: must be between"),
        ({"popularity": {"kind": "rates"}}, "missing key workload.popularity.rate_values"),
        ({"popularity": RATES | {"rate_counts": [1]}}, "workload.popularity.rate_values has 3 entries and"),
        (
            {"popularity": RATES | {"rate_values": [1, 1, -1]}},
            "workload.popularity.rate_values=[1.0, 1.0, -1.0]",
        ),
        (
            {"popularity": RATES | {"rate_values": [0, 0, 0]}},
            "workload.popularity.rate_values=[0.0, 0.0, 0.0]",
        ),
        (
            {"popularity": RATES, "num_adapters": 60},
            "workload.num_adapters=60: workload.popularity.rate_counts",
        ),
        ({"drift": {"shift": 1}}, "workload.drift needs one of period_s and period_requests"),
        ({"drift": {"period_s": 1, "period_requests": 1}}, "workload.drift needs one of"),
        ({"drift": {"period_s": 0}}, "workload.drift.period_s=0.0: must be greater than 0"),
        ({"drift": {"period_s": 1, "shift": 0}}, "workload.drift.shift=0: must be greater than 0"),
        (
            {"drift": {"period_s": 1}, "mode": "closed", "concurrency": 1},
            "workload.drift.period_s: in a closed",
        ),
        ({"drift": 3}, "workload.drift=3: expected a mapping of settings"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        WorkloadConfig.from_mapping(OPEN | changes)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("order", [[2, 0, 1], list(range(5000))])
def test_a_given_order_is_kept_over_and_over(order: list[int]) -> None:
    # 5,000 are more than are drawn at once, and 3 do not divide that number.
    drawn = draw(popularity={"kind": "order", "order": order}, num_adapters=5000)
    asked = [int(str(spec.adapter).removeprefix("adapter-")) for spec in drawn]
    assert asked == (order * (NUMBER // len(order) + 1))[:NUMBER]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([], "workload.popularity.order=[]: expected one or more adapters"),
        ([0, -1], "workload.popularity.order=[0, -1]: expected one or more adapters"),
        ([0, 50], "workload.popularity.order: adapter 50 is none of workload.num_adapters=50"),
    ],
)
def test_a_bad_order_is_named(order: list[int], message: str) -> None:
    with pytest.raises(UserError) as raised:
        draw(popularity={"kind": "order", "order": order})
    assert str(raised.value).startswith(message)
