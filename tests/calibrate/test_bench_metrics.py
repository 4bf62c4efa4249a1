"""Metrics of a run against hand-made truth, improvements, and the console tables to the letter."""

import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from calibrate.bench.metrics import COMPARED, improvement_pct, improvements, measure, statistics
from calibrate.bench.plots import comparison_png, run_png
from calibrate.bench.record import COMPLETED, RequestRecord, Run
from calibrate.bench.tables import comparison_table, run_table

POSITIVE = st.floats(1e-3, 1e6)
VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


def record(
    number: int, status: str = COMPLETED, adapter: str = "a", latency_s: float = 1.0, tokens: int = 11
) -> RequestRecord:
    """Return a request meant to be sent at `number` s and sent 10 ms later; 0.1 s to the first token."""
    done = status == COMPLETED
    return RequestRecord(
        f"request-{number}",
        adapter,
        float(number),
        number + 0.01,
        number + 0.1 if done else None,
        number + latency_s if done else None,
        5,
        tokens if done else 0,
        "usage" if done else None,
        status,
    )


def test_metrics_of_a_run_by_hand() -> None:
    records = [
        record(0, latency_s=1.1),
        record(1, latency_s=2.1, adapter="b"),
        record(2, "timeout"),
        record(3, "http_500", adapter="b"),
        record(4, "timeout"),
        record(5, "unfinished"),
    ]
    found = measure(Run("multi", records, 10.0))
    assert (found["total_requests"], found["completed"], found["failed"], found["unfinished"]) == (6, 2, 3, 1)
    assert found["success_rate"] == 0.4
    assert found["failures"] == {"timeout": 2, "http_500": 1}
    assert (found["request_throughput"], found["output_throughput"]) == (0.2, 2.2)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (10, 22)
    assert found["mean_e2el_ms"] == pytest.approx(1600)
    assert found["p99_e2el_ms"] == pytest.approx(2090)
    # From when it was meant to be sent, although it was sent 10 ms later.
    assert found["median_ttft_ms"] == pytest.approx(100)
    # (1.1 - 0.1) s and (2.1 - 0.1) s over ten tokens after the first.
    assert found["mean_tpot_ms"] == pytest.approx(150)
    assert found["mean_send_lag_ms"] == pytest.approx(10)
    assert list(found["adapters"]) == ["a", "b"]
    assert found["adapters"]["b"]["mean_e2el_ms"] == pytest.approx(2100)
    assert found["adapters"]["b"]["success_rate"] == 0.5
    assert found["tokens_counted_by"] == {"usage": 2}


def test_a_run_without_a_completed_request_has_no_latencies() -> None:
    found = measure(Run("multi", [record(0, "timeout")], 1.0))
    assert {found[metric.key] for metric in COMPARED} == {None, 0.0}
    assert found["success_rate"] == 0
    nothing = measure(Run("multi", [], 0.0))
    assert (nothing["success_rate"], nothing["request_throughput"], nothing["adapters"]) == (None, None, {})


def test_a_request_of_one_token_has_no_time_per_token() -> None:
    assert measure(Run("multi", [record(0, tokens=1)], 1.0))["mean_tpot_ms"] is None


def test_warmup_leaves_out_what_was_meant_to_be_sent_before_its_end() -> None:
    run = Run("multi", [record(number) for number in range(5)], 6.0).after(2.0)
    assert [record.request_id for record in run.records] == ["request-2", "request-3", "request-4"]
    assert run.duration_s == 4.0


@given(VALUES)
def test_percentiles_lie_between_their_neighbours(values: list[float]) -> None:
    found = statistics("x", values)
    ordered = sorted(values)
    for name, percent in (("median", 50), ("p95", 95), ("p99", 99)):
        position = (len(ordered) - 1) * percent / 100
        value = found[f"{name}_x_ms"]
        assert value is not None
        low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
        assert low * (1 - 1e-9) <= value <= high * (1 + 1e-9)
    assert found["mean_x_ms"] == pytest.approx(float(np.mean(values)))


@given(VALUES, st.randoms())
def test_the_order_of_requests_does_not_matter(values: list[float], random: Any) -> None:
    mixed = list(values)
    random.shuffle(mixed)
    assert statistics("x", mixed) == pytest.approx(statistics("x", values))


@given(POSITIVE, POSITIVE, st.booleans())
def test_an_improvement_is_a_plus(baseline: float, other: float, lower_is_better: bool) -> None:
    gain = improvement_pct(baseline, other, lower_is_better)
    assert gain is not None
    better = other < baseline if lower_is_better else other > baseline
    assert (gain > 0) == better
    assert gain == -(improvement_pct(baseline, other, not lower_is_better) or 0.0)
    # From the baseline, the gain leads to the other.
    sign = -1 if lower_is_better else 1
    assert baseline * (1 + sign * gain / 100) == pytest.approx(other, rel=1e-6)


@given(POSITIVE, st.booleans())
def test_no_change_is_a_zero_without_a_sign(value: float, lower_is_better: bool) -> None:
    gain = improvement_pct(value, value, lower_is_better)
    assert gain == 0
    assert math.copysign(1, gain or 0.0) == 1


def test_there_is_no_improvement_of_nothing() -> None:
    assert (
        improvement_pct(None, 1, True)
        is improvement_pct(1, None, True)
        is improvement_pct(0, 1, True)
        is None
    )


def metrics(
    latencies: list[float], throughputs: list[float], failed: int, duration_s: float
) -> dict[str, Any]:
    """Return metrics as `measure` does, with given ones in place of its own."""
    found = measure(Run("multi", [record(0)], 1.0))
    keys = [metric.key for metric in COMPARED]
    return (
        found
        | dict(zip(keys, [*latencies, *throughputs], strict=False))
        | {
            "total_requests": 100,
            "completed": 100 - failed,
            "failed": failed,
            "success_rate": 1 - failed / 100,
            "duration_s": duration_s,
            "failures": {"timeout": failed} if failed else {},
        }
    )


def test_comparison_has_the_form_of_the_write_up() -> None:
    baseline = metrics([1234, 1200, 1456, 1678], [8.10, 4150.23], 2, 12.35)
    multi = metrics([1156, 1120, 1389, 1598], [8.65, 4430.15], 0, 11.56)
    text = comparison_table(baseline, multi, improvements(baseline, multi))
    assert text.startswith("""\
==============================================================
COMPARISON RESULTS
==============================================================

--- Latency Comparison ---
Metric               Baseline        Multi-Adapter   Improvement
-----------------------------------------------------------------
Mean Latency         1.234s          1.156s          +6.32%
P50 Latency          1.200s          1.120s          +6.67%
P95 Latency          1.456s          1.389s          +4.60%
P99 Latency          1.678s          1.598s          +4.77%
Requests/sec         8.10            8.65            +6.79%
Tokens/sec           4150.23         4430.15         +6.74%

--- Token Comparison ---
Metric               Baseline        Multi-Adapter   Improvement
-----------------------------------------------------------------
Mean TTFT            100.00ms        100.00ms        +0.00%
""")
    assert text.endswith("""\

--- Request Statistics ---
Metric                         Baseline        Multi-Adapter
------------------------------------------------------------
Total Requests                 100             100
Successful Requests            98              100
Failed Requests                2               0
Success Rate                   98.00%          100.00%
Total Duration                 12.35s          11.56s
Failures (baseline): timeout 2

--- Adapter Statistics ---
Adapter               Requests  Failed  Mean Latency  P99 Latency   Mean TTFT
-----------------------------------------------------------------------------
a                            1       0        1.000s       1.000s    100.00ms""")


def test_a_table_says_what_is_not_there() -> None:
    run = Run("multi", [record(0, "timeout"), record(1, "unfinished")], 2.0, "interrupted")
    text = run_table("multi", measure(run))
    assert "Mean Latency                   -\n" in text
    assert "Unfinished Requests            1\n" in text
    assert "Failures (multi): timeout 1\nNot complete (multi): interrupted\n" in text


def test_a_table_names_the_busiest_adapters_and_counts_the_others() -> None:
    records = [record(number, adapter=f"adapter-{number % 12}") for number in range(13)]
    lines = run_table("multi", measure(Run("multi", records, 1.0))).splitlines()
    assert lines[-11].startswith("adapter-0 ")
    assert lines[-1] == "... and 2 more"


def test_pictures_of_runs_with_everything_and_with_nothing() -> None:
    mixed = [
        record(number, ("completed", "timeout")[number % 2], f"adapter-{number}") for number in range(30)
    ]
    runs = [Run("multi", mixed, 30.0), Run("baseline", [record(0, "timeout")], 1.0)]
    many, none = (measure(run) for run in runs)
    pictures = [*(run_png(run) for run in runs), comparison_png(none, many, improvements(none, many))]
    for picture in pictures:
        assert Image.open(io.BytesIO(picture)).size == (1650, 935)
