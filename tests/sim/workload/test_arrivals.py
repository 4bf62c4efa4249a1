"""Arrival processes: goodness of fit of each parameter at a fixed seed, and how they scale."""

from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from sim.errors import UserError
from sim.workload.arrivals import Arrivals, Diurnal, Gamma, Mmpp, Poisson, from_mapping
from sim.workload.arrivals.whole_ns import LATEST_NS

SEED = 7
Floats = NDArray[np.float64]


def times_s(process: Arrivals, rate: float, number: int, seed: int = SEED) -> Floats:
    return np.array(list(islice(process.times_ns(rate, np.random.default_rng(seed)), number))) / 1e9


def gaps_s(process: Arrivals, rate: float, number: int, seed: int = SEED) -> Floats:
    return np.diff(times_s(process, rate, number, seed), prepend=0)


def uniform_p_values(p_value: Callable[[int], float]) -> float:
    """Over many seeds the p-values of a right distribution are themselves uniform."""
    return float(stats.kstest([p_value(seed) for seed in range(100)], "uniform").pvalue)


def gamma_p_value(cv: float, rate: float, seed: int, number: int = 20_000) -> float:
    expected = stats.gamma(cv**-2, scale=cv**2 / rate)
    return float(stats.kstest(gaps_s(Gamma(cv), rate, number, seed), expected.cdf).pvalue)


@pytest.mark.parametrize("cv", [0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("rate", [0.5, 8.0])
def test_gamma_gaps_have_the_rate_and_the_variation(cv: float, rate: float) -> None:
    assert gamma_p_value(cv, rate, SEED) > 0.01


def test_a_large_variation_is_reached_too() -> None:
    """Most gaps are below a nanosecond then, so the distribution is that of rounded values."""
    gaps = gaps_s(Gamma(5.0), 8.0, 400_000)
    assert gaps.mean() == pytest.approx(1 / 8, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(5, rel=0.03)


def test_a_wrong_variation_would_be_noticed() -> None:
    expected = stats.gamma(2.1**-2, scale=2.1**2 / 8)
    assert stats.kstest(gaps_s(Gamma(2.0), 8.0, 20_000), expected.cdf).pvalue < 0.01


def test_the_fixed_seed_is_not_a_lucky_one_for_gamma() -> None:
    assert uniform_p_values(lambda seed: gamma_p_value(2.0, 8.0, seed, 2000)) > 0.01


def test_gamma_plays_the_same_arrivals_faster() -> None:
    slow, fast = (times_s(Gamma(2.0), rate, 1000) for rate in (4.0, 8.0))
    assert np.abs(slow - 2 * fast).max() < 2e-9


def mmpp_counts(process: Mmpp, rate: float, window_s: float, end_s: float) -> NDArray[np.int64]:
    times = times_s(process, rate, int(1.2 * rate * end_s))
    assert times[-1] > end_s
    return np.bincount((times[times < end_s] / window_s).astype(int), minlength=round(end_s / window_s))


@pytest.mark.parametrize("rate", [0.5, 8.0])
@pytest.mark.parametrize(
    ("rates", "dwell_s"),
    [([1.0, 10.0], [30.0, 5.0]), ([1.0, 0.0], [5.0, 5.0]), ([1.0, 5.0, 2.0], [9.0, 3.0, 6.0])],
)
def test_mmpp_has_the_mean_rate(rate: float, rates: list[float], dwell_s: list[float]) -> None:
    """200 stretches that are long against a cycle of states are nearly independent."""
    stretch_s = 40 * sum(dwell_s)
    counts = mmpp_counts(Mmpp(rates, dwell_s), rate, stretch_s, 200 * stretch_s)
    assert stats.ttest_1samp(counts, rate * stretch_s).pvalue > 0.01


@pytest.mark.parametrize("rates", [[1.0, 10.0], [2.0, 3.0], [1.0, 0.0]])
@pytest.mark.parametrize("dwell_s", [[30.0, 5.0], [4.0, 8.0]])
def test_mmpp_varies_as_rates_and_dwell_times_say(rates: list[float], dwell_s: list[float]) -> None:
    """Index of dispersion for counts of a two-state process (Fischer and Meier-Hellstern, 1993)."""
    mean_rate, window_s, windows = 20.0, 10.0, 30_000
    scale = mean_rate / (np.dot(rates, dwell_s) / sum(dwell_s))
    first, second = (scale * rate for rate in rates)
    leave, enter = (1 / dwell for dwell in dwell_s)
    total = leave + enter
    excess = 2 * leave * enter * (first - second) ** 2 / (total**2 * (first * enter + second * leave))
    expected = 1 + excess * (1 - (1 - np.exp(-total * window_s)) / (total * window_s))
    counts = mmpp_counts(Mmpp(rates, dwell_s), mean_rate, window_s, window_s * windows)
    assert counts.var() / counts.mean() == pytest.approx(expected, rel=0.05)


def test_mmpp_states_last_exponential_times() -> None:
    """One state is silent and the other so busy that its lengths can be read from the gaps."""
    times = times_s(Mmpp([1.0, 0.0], [4.0, 2.0]), 1000.0, 4_000_000)
    silences = np.diff(times)
    starts = np.flatnonzero(silences > 0.05)
    assert stats.kstest(silences[starts] - 0.05, stats.expon(scale=2).cdf).pvalue > 0.01
    busy = times[starts[1:]] - times[starts[:-1] + 1]
    busy = busy[busy > 0.2] - 0.2
    # Silences of under 50 ms join two busy times.
    joined = np.exp(-0.05 / 2)
    assert stats.kstest(busy, stats.expon(scale=4 / joined).cdf).pvalue > 0.01


def test_mmpp_is_stationary_from_the_start() -> None:
    process = Mmpp([1.0, 9.0], [20.0, 20.0])
    first = [times_s(process, 5.0, 200, seed) for seed in range(1000)]
    counts = [int((times < 10).sum()) for times in first]
    assert stats.ttest_1samp(counts, 50).pvalue > 0.01


def diurnal_p_value(process: Diurnal, rate: float, seed: int, number: int = 20_000) -> float:
    """Arrivals map to a unit Poisson process by the integral of their rate."""
    times = times_s(process, rate, number, seed)
    turn = 2 * np.pi / process.period_s
    waves = (np.cos(process.phase) - np.cos(turn * times + process.phase)) / turn
    unit = rate * (times + process.amplitude * waves)
    return float(stats.kstest(np.diff(unit, prepend=0), "expon").pvalue)


@pytest.mark.parametrize("rate", [0.5, 8.0])
@pytest.mark.parametrize("amplitude", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("period_s", "phase"), [(60.0, 0.0), (3600.0, 0.0), (600.0, 2.0)])
def test_diurnal_rate_follows_the_sine(rate: float, amplitude: float, period_s: float, phase: float) -> None:
    assert diurnal_p_value(Diurnal(amplitude, period_s, phase), rate, SEED) > 0.01


@pytest.mark.parametrize("wrong", [{"amplitude": 0.6}, {"period_s": 130.0}, {"phase": 0.5}])
def test_a_wrong_wave_would_be_noticed(wrong: dict[str, float]) -> None:
    """Arrivals by phase of the wave, 20 bins."""
    right = {"amplitude": 0.8, "period_s": 100.0, "phase": 0.0}
    times = times_s(Diurnal(**right), 8.0, 40_000)
    for settings, fits in ((right, True), (right | wrong, False)):
        bins = np.bincount(
            (times % settings["period_s"] / settings["period_s"] * 20).astype(int), minlength=20
        )
        edges = np.linspace(0, 2 * np.pi, 21)
        waves = np.diff(-np.cos(edges + settings["phase"])) * settings["amplitude"]
        expected = (np.diff(edges) + waves) / (2 * np.pi) * len(times)
        assert (stats.chisquare(bins, expected, sum_check=False).pvalue > 0.01) == fits


def test_the_fixed_seed_is_not_a_lucky_one_for_diurnal() -> None:
    process = Diurnal(0.8, 60.0)
    assert uniform_p_values(lambda seed: diurnal_p_value(process, 8.0, seed, 2000)) > 0.01


@pytest.mark.parametrize("kind", ["poisson", "gamma", "mmpp", "diurnal"])
def test_times_never_go_back_and_depend_on_the_seed_alone(kind: str) -> None:
    process = from_mapping({"kind": kind}, "workload.arrivals")
    first, again, other = (times_s(process, 3.0, 10_000, seed) for seed in (1, 1, 2))
    assert (np.diff(first) >= 0).all()
    assert (first == again).all()
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "weibull"},
            "workload.arrivals.kind='weibull': expected one of poisson, gamma, mmpp, diurnal",
        ),
        ({"kind": "gamma", "cv": 0}, "workload.arrivals.cv=0.0: must be greater than 0"),
        ({"kind": "gamma", "burstiness": 1}, "unknown key workload.arrivals.burstiness; accepted: cv"),
        (
            {"kind": "mmpp", "rates": [1]},
            "workload.arrivals.rates has 1 states and workload.arrivals.dwell_s 2",
        ),
        ({"kind": "mmpp", "rates": [0, 0]}, "workload.arrivals.rates=[0.0, 0.0]: expected none below 0"),
        ({"kind": "mmpp", "rates": [1, "x"]}, "workload.arrivals.rates[1]='x': expected a number"),
        ({"kind": "mmpp", "rates": 3}, "workload.arrivals.rates=3: expected list of a number"),
        ({"kind": "mmpp", "dwell_s": [1, 0]}, "workload.arrivals.dwell_s=[1.0, 0.0]: must be greater than 0"),
        ({"kind": "diurnal", "amplitude": 1.5}, "workload.arrivals.amplitude=1.5: must be between 0 and 1"),
        ({"kind": "diurnal", "period_s": 0}, "workload.arrivals.period_s=0.0: must be greater than 0"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        from_mapping(settings, "workload.arrivals")
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("process", [Poisson(), Gamma(cv=2.0), Diurnal()])
def test_a_time_that_no_run_reaches_does_not_wrap_round(process: Arrivals) -> None:
    times = list(islice(process.times_ns(1e-9, np.random.default_rng(SEED)), 5000))
    assert times == sorted(times) and times[0] >= 0 and times[-1] == LATEST_NS
