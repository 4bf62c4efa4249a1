"""The metrics of a run, named as in the JSON of `vllm bench serve`, and how much better one run is.

Latencies are those of completed requests and count from when a request was meant to be sent. Throughputs
count completed requests and their tokens over the run's whole duration, so that fast failures are no gain.
A metric without observations is null.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibrate.bench.record import COMPLETED, UNFINISHED, RequestRecord, Run

PERCENTILES = {"median": 50, "p95": 95, "p99": 99}


@dataclass(frozen=True)
class Compared:
    """A metric that two runs are compared by."""

    label: str
    key: str
    lower_is_better: bool


LATENCIES = tuple(
    Compared(f"{label} Latency", f"{key}_e2el_ms", True)
    for label, key in (("Mean", "mean"), ("P50", "median"), ("P95", "p95"), ("P99", "p99"))
)
THROUGHPUTS = (
    Compared("Requests/sec", "request_throughput", False),
    Compared("Tokens/sec", "output_throughput", False),
)
TOKEN_TIMES = tuple(
    Compared(f"{label} {name}", f"{key}_{name.lower()}_ms", True)
    for name in ("TTFT", "TPOT")
    for label, key in (("Mean", "mean"), ("P50", "median"), ("P95", "p95"), ("P99", "p99"))
)
COMPARED = (*LATENCIES, *THROUGHPUTS, *TOKEN_TIMES)


def statistics(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Return mean, median, p95 and p99 under `mean_<name>_ms` and so on, between the nearest two values."""
    keys = [f"{statistic}_{name}_ms" for statistic in ("mean", *PERCENTILES)]
    if not values:
        return dict.fromkeys(keys)
    points = np.percentile(values, list(PERCENTILES.values()))
    return dict(zip(keys, (float(np.mean(values)), *map(float, points)), strict=True))


def latencies(records: Sequence[RequestRecord]) -> dict[str, float | None]:
    """Return the statistics of latency (`e2el`), `ttft` and `tpot` of the completed ones of `records`."""
    completed = [record for record in records if record.status == COMPLETED]
    found: dict[str, float | None] = {}
    for name in ("e2el", "ttft", "tpot"):
        values = [getattr(record, f"{name}_ms") for record in completed]
        found |= statistics(name, [value for value in values if value is not None])
    return found


def counts(records: Sequence[RequestRecord]) -> dict[str, Any]:
    """Return how many requests ended how; `success_rate` is a fraction of those that ended."""
    statuses = Counter(record.status for record in records)
    completed, unfinished = statuses[COMPLETED], statuses[UNFINISHED]
    failed = len(records) - completed - unfinished
    failures = {kind: count for kind, count in statuses.most_common() if kind not in (COMPLETED, UNFINISHED)}
    return {
        "total_requests": len(records),
        "completed": completed,
        "failed": failed,
        "unfinished": unfinished,
        "success_rate": completed / (completed + failed) if completed + failed else None,
        "failures": failures,
    }


def measure(run: Run) -> dict[str, Any]:
    """Return the metrics of a run, those of each adapter under `adapters` (the base model is `null`)."""
    completed = [record for record in run.records if record.status == COMPLETED]
    tokens = sum(record.num_generated_tokens for record in completed)
    lags = [record.send_lag_ms for record in run.records if record.send_lag_ms is not None]
    counted = Counter(record.tokens_from for record in completed if record.tokens_from)
    return {
        "duration_s": run.duration_s,
        "end": run.end,
        **counts(run.records),
        "request_throughput": len(completed) / run.duration_s if run.duration_s else None,
        "output_throughput": tokens / run.duration_s if run.duration_s else None,
        "total_input_tokens": sum(record.input_length or 0 for record in completed),
        "total_output_tokens": tokens,
        "tokens_counted_by": dict(counted),
        **latencies(run.records),
        **statistics("send_lag", lags),
        **statistics("client_lag", run.client_lags_ms),
        "adapters": _by_adapter(run.records),
    }


def _by_adapter(records: Sequence[RequestRecord]) -> dict[str, dict[str, Any]]:
    """Metrics of each adapter, the busiest first."""
    groups: dict[str, list[RequestRecord]] = defaultdict(list)
    for record in records:
        groups["null" if record.adapter is None else record.adapter].append(record)
    return {
        name: {
            **counts(group),
            "total_output_tokens": sum(r.num_generated_tokens for r in group if r.status == COMPLETED),
            **latencies(group),
        }
        for name, group in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    }


def improvement_pct(baseline: float | None, other: float | None, lower_is_better: bool) -> float | None:
    """Return how much better `other` is than `baseline`, in percent of it; None where there is no such."""
    if baseline is None or other is None or not baseline:
        return None
    change = 100 * (other - baseline) / baseline
    return (-change if lower_is_better else change) + 0.0


def improvements(baseline: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float | None]:
    """Return `improvement_pct` of each metric of COMPARED."""
    return {
        metric.key: improvement_pct(baseline[metric.key], other[metric.key], metric.lower_is_better)
        for metric in COMPARED
    }
