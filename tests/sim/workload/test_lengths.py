"""Lengths and ranks: goodness of fit of each parameter at a fixed seed."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from sim.errors import UserError
from sim.workload import WorkloadConfig, requests, traffic
from sim.workload.lengths import from_value
from sim.workload.ranks import RankMix

SEED = 7
NUMBER = 20_000
OPEN: dict[str, Any] = {
    "mode": "open",
    "request_rate": 8.0,
    "num_requests": 2000,
    "num_adapters": 50,
    "popularity": {"kind": "uniform"},
    "input_length": 128,
    "output_length": 64,
}


def draw(settings: Any, side: str = "input_length", seed: int = SEED, number: int = NUMBER) -> np.ndarray:
    sampler = from_value(settings, f"workload.{side}").sampler(seed, side)
    return np.array([sampler("adapter-0000") for _ in range(number)])


def workload(**changes: Any) -> WorkloadConfig:
    return WorkloadConfig.from_mapping(OPEN | changes)


def test_fixed() -> None:
    assert set(draw(256)) == set(draw({"kind": "fixed", "tokens": 256})) == {256}


@pytest.mark.parametrize(("low", "high"), [(256, 1024), (2048, 4096), (1, 2), (5, 5)])
def test_uniform(low: int, high: int) -> None:
    found = draw({"kind": "uniform", "min": low, "max": high})
    observed = np.bincount(found - low, minlength=high - low + 1)
    assert len(observed) == high - low + 1
    assert len(observed) == 1 or stats.chisquare(observed).pvalue > 0.01


def lognormal_p_value(
    found: np.ndarray, mean: float, sigma: float, low: int = 1, high: int | None = None
) -> float:
    """Chi-square over 50 bins that the distribution makes about equally likely."""
    expected = stats.lognorm(sigma, scale=mean * np.exp(-(sigma**2) / 2))
    edges = np.unique(np.rint(expected.ppf(np.linspace(0, 1, 51)[1:-1])))
    edges = edges[(edges > low) & (edges < (high or np.inf))] + 0.5
    chances = np.diff(expected.cdf(edges), prepend=0, append=1)
    observed = np.bincount(np.searchsorted(edges, found), minlength=len(edges) + 1)
    return float(stats.chisquare(observed, chances * len(found)).pvalue)


@pytest.mark.parametrize("mean", [223.0, 1500.0])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 1.5])
def test_lognormal(mean: float, sigma: float) -> None:
    found = draw({"kind": "lognormal", "mean": mean, "sigma": sigma})
    assert lognormal_p_value(found, mean, sigma) > 0.01
    assert lognormal_p_value(found, mean * 1.1, sigma) < 0.01
    assert lognormal_p_value(found, mean, sigma * 1.05) < 0.01


def test_lognormal_is_moved_into_its_limits() -> None:
    limits = {"min": 100, "max": 400}
    found = draw({"kind": "lognormal", "mean": 223, "sigma": 1.0, **limits})
    assert (found.min(), found.max()) == (100, 400)
    assert lognormal_p_value(found, 223, 1.0, 100, 400) > 0.01
    assert set(draw({"kind": "lognormal", "mean": 223, "sigma": 0})) == {223}


def test_the_fixed_seed_is_not_a_lucky_one() -> None:
    settings = {"kind": "lognormal", "mean": 500.0, "sigma": 1.0}
    p_values = [lognormal_p_value(draw(settings, seed=seed, number=5000), 500, 1) for seed in range(100)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_both_sides_are_independent() -> None:
    settings = {"kind": "uniform", "min": 1, "max": 1000}
    assert stats.spearmanr(draw(settings), draw(settings, "output_length")).pvalue > 0.01


def test_per_adapter_has_a_length_each_from_across() -> None:
    settings = {"kind": "per_adapter", "across": {"kind": "uniform", "min": 1, "max": 1000}}
    sampler = from_value(settings, "x").sampler(SEED, "input_length")
    lengths = [sampler(f"adapter-{index:04d}") for index in range(5000)]
    assert (
        stats.kstest(np.array(lengths) - np.random.default_rng(0).random(5000), "uniform", (0, 1000)).pvalue
        > 0.01
    )
    assert lengths == [sampler(f"adapter-{index:04d}") for index in range(5000)]
    other_order = from_value(settings, "x").sampler(SEED, "input_length")
    assert lengths[::-1] == [other_order(f"adapter-{index:04d}") for index in reversed(range(5000))]


@pytest.mark.parametrize("sigma", [0.2, 0.8])
def test_per_adapter_varies_around_it(sigma: float) -> None:
    found = draw({"kind": "per_adapter", "across": 500, "sigma": sigma})
    # 500 is the median: the mean is larger.
    assert lognormal_p_value(found, 500 * np.exp(sigma**2 / 2), sigma) > 0.01
    assert draw({"kind": "per_adapter", "across": 500, "sigma": sigma, "max": 600}).max() == 600


def turn(words: int) -> dict[str, str]:
    return {"from": "human", "value": "word " * words}


SHAREGPT = [
    {"id": "a", "conversations": [turn(10), turn(20), turn(999)]},
    {"id": "b", "conversations": [turn(100), turn(1)]},
    {"id": "no answer", "conversations": [turn(10)]},
    {"id": "nothing", "conversations": []},
    {"id": "c", "input_length": 77, "output_length": 7, "conversations": [turn(1), turn(1)]},
]


@pytest.fixture
def sharegpt(tmp_path: Path) -> str:
    (tmp_path / "sharegpt.json").write_text(json.dumps(SHAREGPT))
    return str(tmp_path / "sharegpt.json")


def test_sharegpt_counts_words_unless_the_file_has_lengths(sharegpt: str) -> None:
    settings = {"kind": "sharegpt", "path": sharegpt}
    config = workload(input_length=settings, output_length=settings)
    pairs = Counter((spec.input_length, spec.output_length) for spec in requests(config, SEED))
    assert set(pairs) == {(13, 26), (130, 1), (77, 7)}
    assert stats.chisquare(list(pairs.values())).pvalue > 0.01


def tokenizer_file(tmp_path: Path) -> Path:
    """Return a tokenizer in which every letter is a token, and nothing else is."""
    letters = {letter: index for index, letter in enumerate("?abcdefghijklmnopqrstuvwxyz")}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_sharegpt_counts_a_tokenizers_tokens(tmp_path: Path) -> None:
    file = tokenizer_file(tmp_path)
    talk = {"conversations": [{"value": "ab cde"}, {"value": "fghi"}]}
    path = tmp_path / "talks.json"
    path.write_text(json.dumps([talk, {"input_length": 7, "output_length": 8}]))
    settings = {"kind": "sharegpt", "path": str(path), "tokenizer": str(file)}
    assert set(draw(settings)) == {5, 7}
    # A folder with a tokenizer.json will do.
    assert set(draw(settings | {"tokenizer": str(tmp_path)})) == {5, 7}
    assert set(draw(settings, side="output_length")) == {4, 8}


def test_a_tokenizer_that_is_none_is_named(
    sharegpt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    settings = {"kind": "sharegpt", "path": sharegpt, "tokenizer": str(tmp_path)}
    with pytest.raises(UserError, match=r"expected a tokenizer\.json, a folder with one, or a name"):
        draw(settings)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"needs the package tokenizers; pip install 'lorasim\[tokenizer\]'"):
        draw(settings)


def test_sharegpt_prompts_within_limits_and_with_another_factor(sharegpt: str) -> None:
    settings = {"kind": "sharegpt", "path": sharegpt, "min_input_length": 50, "max_input_length": 100}
    config = workload(input_length=settings, output_length=16)
    assert {(s.input_length, s.output_length) for s in requests(config, SEED)} == {(77, 16)}
    assert set(draw({"kind": "sharegpt", "path": sharegpt, "tokens_per_word": 2})) == {20, 200, 77}
    with pytest.raises(UserError, match="no conversation with a prompt of 900 to any number of tokens"):
        draw({"kind": "sharegpt", "path": sharegpt, "min_input_length": 900})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "not JSON"),
        ("{}", "expected a list of conversations"),
        ("[3]", "entry 0: expected conversations"),
        ('[{"conversations": [{"value": 3}]}]', "entry 0: expected conversations"),
    ],
)
def test_a_bad_sharegpt_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"bad\.json.*{message}"):
        draw({"kind": "sharegpt", "path": str(path)})


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0], [0.0, 1.0, 3.0]])
def test_ranks_have_their_weights(weights: list[float] | None) -> None:
    found = Counter(RankMix([8, 16, 64], weights).draw(SEED, 20_000))
    shares = np.array(weights or [1, 1, 1]) / sum(weights or [1, 1, 1])
    observed = np.array([found[rank] for rank in (8, 16, 64)])
    assert stats.chisquare(observed[shares > 0], (shares * 20_000)[shares > 0]).pvalue > 0.01
    assert observed.sum() == 20_000


def test_an_adapter_keeps_its_rank_whatever_else_changes() -> None:
    mix = {"values": [8, 16, 64], "weights": [1, 1, 1]}
    few, many, zipf = (
        traffic(workload(adapter_rank=mix, **changes), SEED).ranks
        for changes in ({}, {"num_adapters": 500}, {"popularity": {"kind": "zipf"}})
    )
    assert few == zipf
    assert few.items() <= many.items()
    assert set(traffic(workload(adapter_rank=8), SEED).ranks.values()) == {8}
    assert set(traffic(workload(), SEED).ranks.values()) == {None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_length": "long"}, "workload.input_length='long': expected int or a mapping of settings"),
        ({"input_length": None}, "workload.input_length=None: expected int or a mapping of settings"),
        (
            {"output_length": {"kind": "normal"}},
            "workload.output_length.kind='normal': expected one of fixed, uniform",
        ),
        ({"input_length": {"kind": "uniform", "min": 5, "max": 4}}, "workload.input_length: min=5 and max=4"),
        ({"input_length": {"kind": "uniform", "min": 0, "max": 4}}, "workload.input_length: min=0 and max=4"),
        ({"input_length": {"kind": "lognormal", "mean": 0}}, "workload.input_length: mean=0.0 and sigma=1.0"),
        (
            {"input_length": {"kind": "lognormal", "mean": 9, "max": 0}},
            "workload.input_length: min=1 and max=0",
        ),
        (
            {"input_length": {"kind": "per_adapter", "across": {"kind": "x"}}},
            "workload.input_length.across.kind='x'",
        ),
        (
            {"input_length": {"kind": "per_adapter", "across": 4, "sigma": -1}},
            "workload.input_length: sigma=-1.0",
        ),
        (
            {"input_length": {"kind": "sharegpt", "path": "x", "tokens_per_word": 0}},
            "workload.input_length.tokens_per_word=0.0: must be greater than 0",
        ),
        ({"adapter_rank": 0}, "workload.adapter_rank=0: must be greater than 0"),
        ({"adapter_rank": 8.5}, "workload.adapter_rank=8.5: expected int or null"),
        ({"adapter_rank": {"values": []}}, "workload.adapter_rank.values=[]: expected one or more"),
        ({"adapter_rank": {"values": [8], "weights": [1, 2]}}, "workload.adapter_rank.weights=[1.0, 2.0]"),
        ({"adapter_rank": {"values": [8], "weights": [0]}}, "workload.adapter_rank.weights=[0.0]"),
        ({"adapter_rank": {"values": ["8"]}}, "workload.adapter_rank.values[0]='8': expected int"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        workload(**changes)
    assert str(raised.value).startswith(message)
