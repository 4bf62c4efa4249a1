"""The request stream of a workload: a pure function of the workload's settings and the seed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, repeat, takewhile

from sim.errors import UserError
from sim.workload.config import WorkloadConfig
from sim.workload.spec import RequestSpec
from sim.workload.streams import endless, stream
from sim.workload.traces import Trace, read_trace
from sim.workload.traces.row import TraceRow, Unsaid

Sampler = Callable[[str | None], int]


@dataclass
class Traffic:
    """What arrives in a run, and what is known of it before."""

    specs: Iterator[RequestSpec]
    """The requests in order of arrival, drawn lazily."""
    num_requests: int | None
    """How many there are if nothing ends the run before; None: no end."""
    ranks: dict[str, int | None]
    """Every adapter that may be asked for, and its rank; None: the engine's ``max_lora_rank``."""
    trace: Trace | None = None


def adapter_name(index: int) -> str:
    """Return the name of an adapter: ``adapter-0000`` is the most popular one of a Zipf workload."""
    return f"adapter-{index:04d}"


def requests(config: WorkloadConfig, seed: int) -> Iterator[RequestSpec]:
    """Yield the requests of a run in order of arrival, drawn lazily.

    Finite in the open loop. The closed loop ends only where ``num_requests`` or the trace says so: take what
    is needed. The n-th request depends on n, the seed and the workload alone, never on who consumes it or
    when.
    """
    return traffic(config, seed).specs


def traffic(config: WorkloadConfig, seed: int) -> Traffic:
    """Return the requests of a run, and what is known of them. Reads the trace; raises UserError, OSError."""
    found = _synthetic(config, seed) if config.path is None else _recorded(config, config.path, seed)
    if config.mode == "open" and config.duration_s is not None:
        end_ns = round(config.duration_s * 1e9)
        found.specs = takewhile(lambda spec: spec.arrival_ns < end_ns, found.specs)
    return found


def _synthetic(config: WorkloadConfig, seed: int) -> Traffic:
    if config.input_length is None or config.output_length is None:
        raise UserError("workload.input_length and workload.output_length are needed where there is no trace")
    input_length = config.input_length.sampler(seed, "input_length")
    output_length = config.output_length.sampler(seed, "output_length")
    specs = _drawn(config, seed, input_length, output_length)
    return Traffic(islice(specs, config.num_requests), config.num_requests, _ranks_by_index(config, seed))


def _drawn(
    config: WorkloadConfig, seed: int, input_length: Sampler, output_length: Sampler
) -> Iterator[RequestSpec]:
    draw, abort_ns = _Adapters(config, seed).draw, config.abort_ns
    for number, arrival_ns in enumerate(_arrival_times(config, seed)):
        adapter = draw(number, arrival_ns)
        lengths = input_length(adapter), output_length(adapter)
        yield RequestSpec(f"request-{number:06d}", arrival_ns, adapter, *lengths, 0, abort_ns)


def _arrival_times(config: WorkloadConfig, seed: int) -> Iterator[int]:
    rate = config.offered_rate
    if rate is None or config.mode == "closed":
        return repeat(0)
    return config.arrivals.times_ns(rate, stream(seed, "arrivals"))


class _Adapters:
    """Draws the adapter of each request from the popularity, which drifts if it is told to."""

    def __init__(self, config: WorkloadConfig, seed: int) -> None:
        assert config.popularity is not None
        popularity, num_adapters = config.popularity, config.num_adapters
        rng = stream(seed, "popularity")
        self.names = [adapter_name(index) for index in range(num_adapters)]
        self._indices = endless(lambda size: popularity.adapters(rng.random(size), num_adapters))
        self._drift = config.drift
        self._base_model_share = config.base_model_share
        base_rng = stream(seed, "base_model")
        self._levels = endless(base_rng.random)

    def draw(self, number: int, arrival_ns: int) -> str | None:
        """Return the adapter of the next request; None: the base model."""
        index: int = next(self._indices)
        if self._base_model_share and next(self._levels) < self._base_model_share:
            return None
        if self._drift is not None:
            index = (index + self._drift.offset(number, arrival_ns)) % len(self.names)
        return self.names[index]


def _ranks_by_index(config: WorkloadConfig, seed: int) -> dict[str, int | None]:
    names = [adapter_name(index) for index in range(config.num_adapters)]
    return _ranks(names, config, seed)


def _ranks(names: list[str], config: WorkloadConfig, seed: int) -> dict[str, int | None]:
    mix = config.adapter_rank
    return dict(zip(names, repeat(None) if mix is None else mix.draw(seed, len(names)), strict=False))


def _recorded(config: WorkloadConfig, path: str, seed: int) -> Traffic:
    trace = read_trace(path, config.format, config.on_bad_line == "skip", timed=config.mode == "open")
    times = _times_of(trace, config, seed)
    rows = trace.rows[: config.num_requests]
    specs = _played(rows, times, config, seed)
    return Traffic(specs, len(rows), _ranks_of(trace, config, seed), trace)


def _times_of(trace: Trace, config: WorkloadConfig, seed: int) -> Iterator[int] | None:
    """Arrival times of a trace's requests that are not its own; None where they are."""
    if config.mode == "closed":
        return repeat(0)
    if trace.has_times:
        if config.request_rate is not None:
            raise UserError(
                f"workload.request_rate={config.request_rate}: {trace.path} has arrival times of its own"
            )
        return None
    if config.offered_rate is None:
        raise UserError(f"workload.request_rate is null: {trace.path} has no arrival times")
    return _arrival_times(config, seed)


def _played(
    rows: list[TraceRow], times: Iterator[int] | None, config: WorkloadConfig, seed: int
) -> Iterator[RequestSpec]:
    adapters: _Adapters | None = None
    for number, row in enumerate(rows):
        arrival_ns = row.time_ns or 0 if times is None else next(times)
        adapter = row.adapter
        if isinstance(adapter, Unsaid):
            adapters = adapters or _Adapters(config, seed)
            adapter = adapters.draw(number, arrival_ns)
        yield RequestSpec(
            row.request_id or f"request-{number:06d}",
            arrival_ns,
            adapter,
            row.input_length,
            row.output_length,
            row.priority,
            config.abort_ns if row.abort_ns is None else row.abort_ns,
            row.hash_ids,
        )


def _ranks_of(trace: Trace, config: WorkloadConfig, seed: int) -> dict[str, int | None]:
    """Ranks of the adapters that a trace names, in order of appearance, and of those it leaves to draw."""
    named = list(dict.fromkeys(row.adapter for row in trace.rows if isinstance(row.adapter, str)))
    ranks = _ranks(named, config, seed)
    if any(isinstance(row.adapter, Unsaid) for row in trace.rows):
        if config.popularity is None:
            raise UserError("workload.popularity is null: it is needed for requests that name no adapter")
        ranks = _ranks_by_index(config, seed) | ranks
    return ranks | trace.ranks
