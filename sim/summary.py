"""``summary.json`` and ``requests.parquet`` of a run, from its requests and its recorder."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa

from sim.client import Client
from sim.columns import column, table
from sim.config import SloConfig
from sim.fairness import fairness
from sim.goodput import num_good
from sim.metrics import NS_PER_MS, NS_PER_S, e2el_ns, latencies, ratio, tpot_ns, ttft_ns
from sim.recorder import Recorder
from sim.request import Request, RequestStatus
from sim.results import REPLICA, REQUESTS_SCHEMA

STATUSES = ("completed", "running", "waiting", "rejected", "aborted")


def status_of(request: Request, rejected: Collection[Request]) -> str:
    """Return where a submitted request is when the run ends: one of STATUSES."""
    if request in rejected:
        return "rejected"
    if request.is_finished:
        return "completed" if request.abort_ns is None else "aborted"
    return "running" if request.status is RequestStatus.RUNNING else "waiting"


def counts(requests: Sequence[Request], rejected: Collection[Request]) -> dict[str, int]:
    """Return the number of requests submitted and of each status, over the whole run, warm-up included."""
    found = Counter(status_of(request, rejected) for request in requests)
    return {"submitted": len(requests)} | {status: found[status] for status in STATUSES}


def summarise(client: Client, recorders: Sequence[Recorder], end_ns: int, slo: SloConfig) -> dict[str, Any]:
    """Return the metrics of ``summary.json``: of all replicas together and, of several, each one's.

    A rejected request has no replica and counts for all together only.
    """
    total = run_metrics(client.requests, client.rejected, Recorder.total(recorders), end_ns, slo)
    if len(recorders) == 1:
        return total
    routed: list[list[Request]] = [[] for _ in recorders]
    for request, replica in zip(client.requests, client.replicas, strict=True):
        if replica is not None:
            routed[replica].append(request)
    each = zip(routed, recorders, strict=True)
    metrics = [run_metrics(requests, (), recorder, end_ns, slo) for requests, recorder in each]
    return total | {"replicas": metrics}


def run_metrics(
    requests: Sequence[Request],
    rejected: Collection[Request],
    recorder: Recorder,
    end_ns: int,
    slo: SloConfig,
) -> dict[str, Any]:
    """Return the metrics of ``requests`` over the window that ends at ``end_ns``; see sim.metrics."""
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
        "counts": counts(requests, rejected),
        **adapter_metrics(recorder),
        "fairness": fairness([r for r in requests if r.arrival_ns >= start_ns and r not in rejected], end_ns),
        "time_share": time_share(recorder, end_ns),
        "num_preemptions": recorder.num_preemptions,
        "engine_steps": recorder.num_steps,
    }


def goodput(finished: Sequence[Request], window_s: float, slo: SloConfig) -> dict[str, float | None]:
    """Return ``request_goodput``; nothing where no target is set, as vLLM's benchmark without --goodput."""
    good = num_good(finished, slo)
    return {} if good is None else {"request_goodput": ratio(good, window_s)}


def adapter_metrics(recorder: Recorder) -> dict[str, Any]:
    """Return loads, activations, evictions and hit rates.

    ``slot_hit_rate``: of the uses of an adapter by a step, those that found it in a slot.
    ``host_cache_hit_rate``: of the activations, those that found it in the host cache. ``swap_steps``: steps
    that activated any.
    """
    events = recorder.adapter_events
    misses, loads = ratio(events["activate"], recorder.num_adapter_uses), events["load"]
    load_ratio = ratio(loads, events["activate"])
    return {
        "adapter_loads": loads,
        "adapter_activations": events["activate"],
        "adapters": {
            "slot_hit_rate": None if misses is None else 1 - misses,
            "host_cache_hit_rate": None if load_ratio is None else 1 - load_ratio,
            "host_cache_evictions": events["evict_host"],
            "slot_evictions": events["evict_slot"],
            "swap_steps": recorder.num_swap_steps,
        },
    }


def time_share(recorder: Recorder, end_ns: int) -> dict[str, float]:
    """Return the fractions of the window in which the GPUs computed, or waited for what; they sum to 1.

    ``compute``: from the start of a step on the GPU to its end, copies to slots included. ``loading``,
    ``activation``, ``host``: it waited while the host thread did that. ``idle``: there was nothing to do.
    """
    window_ns = (end_ns - recorder.start_ns) * recorder.num_replicas
    names = ("compute", "loading", "activation", "host")
    shares = {name: ratio(getattr(recorder.gpu_time, name), window_ns) or 0.0 for name in names}
    return shares | {"idle": max(0.0, 1 - sum(shares.values()))}


def requests_table(client: Client, num_replicas: int) -> pa.Table:
    """Return ``requests.parquet``: a row per submitted request in order of arrival, warm-up included."""
    requests = client.requests
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
        "status": [status_of(request, client.rejected) for request in requests],
        "ttft_ms": _scaled([ttft_ns(request) for request in requests], NS_PER_MS),
        "tpot_ms": _scaled([tpot_ns(request) for request in requests], NS_PER_MS),
        "e2el_ms": _scaled([e2el_ns(request) for request in requests], NS_PER_MS),
    }
    requests_of_run = table([columns[name] for name in REQUESTS_SCHEMA.names], REQUESTS_SCHEMA)
    return with_replica(requests_of_run, client.replicas) if num_replicas > 1 else requests_of_run


def with_replica(rows: pa.Table, replicas: Sequence[int | None]) -> pa.Table:
    """Return ``rows`` with the column that says which replica each row is about."""
    return rows.append_column(REPLICA, column(replicas, REPLICA.type))


def _scaled(values_ns: Sequence[float | None], unit_ns: float) -> list[float | None]:
    return [None if value is None else value / unit_ns for value in values_ns]
