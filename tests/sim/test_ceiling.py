"""What nothing exceeds: by hand on small cases, and against policies and settings that nobody chose."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.simulation import simulate
from tests.sim.test_policy_runs import ADMISSION, EVICTION, PREFETCH
from tests.sim.test_policy_runs import config as fitted
from tests.sim.test_simulation import config

Config = dict[str, Any]


def ceiling(workload: Config, engine: Config | None = None, **top: Any) -> dict[str, float | None]:
    found: dict[str, float | None] = simulate(config(workload, engine, bound="throughput", **top)).summary[
        "ceiling"
    ]
    return found


def test_by_hand() -> None:
    """Steps of 10 ms: 8 requests at once give 800 tokens/s, 4 in a closed loop 400."""
    assert ceiling({"mode": "closed", "concurrency": 4, "duration_s": 2.0}) == {
        "output_throughput": 400,
        "request_goodput": None,
    }
    assert ceiling({"mode": "open", "request_rate": 500.0, "duration_s": 2.0})["output_throughput"] == 800
    assert ceiling({"mode": "open", "request_rate": 500.0, "num_requests": 9})["output_throughput"] == 800


def test_who_comes_too_late_for_the_end_counts_as_far_as_it_gets() -> None:
    """Of 5 tokens, who comes 25 ms before the end has two."""
    workload = {"mode": "open", "request_rate": 1.0, "duration_s": 3.0}
    result = simulate(config(workload, bound="throughput"))
    left_ms = [3000 - 1000 * second for second in result.requests.column("arrival_s").to_pylist()]
    assert left_ms
    tokens = [min(5, int(left // 10)) for left in left_ms]
    assert result.summary["ceiling"]["output_throughput"] == pytest.approx(sum(tokens) / 3)
    assert result.summary["ceiling"]["request_goodput"] == pytest.approx(tokens.count(5) / 3)


def test_only_the_bound_of_the_throughput_has_it() -> None:
    assert "ceiling" not in simulate(config({"mode": "closed", "concurrency": 4, "duration_s": 1.0})).summary


WORKLOADS = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["open", "closed"]),
        "request_rate": st.sampled_from([3.0, 30.0, 300.0]),
        "concurrency": st.sampled_from([1, 5, 40]),
        "duration_s": st.sampled_from([0.5, 3.0]),
        "num_adapters": st.sampled_from([1, 12]),
        "popularity": st.just({"kind": "zipf", "exponent": 0.8}),
        "base_model_share": st.sampled_from([0.0, 0.5, 1.0]),
        "input_length": st.sampled_from([1, 40, 300]),
        "output_length": st.sampled_from(
            [1, 30, {"kind": "lognormal", "mean": 30, "sigma": 1, "min": 1, "max": 200}]
        ),
        "abort_ms": st.sampled_from([None, 400.0]),
    }
)
ENGINES = st.fixed_dictionaries(
    {
        "max_loras": st.sampled_from([1, 4]),
        "max_cpu_loras": st.sampled_from([4, 6]),
        "max_num_seqs": st.just(32),
        "max_num_batched_tokens": st.just(512),
        "max_model_len": st.just(512),
        "async_scheduling": st.booleans(),
    }
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    workload=WORKLOADS,
    engine=ENGINES,
    admission=st.sampled_from(sorted(ADMISSION)),
    others=st.tuples(st.sampled_from(sorted(EVICTION)), st.sampled_from(sorted(PREFETCH))),
    more=st.fixed_dictionaries(
        {
            "bound": st.sampled_from([None, "throughput", "latency"]),
            "warmup_s": st.sampled_from([0, 0.25]),
        }
    ),
)
def test_no_policy_setting_or_bound_exceeds_it(
    workload: Config, engine: Config, admission: str, others: tuple[str, str], more: Config
) -> None:
    unused = "concurrency" if workload["mode"] == "open" else "request_rate"
    workload = workload | {unused: None}
    more = more | {"slo": {"ttft_ms": 1e6, "tpot_ms": 1e6}}
    of_bound = fitted(workload, engine | {"max_loras": 4}, **more | {"bound": "throughput"})
    most = simulate(of_bound).summary["ceiling"]
    policies = {"admission": ADMISSION[admission], "eviction": EVICTION[others[0]]}
    reached = simulate(fitted(workload, engine, prefetch=PREFETCH[others[1]], **policies, **more)).summary
    assert reached["output_throughput"] <= most["output_throughput"]
    if most["request_goodput"] is not None:
        assert reached["request_goodput"] <= most["request_goodput"]
