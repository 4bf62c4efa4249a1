"""Goodput: requests/s that meet their targets, named and defined as in ``vllm bench serve --goodput``."""

from collections.abc import Callable, Iterable

from sim.config import SloConfig
from sim.metrics import NS_PER_MS, e2el_ns, tpot_ns, ttft_ns
from sim.request import Request

_LATENCIES: dict[str, Callable[[Request], float | None]] = {
    "ttft_ms": ttft_ns,
    "tpot_ms": tpot_ns,
    "e2el_ms": e2el_ns,
}


def num_good(completed: Iterable[Request], slo: SloConfig) -> int | None:
    """Return how many completed requests meet every target; None where there is no target.

    A request of a single token has no time per token after it and meets any (vLLM counts it as 0).
    """
    targets = [(latency, getattr(slo, name)) for name, latency in _LATENCIES.items()]
    targets = [(latency, target_ms * NS_PER_MS) for latency, target_ms in targets if target_ms is not None]
    if not targets:
        return None
    return sum(
        all((latency(request) or 0) <= target_ns for latency, target_ns in targets) for request in completed
    )
