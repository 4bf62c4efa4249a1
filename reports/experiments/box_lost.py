"""What becomes of the requests when a box is lost."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from reports.experiments.scenario import Scenario
from sim.config import FallbackConfig, SloConfig
from sim.metrics import ratio

S_PER_HOUR = 3600.0
KINDS = ("in_time", "late", "degraded", "failed", "unanswered")
"""What may become of a request."""
_TAKEN_BACK = ("rejected", "aborted")


def after_the_loss(scenario: Scenario, at_s: float) -> dict[str, float | None]:
    """Return shares and latencies of the requests that were not done at ``at_s``, or came later.

    Shares are of all of them; ``in_time_by_anyone`` has the degraded answers that met the targets too. What
    the fallback costs is a rate over the time from then on.
    """
    config = scenario.config
    rows = [
        row
        for row in scenario.requests.to_pylist()
        if (row["finish_s"] is None or row["finish_s"] >= at_s) and row["status"] not in _TAKEN_BACK
    ]
    kinds = Counter(_kind(row, config.slo) for row in rows)
    num_in_time = sum(row["finish_s"] is not None and _is_in_time(row, config.slo) for row in rows)
    end_s = (scenario.metric("duration_s") or 0.0) + config.warmup_s
    return {
        "requests": float(len(rows)),
        **{kind: ratio(kinds[kind], len(rows)) for kind in KINDS},
        "in_time_by_anyone": ratio(num_in_time, len(rows)),
        "p50_e2el_ms": _percentile(rows, "e2el_ms", 50),
        "p99_e2el_ms": _percentile(rows, "e2el_ms", 99),
        "p99_ttft_ms": _percentile(rows, "ttft_ms", 99),
        "resent": scenario.metric("gateway.resent"),
        "lost_output_tokens": scenario.metric("gateway.lost_output_tokens"),
        "fallback_usd_per_hour": ratio(_usd(rows, config.fallback) * S_PER_HOUR, end_s - at_s),
    }


def _kind(row: Mapping[str, Any], slo: SloConfig) -> str:
    """What became of a request: one of KINDS."""
    if row["status"] in ("degraded", "failed"):
        return str(row["status"])
    if row["status"] != "completed":
        return "unanswered"
    return "in_time" if _is_in_time(row, slo) else "late"


def _is_in_time(row: Mapping[str, Any], slo: SloConfig) -> bool:
    """Whether an answer met every target, as for goodput."""
    targets = ((row[name], getattr(slo, name)) for name in ("ttft_ms", "tpot_ms", "e2el_ms"))
    return all(limit is None or (value or 0) <= limit for value, limit in targets)


def _usd(rows: list[dict[str, Any]], fallback: FallbackConfig | None) -> float:
    """What the provider asks for its answers."""
    if fallback is None:
        return 0.0
    degraded = [row for row in rows if row["status"] == "degraded"]
    return sum(fallback.usd(row["input_length"], row["num_generated_tokens"]) for row in degraded)


def _percentile(rows: list[dict[str, Any]], name: str, percent: float) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return float(np.percentile(values, percent)) if values else None
