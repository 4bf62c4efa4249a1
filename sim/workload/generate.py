"""The request stream of a workload: a pure function of the workload's settings and the seed."""

from collections.abc import Iterator
from itertools import islice, repeat, takewhile
from typing import NamedTuple

from sim.workload.arrivals.poisson import poisson
from sim.workload.config import WorkloadConfig
from sim.workload.streams import stream

CHUNK = 4096


class RequestSpec(NamedTuple):
    """One request as the client sends it. Lengths in tokens.

    ``arrival_ns`` counts from the start of the run; in a closed loop it is 0, for "as soon as one of the
    ``concurrency`` places is free".
    """

    request_id: str
    arrival_ns: int
    adapter: str
    input_length: int
    output_length: int


def adapter_name(index: int) -> str:
    """Return the name of an adapter: ``adapter-0000`` is the most popular one of a Zipf workload."""
    return f"adapter-{index:04d}"


def requests(config: WorkloadConfig, seed: int) -> Iterator[RequestSpec]:
    """Yield the requests of a run in order of arrival, drawn lazily.

    Finite in the open loop. The closed loop ends only where ``num_requests`` says so: take what is needed.
    The n-th request depends on n, the seed and the workload alone, never on who consumes it or when.
    """
    numbered = enumerate(zip(_arrival_times(config, seed), _adapters(config, seed), strict=False))
    for index, (arrival_ns, adapter) in islice(numbered, config.num_requests):
        yield RequestSpec(
            f"request-{index:06d}", arrival_ns, adapter, config.input_length, config.output_length
        )


def _arrival_times(config: WorkloadConfig, seed: int) -> Iterator[int]:
    if config.request_rate is None or config.mode == "closed":
        return repeat(0)
    times = poisson(config.request_rate, stream(seed, "arrivals"))
    if config.duration_s is None:
        return times
    end_ns = round(config.duration_s * 1e9)
    return takewhile(lambda time_ns: time_ns < end_ns, times)


def _adapters(config: WorkloadConfig, seed: int) -> Iterator[str]:
    rng = stream(seed, "popularity")
    names = [adapter_name(index) for index in range(config.num_adapters)]
    while True:
        for index in config.popularity.adapters(rng.random(CHUNK), config.num_adapters).tolist():
            yield names[index]
