"""The metrics of a run, named and defined as in ``vllm bench serve`` (calculate_metrics in its serve.py).

The window is [warm-up, end of the run). In it count

* tokens that become known in it, of whatever request, also of one that never finishes (throughput);
* requests that finish in it (``completed``, ``request_throughput``, ``total_input_tokens``);
* steps that are scheduled in it, with their loads, activations and preemptions.

Latencies are those of requests that arrived in it: ``ttft``, ``tpot`` and ``e2el`` of the completed ones, as
in vLLM, so under overload they speak of the lucky ones; ``itl`` of every gap between two tokens of a request,
completed or not. A metric without observations is null (vLLM writes 0).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.gaps import Histogram
from sim.request import Request

NS_PER_MS = 1e6
NS_PER_S = 1e9


def ttft_ns(request: Request) -> int | None:
    """Return time to first token, or None while there is none."""
    return None if request.first_token_ns is None else request.first_token_ns - request.arrival_ns


def e2el_ns(request: Request) -> int | None:
    """Return end-to-end latency, or None before it is finished."""
    return None if request.finish_ns is None else request.finish_ns - request.arrival_ns


def tpot_ns(request: Request) -> float | None:
    """Return time per output token after the first, (e2el - ttft) / (tokens - 1), or None without one."""
    if request.finish_ns is None or request.first_token_ns is None or request.num_output_tokens < 2:
        return None
    return (request.finish_ns - request.first_token_ns) / (request.num_output_tokens - 1)


def latencies(completed: Iterable[Request], itl_gaps: Histogram) -> dict[str, float | None]:
    """Return mean, median, p99 and std of ttft, tpot, itl and e2el, in ms.

    ``itl_gaps`` counts the gaps between tokens, in ns.
    """
    requests = list(completed)
    metrics: dict[str, float | None] = {}
    for name, latency in (("ttft", ttft_ns), ("tpot", tpot_ns), ("e2el", e2el_ns)):
        values = [value for request in requests if (value := latency(request)) is not None]
        metrics |= statistics(name, *np.unique(values, return_counts=True))
    return metrics | statistics("itl", *itl_gaps)


def statistics(name: str, values_ns: NDArray[Any], counts: NDArray[np.int64]) -> dict[str, float | None]:
    """Return mean, median, p99 and std in ms of ascending values in ns, given with how often each occurs."""
    keys = [f"{statistic}_{name}_ms" for statistic in ("mean", "median", "p99", "std")]
    if not len(values_ns):
        return dict.fromkeys(keys)
    values, weights = values_ns.astype(np.float64) / NS_PER_MS, counts
    mean = float(np.average(values, weights=weights))
    std = float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
    median, p99 = (percentile(values, weights, percent) for percent in (50, 99))
    return dict(zip(keys, (mean, median, p99, std), strict=True))


def percentile(values: NDArray[np.float64], weights: NDArray[np.int64], percent: float) -> float:
    """Return ``numpy.percentile(numpy.repeat(values, weights), percent)`` of ascending ``values``."""
    last = np.cumsum(weights) - 1
    position = last[-1] * percent / 100
    below, above = (
        values[np.searchsorted(last, index, side="left")] for index in (np.floor(position), np.ceil(position))
    )
    return float(below + (above - below) * (position % 1))


def ratio(part: float, whole: float) -> float | None:
    """Return ``part / whole``, or None where there is no whole."""
    return part / whole if whole else None
