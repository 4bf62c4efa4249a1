"""Whole runs: by hand on small cases, and properties that hold for all."""

import gc
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.errors import PolicyError
from sim.errors import DoesNotFit, UserError
from sim.garbage import COLLECT_EVERY
from sim.simulation import run, simulate

MODEL: dict[str, Any] = {
    "name": "tiny",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
CLOSED = {"mode": "closed", "concurrency": 4, "duration_s": 2.0}
OPEN = {"mode": "open", "request_rate": 20.0, "duration_s": 2.0}
Config = dict[str, Any]


def config(workload: Config, engine: Config | None = None, **top: Any) -> Config:
    small = {"max_loras": 4, "max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 128}
    shape = {"num_adapters": 10, "popularity": {"kind": "uniform"}, "input_length": 20, "output_length": 5}
    base: Config = {
        "engine": small | (engine or {}),
        "model": MODEL,
        "workload": shape | workload,
        "profile": {"kind": "constant", "step_ms": 10},
        "admission": {"_target_": "policies.admission.FcfsSkip"},
        "eviction": {"_target_": "policies.eviction.Lru"},
        "record": {"steps": True},
        "seed": 1,
        "warmup_s": 0,
    }
    return base | top


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_two_requests_one_after_another(async_scheduling: bool) -> None:
    """5 steps of 10 ms each: the prompt and the first token in one, then a token a step."""
    one_by_one = {"mode": "closed", "concurrency": 1, "num_requests": 2}
    result = simulate(config(one_by_one, {"async_scheduling": async_scheduling}))
    summary = result.summary
    assert summary["duration_s"] == 0.1
    assert (summary["completed"], summary["total_input_tokens"], summary["total_output_tokens"]) == (
        2,
        40,
        10,
    )
    assert summary["request_throughput"] == pytest.approx(20)
    assert summary["output_throughput"] == pytest.approx(100)
    assert summary["total_token_throughput"] == pytest.approx(500)
    assert summary["mean_ttft_ms"] == pytest.approx(10)
    assert summary["mean_tpot_ms"] == summary["p99_itl_ms"] == pytest.approx(10)
    assert summary["mean_e2el_ms"] == pytest.approx(50)
    assert summary["time_share"] == {"compute": 1, "loading": 0, "activation": 0, "host": 0, "idle": 0}
    assert summary["engine_steps"] == 10
    assert result.requests.column("arrival_s").to_pylist() == [0, 0.05]
    assert result.steps is not None
    assert result.steps.to_pylist()[5] == {
        "step": 5, "start_s": 0.05, "end_s": 0.06, "request_id": "request-000001", "num_tokens": 20,
    }  # fmt: skip


def test_an_arrival_waits_for_the_step_under_way_and_the_next_one() -> None:
    """Asynchronous: a successor arrives when the next step runs already, and starts with the one after it."""
    result = simulate(
        config(CLOSED | {"concurrency": 2, "num_requests": 4, "num_adapters": 1, "input_length": 40})
    )
    arrived, first = (result.requests.column(name).to_pylist() for name in ("arrival_s", "first_token_s"))
    # 64 tokens a step: the second prompt is cut in two chunks of 24 and 16 tokens.
    assert arrived == [0, 0, 0.05, 0.06]
    assert first == pytest.approx([0.01, 0.02, 0.07, 0.08])


def test_arrivals_of_the_open_loop_are_the_workloads() -> None:
    result = simulate(config(OPEN))
    arrivals = result.requests.column("arrival_s").to_pylist()
    assert arrivals == sorted(arrivals)
    assert 25 < len(arrivals) < 60
    assert (
        arrivals
        == simulate(config(OPEN, {"max_loras": 1, "max_num_seqs": 2})).requests.column(0 + 2).to_pylist()
    )


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        run(config(OPEN), tmp_path / name)
    run(config(OPEN, seed=2), tmp_path / "other")
    for file in ("summary.json", "requests.parquet", "steps.parquet"):
        first, second, other = (
            (tmp_path / name / file).read_bytes() for name in ("first", "second", "other")
        )
        assert first == second
        assert first != other


ENGINES = st.fixed_dictionaries(
    {
        "max_loras": st.integers(1, 6),
        "max_cpu_loras": st.integers(6, 12),
        "max_num_seqs": st.integers(1, 12),
        "max_num_batched_tokens": st.integers(12, 80),
        "num_gpu_blocks": st.integers(9, 40),
        "async_scheduling": st.booleans(),
        "scheduler_reserve_full_isl": st.booleans(),
    }
)
ARRIVALS = st.one_of(
    st.fixed_dictionaries({"mode": st.just("open"), "request_rate": st.floats(1, 200)}),
    st.fixed_dictionaries({"mode": st.just("closed"), "concurrency": st.integers(1, 20)}),
)
ENDS = st.one_of(
    st.fixed_dictionaries({"duration_s": st.floats(0.01, 1.5)}),
    st.fixed_dictionaries({"num_requests": st.integers(1, 40)}),
    st.fixed_dictionaries({"duration_s": st.floats(0.01, 1.5), "num_requests": st.integers(1, 40)}),
)
LENGTHS = st.fixed_dictionaries({"input_length": st.integers(1, 90), "output_length": st.integers(1, 38)})


@settings(deadline=None, max_examples=150)
@given(ENGINES, ARRIVALS, ENDS, LENGTHS, st.integers(0, 3))
def test_nothing_is_lost(engine: Config, arrivals: Config, ends: Config, lengths: Config, seed: int) -> None:
    result = simulate(config(arrivals | ends | lengths, engine, seed=seed))
    counts = result.summary["counts"]
    assert counts["submitted"] == sum(counts.values()) - counts["submitted"]
    statuses = Counter(result.requests.column("status").to_pylist())
    assert statuses == {name: n for name, n in counts.items() if n and name != "submitted"}
    if "duration_s" not in ends:
        assert counts["completed"] == counts["submitted"] == ends["num_requests"]
    generated = sum(result.requests.column("num_generated_tokens").to_pylist())
    assert result.summary["total_output_tokens"] == generated
    assert sum(result.summary["time_share"].values()) == pytest.approx(1)


@settings(deadline=None, max_examples=50)
@given(ENGINES, st.integers(1, 20), st.integers(0, 3))
def test_a_closed_loop_keeps_its_concurrency(engine: Config, concurrency: int, seed: int) -> None:
    result = simulate(config(CLOSED | {"concurrency": concurrency}, engine, seed=seed))
    rows = result.requests.to_pylist()
    changes = Counter({row["arrival_s"]: 0 for row in rows})
    for row in rows:
        changes[row["arrival_s"]] += 1
        if row["finish_s"] is not None:
            changes[row["finish_s"]] -= 1
    assert changes.pop(0) == concurrency
    assert set(changes.values()) <= {0}


def test_every_scheduled_token_is_in_the_steps() -> None:
    result = simulate(config(OPEN | {"num_requests": 20, "duration_s": None}))
    assert result.steps is not None
    scheduled: Counter[str] = Counter()
    for row in result.steps.to_pylist():
        scheduled[row["request_id"]] += row["num_tokens"]
    assert scheduled == {f"request-{n:06d}": 20 + 5 - 1 for n in range(20)}


def test_warm_up_cuts_the_window() -> None:
    whole, cut = (simulate(config(CLOSED, warmup_s=warmup_s)) for warmup_s in (0, 1))
    rows = whole.requests.to_pylist()
    assert cut.requests == whole.requests
    assert cut.summary["duration_s"] == 1
    assert cut.summary["counts"] == whole.summary["counts"]
    assert cut.summary["completed"] == sum((row["finish_s"] or 0) >= 1 for row in rows)
    late = [row["ttft_ms"] for row in rows if row["arrival_s"] >= 1 and row["finish_s"] is not None]
    assert cut.summary["mean_ttft_ms"] == pytest.approx(sum(late) / len(late))
    assert cut.summary["total_output_tokens"] < whole.summary["total_output_tokens"]
    assert sum(cut.summary["time_share"].values()) == pytest.approx(1)


def test_idle_time_is_seen() -> None:
    share = simulate(config(OPEN | {"request_rate": 1.0, "duration_s": 10.0})).summary["time_share"]
    assert 0.5 < share["idle"] < 1
    assert share["compute"] + share["idle"] == pytest.approx(1)


def test_a_request_that_is_too_long_is_rejected() -> None:
    summary = simulate(config(OPEN | {"input_length": 124})).summary
    assert summary["counts"]["rejected"] == summary["counts"]["submitted"] > 0
    assert summary["completed"] == summary["output_throughput"] == 0
    assert summary["mean_ttft_ms"] is None


def test_loads_are_those_of_cold_tiers() -> None:
    """As many slots and host entries as adapters: each adapter in use is loaded and activated once."""
    result = simulate(config(OPEN, {"max_loras": 10}))
    used = len(set(result.requests.column("adapter").to_pylist()))
    assert result.summary["adapter_loads"] == result.summary["adapter_activations"] == used
    assert result.summary["adapters"]["host_cache_evictions"] == 0
    assert 0 < result.summary["adapters"]["slot_hit_rate"] < 1


def test_what_does_not_fit_says_so() -> None:
    with pytest.raises(DoesNotFit, match="GiB short"):
        simulate(config(OPEN, {"num_gpu_blocks": 7}))


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(UserError, match=r"^warmup_s=5\.0: the run was over after"):
        simulate(config({"mode": "closed", "concurrency": 4, "num_requests": 8}, warmup_s=5))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"_target_": "policies.admission.NoSuch"}, "NoSuch"),
        ({"_target_": "nosuch.Policy"}, "nosuch"),
        ({"_target_": 3}, "callable target"),
        ({"_target_": "policies.admission.FcfsSkip", "depth": 3}, "FcfsSkip"),
    ],
)
def test_a_bad_policy_is_named(policy: Config, message: str) -> None:
    with pytest.raises(UserError, match=rf"^admission: .*{message}") as raised:
        simulate(config(OPEN, admission=policy))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("fails", [False, True])
def test_garbage_is_collected_less_often_during_a_run_alone(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    seen, before = [], gc.get_threshold()

    def run_(self: simpy.Environment, until: Any = None) -> None:
        seen.append(gc.get_threshold()[0])
        if fails:
            raise PolicyError("a policy")

    monkeypatch.setattr(simpy.Environment, "run", run_)
    with pytest.raises(UserError, match="a policy") if fails else nullcontext():
        simulate(config(OPEN))
    assert seen == [COLLECT_EVERY]
    assert gc.get_threshold() == before


def test_a_run_until_all_are_done_has_the_same_arrivals_and_answers_all() -> None:
    busy = OPEN | {"request_rate": 200.0, "duration_s": 1.0}
    cut, whole = (simulate(config(busy | {"until_done": until_done})) for until_done in (False, True))
    assert cut.requests.column("arrival_s") == whole.requests.column("arrival_s")
    assert cut.summary["counts"]["completed"] < cut.summary["counts"]["submitted"]
    assert whole.summary["counts"]["completed"] == whole.summary["counts"]["submitted"]
    assert whole.summary["duration_s"] == max(whole.requests.column("finish_s").to_pylist()) > 1


def test_steps_that_swap_are_counted_once_each() -> None:
    found = simulate(config(CLOSED, {"max_loras": 2, "max_cpu_loras": 4}, record={"adapters": True}))
    times = Counter(row["time_s"] for row in found.adapters.to_pylist() if row["kind"] == "activate")
    # The constant profile's swaps take no time: those of one step are at one instant.
    assert found.summary["adapters"]["swap_steps"] == len(times)
    assert found.summary["adapter_activations"] == sum(times.values()) > len(times)
