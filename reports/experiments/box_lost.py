"""What becomes of the requests when a box is lost."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from reports.experiments.document import Section
from reports.experiments.scenario import Scenario
from reports.numbers import duration, number, percent, whole
from sim.config import FallbackConfig, SloConfig
from sim.metrics import ratio

S_PER_HOUR = 3600.0
LOSSES = {
    "two_boxes": "no box lost",
    "box_lost": "one box lost",
    "box_lost_fallback": "one box lost, with a fallback",
}
"""Scenarios that are compared, the first one for comparison, and their heads."""
KINDS = ("in_time", "late", "degraded", "failed", "unanswered")
"""What may become of a request."""


def after_the_loss(scenario: Scenario, at_s: float) -> dict[str, float | None]:
    """Return shares and latencies of the requests that were not done at ``at_s``, or came later.

    Shares are of all of them; what a client gave up is among the ``unanswered``, and ``in_time_by_anyone``
    has the degraded answers that met the targets too. What the fallback costs is a rate over the time from
    then on.
    """
    config = scenario.config
    rows = [
        row
        for row in scenario.requests.to_pylist()
        if (row["finish_s"] is None or row["finish_s"] >= at_s) and row["status"] != "rejected"
    ]
    # When a client gave up is not in the table: of those that came before, nobody knows which were left.
    rows = [row for row in rows if row["status"] != "aborted" or row["arrival_s"] >= at_s]
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


_ROWS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "requests": ("requests under way or later", whole),
    "in_time": ("answered by the customer's adapter, in time", percent),
    "late": ("answered by the customer's adapter, late", percent),
    "degraded": ("answered by the fallback (degraded)", percent),
    "in_time_by_anyone": ("answered in time, degraded included", percent),
    "failed": ("ended with an error", percent),
    "unanswered": ("not answered by the end", percent),
    "p50_e2el_ms": ("p50 latency, degraded included", duration),
    "p99_e2el_ms": ("p99 latency, degraded included", duration),
    "p99_ttft_ms": ("p99 time to first token, degraded included", duration),
    "resent": ("requests that began again", whole),
    "lost_output_tokens": ("output tokens lost with the box", whole),
    "fallback_usd_per_hour": ("the fallback's bill, $ an hour", number),
}


def losses_of(found: Mapping[str, Scenario], at_s: float) -> dict[str, dict[str, float | None]]:
    """Return the figures of the scenarios of LOSSES that there are."""
    return {name: after_the_loss(found[name], at_s) for name in LOSSES if name in found}


def losses_section(losses: Mapping[str, Mapping[str, Any]], system: Scenario, at_s: float) -> Section:
    """Return the table of what became of the requests."""
    rows = [
        [label, *(write(losses[name].get(key)) for name in losses)] for key, (label, write) in _ROWS.items()
    ]
    slo = system.slo_in_words
    notes = [
        f"From {at_s:g} s on, of the requests that were not done by then. In time: {slo}. A degraded answer "
        "comes from the base model, without the customer's adapter, and counts as such.",
    ]
    if "box_lost" in losses and "box_lost_fallback" in losses:
        notes.append(_saved(losses["box_lost"], losses["box_lost_fallback"]))
    return Section("One box lost", ["", *(LOSSES[name] for name in losses)], rows, notes)


def _saved(without: Mapping[str, Any], with_fallback: Mapping[str, Any]) -> str:
    """What the fallback saves, in words."""
    (own, own_with), (all_, all_with) = (
        (without[key], with_fallback[key]) for key in ("in_time", "in_time_by_anyone")
    )
    return (
        f"With the fallback {percent(all_with)} are answered in time instead of {percent(all_)}, but "
        f"{percent(with_fallback['degraded'])} are degraded, and in time from the customer's own adapter are "
        f"{percent(own_with)} instead of {percent(own)}. The p99 of time to first token is "
        f"{duration(with_fallback['p99_ttft_ms'])} instead of {duration(without['p99_ttft_ms'])}, for "
        f"${number(with_fallback['fallback_usd_per_hour'])} an hour."
    )
