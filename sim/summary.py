"""``summary.json`` and ``requests.parquet`` of a run, from its requests and its recorder."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sim.columns import column, table
from sim.config import RunConfig, SloConfig
from sim.fairness import fairness
from sim.gateway import Gateway
from sim.goodput import num_good
from sim.ledger import Ledger
from sim.metrics import NS_PER_MS, NS_PER_S, e2el_ns, latencies, ratio, statistics, tpot_ns, ttft_ns
from sim.recorder import Recorder
from sim.request import Request
from sim.results import REPLICA, REQUESTS_SCHEMA


def summarise(
    ledger: Ledger, recorders: Sequence[Recorder], end_ns: int, config: RunConfig
) -> dict[str, Any]:
    """Return the metrics of ``summary.json``: of all replicas together and, of several, each one's.

    A request that no replica has (rejected, degraded, failed) counts for all together only.
    """

    def metrics_of(requests: Sequence[Request], recorder: Recorder) -> dict[str, Any]:
        of_engines = [request for request in requests if ledger.is_of_engines(request)]
        counts = ledger.counts(requests, config.has_gateway)
        return run_metrics(of_engines, counts, recorder, end_ns, config.slo)

    total = metrics_of(ledger.requests, Recorder.total(recorders))
    if len(recorders) == 1:
        return total
    routed: list[list[Request]] = [[] for _ in recorders]
    for request, replica in zip(ledger.requests, ledger.replicas, strict=True):
        if replica is not None:
            routed[replica].append(request)
    return total | {"replicas": [metrics_of(*each) for each in zip(routed, recorders, strict=True)]}


def run_metrics(
    requests: Sequence[Request],
    counts: Mapping[str, int],
    recorder: Recorder,
    end_ns: int,
    slo: SloConfig,
) -> dict[str, Any]:
    """Return the metrics of what engines got, over the window that ends at ``end_ns``; see sim.metrics.

    ``counts`` says what has become of all that was submitted.
    """
    start_ns = recorder.start_ns
    window_s = (end_ns - start_ns) / NS_PER_S
    finished = [r for r in requests if r.finish_ns is not None and r.finish_ns >= start_ns]
    input_tokens = sum(request.num_prompt_tokens for request in finished)
    output_tokens = recorder.num_output_tokens
    return {
        "duration_s": window_s,
        "request_throughput": ratio(len(finished), window_s),
        **goodput(finished, window_s, slo),
        "output_throughput": ratio(output_tokens, window_s),
        "total_token_throughput": ratio(input_tokens + output_tokens, window_s),
        "completed": len(finished),
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        **latencies((r for r in finished if r.arrival_ns >= start_ns), recorder.gaps.histogram()),
        "counts": counts,
        **adapter_metrics(recorder, window_s, len(finished)),
        "fairness": fairness([r for r in requests if r.arrival_ns >= start_ns], end_ns),
        "time_share": time_share(recorder, end_ns),
        "num_preemptions": recorder.num_preemptions,
        "engine_steps": recorder.num_steps,
    }


def goodput(finished: Sequence[Request], window_s: float, slo: SloConfig) -> dict[str, float | None]:
    """Return ``request_goodput``; nothing where no target is set, as vLLM's benchmark without --goodput."""
    good = num_good(finished, slo)
    return {} if good is None else {"request_goodput": ratio(good, window_s)}


def gateway_metrics(gateway: Gateway) -> dict[str, Any]:
    """Return what came of the loss of a replica and of the fallback, over the whole run, warm-up included.

    ``resent``: requests that began again elsewhere; ``lost_output_tokens``: what their first attempts had
    generated. Latencies of the ``degraded`` answers count from the arrival, whoever had the request first.
    ``fallback_usd`` is the provider's bill.
    """
    ledger = gateway.ledger
    answers = [request for request in ledger.degraded if request.finish_ns is not None]
    metrics: dict[str, Any] = {
        "resent": gateway.num_resent,
        "lost_output_tokens": sum(request.num_output_tokens for request in ledger.lost),
        "degraded_output_tokens": sum(request.num_output_tokens for request in ledger.degraded),
        "fallback_usd": 0.0 if gateway.fallback is None else gateway.fallback.usd(),
    }
    for name, latency in (("degraded_ttft", ttft_ns), ("degraded_e2el", e2el_ns)):
        values = [value for request in answers if (value := latency(request)) is not None]
        metrics |= statistics(name, *np.unique(values, return_counts=True))
    return metrics


def adapter_metrics(recorder: Recorder, window_s: float, num_completed: int) -> dict[str, Any]:
    """Return loads, activations, evictions and hit rates.

    ``slot_hit_rate``: of the uses of an adapter by a step, those that found it in a slot.
    ``host_cache_hit_rate``: of the activations, those that found it in the host cache. ``swap_steps``: steps
    that activated any. ``mean_active``: distinct adapters in a step, on average.
    ``slot_evictions`` are those from the GPU's slots, ``host_cache_evictions`` those from the host's memory:
    counts, and each a second and a completed request.
    """
    events, evictions = recorder.adapter_events, dict[str, float | None]()
    for tier, kind in (("host_cache", "evict_host"), ("slot", "evict_slot")):
        evictions[f"{tier}_evictions"] = events[kind]
        evictions[f"{tier}_evictions_per_s"] = ratio(events[kind], window_s)
        evictions[f"{tier}_evictions_per_request"] = ratio(events[kind], num_completed)
    misses, loads = ratio(events["activate"], recorder.num_adapter_uses), events["load"]
    load_ratio = ratio(loads, events["activate"])
    return {
        "adapter_loads": loads,
        "adapter_activations": events["activate"],
        "adapters": {
            "slot_hit_rate": None if misses is None else 1 - misses,
            "host_cache_hit_rate": None if load_ratio is None else 1 - load_ratio,
            "swap_steps": recorder.num_swap_steps,
            "mean_active": ratio(recorder.num_adapter_uses, recorder.num_steps),
            **evictions,
        },
    }


def time_share(recorder: Recorder, end_ns: int) -> dict[str, float]:
    """Return the fractions of the window in which the GPUs computed, or waited for what; they sum to 1.

    ``compute``: from the start of a step on the GPU to its end, copies to slots included. ``loading``,
    ``activation``, ``host``: it waited while the host thread did that. ``idle``: there was nothing to do, or
    the replica was lost.
    """
    window_ns = (end_ns - recorder.start_ns) * recorder.num_replicas
    names = ("compute", "loading", "activation", "host")
    shares = {name: ratio(getattr(recorder.gpu_time, name), window_ns) or 0.0 for name in names}
    return shares | {"idle": max(0.0, 1 - sum(shares.values()))}


def requests_table(ledger: Ledger, num_replicas: int) -> pa.Table:
    """Return ``requests.parquet``: a row per submitted request in order of arrival, warm-up included."""
    requests = ledger.requests
    columns: dict[str, list[Any]] = {
        "request_id": [request.request_id for request in requests],
        "adapter": [request.adapter for request in requests],
        "arrival_s": [request.arrival_ns / NS_PER_S for request in requests],
        "scheduled_s": _scaled([request.scheduled_ns for request in requests], NS_PER_S),
        "first_token_s": _scaled([request.first_token_ns for request in requests], NS_PER_S),
        "finish_s": _scaled([request.finish_ns for request in requests], NS_PER_S),
        "input_length": [request.num_prompt_tokens for request in requests],
        "output_length": [request.output_length for request in requests],
        "num_generated_tokens": [request.num_output_tokens for request in requests],
        "num_preemptions": [request.num_preemptions for request in requests],
        "status": [ledger.status_of(request) for request in requests],
        "ttft_ms": _scaled([ttft_ns(request) for request in requests], NS_PER_MS),
        "tpot_ms": _scaled([tpot_ns(request) for request in requests], NS_PER_MS),
        "e2el_ms": _scaled([e2el_ns(request) for request in requests], NS_PER_MS),
    }
    requests_of_run = table([columns[name] for name in REQUESTS_SCHEMA.names], REQUESTS_SCHEMA)
    return with_replica(requests_of_run, ledger.replicas) if num_replicas > 1 else requests_of_run


def with_replica(rows: pa.Table, replicas: Sequence[int | None]) -> pa.Table:
    """Return ``rows`` with the column that says which replica each row is about."""
    return rows.append_column(REPLICA, column(replicas, REPLICA.type))


def _scaled(values_ns: Sequence[float | None], unit_ns: float) -> list[float | None]:
    return [None if value is None else value / unit_ns for value in values_ns]
