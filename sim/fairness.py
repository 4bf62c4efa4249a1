"""How evenly the adapters are served."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from sim.metrics import NS_PER_MS, NS_PER_S, ttft_ns
from sim.request import Request


def fairness(requests: Iterable[Request], end_ns: int) -> dict[str, float | None]:
    """Return the fairness over adapters of the requests that arrived in the window, which ends at ``end_ns``.

    ``jain_index``: Jain, Chiu and Hawe's index (DEC-TR-301) of the adapters' mean service, 1 where all are
    served alike and 1 / (number of adapters) where one gets everything. An adapter's mean service is the
    tokens generated for each second that its requests are in the system, finished or not, so that
    popularity alone makes nothing unfair and a request that waits for ever counts.
    ``worst_adapter_p99_ttft_ms``: the highest p99 of time to first token of any adapter, over its requests
    that got one. ``longest_wait_ms``: the longest time that any request waited to be scheduled for the
    first time, those still waiting at the end included.
    """
    by_adapter: dict[str | None, list[Request]] = defaultdict(list)
    for request in requests:
        by_adapter[request.adapter].append(request)
    services = [_service(of_adapter, end_ns) for of_adapter in by_adapter.values()]
    worst_ns = _worst_p99_ttft_ns(by_adapter.values())
    waits = [_wait_ns(request, end_ns) for of_adapter in by_adapter.values() for request in of_adapter]
    return {
        "jain_index": jain_index([service for service in services if service is not None]),
        "worst_adapter_p99_ttft_ms": None if worst_ns is None else worst_ns / NS_PER_MS,
        "longest_wait_ms": max(waits) / NS_PER_MS if waits else None,
    }


def jain_index(values: Sequence[float]) -> float | None:
    """Return (sum x)^2 / (n * sum x^2) of values >= 0; None where there are none, or nothing but zeros."""
    array = np.asarray(values, dtype=np.float64)
    squares = float(np.sum(array**2)) * len(array)
    return float(np.sum(array)) ** 2 / squares if squares else None


def _service(requests: Sequence[Request], end_ns: int) -> float | None:
    """Tokens generated a second in the system."""
    time_ns = sum(_left_ns(request, end_ns) - request.arrival_ns for request in requests)
    tokens = sum(request.num_output_tokens for request in requests)
    return tokens * NS_PER_S / time_ns if time_ns else None


def _left_ns(request: Request, end_ns: int) -> int:
    """When a request left the system, or the end of the run."""
    left = [time_ns for time_ns in (request.finish_ns, request.abort_ns) if time_ns is not None]
    return left[0] if left else end_ns


def _wait_ns(request: Request, end_ns: int) -> int:
    begun_ns = _left_ns(request, end_ns) if request.scheduled_ns is None else request.scheduled_ns
    return begun_ns - request.arrival_ns


def _worst_p99_ttft_ns(by_adapter: Iterable[Sequence[Request]]) -> float | None:
    """The highest p99; an adapter whose longest is below one that was found needs none of its own."""
    values = [[value for r in of_adapter if (value := ttft_ns(r)) is not None] for of_adapter in by_adapter]
    worst_ns: float | None = None
    for of_adapter in sorted((some for some in values if some), key=max, reverse=True):
        if worst_ns is None or max(of_adapter) > worst_ns:
            worst_ns = max(worst_ns or 0.0, float(np.percentile(of_adapter, 99)))
    return worst_ns
