"""Which settings of a workload change nothing, because others leave them no part."""

from collections.abc import Iterator

from sim.workload.arrivals import KINDS, Poisson
from sim.workload.config import WorkloadConfig
from sim.workload.generate import Traffic
from sim.workload.traces.row import Unsaid

CONCURRENCY = 64
"""That of ``conf/workload``, also where a workload is an open one: nobody has asked for it."""


def without_effect(config: WorkloadConfig, arriving: Traffic) -> list[str]:
    """Return a sentence for each setting that was given in vain: what is as shipped is not."""
    return [f"workload.{setting} is without effect: {why}" for setting, why in _found(config, arriving)]


def _found(config: WorkloadConfig, arriving: Traffic) -> Iterator[tuple[str, str]]:
    if config.mode == "closed":
        loop = f"workload.mode=closed keeps workload.concurrency={config.concurrency} requests in flight"
        if config.request_rate is not None:
            yield f"request_rate={config.request_rate:g}", loop
        if not isinstance(config.arrivals, Poisson):
            yield f"arrivals.kind={_kind(config)}", loop
    else:
        yield from _of_open_loop(config)
    yield from _of_trace(config, arriving)


def _of_open_loop(config: WorkloadConfig) -> Iterator[tuple[str, str]]:
    if config.concurrency not in (None, CONCURRENCY):
        yield f"concurrency={config.concurrency}", "workload.mode=open takes requests as they come"
    if config.until_done and config.duration_s is None:
        yield "until_done=true", "workload.duration_s=null ends no run"


def _of_trace(config: WorkloadConfig, arriving: Traffic) -> Iterator[tuple[str, str]]:
    trace = arriving.trace
    if trace is None:
        if config.format is not None:
            yield f"format={config.format}", "workload.path=null names no file"
        if config.on_bad_line != "error":
            yield f"on_bad_line={config.on_bad_line}", "workload.path=null names no file"
        return
    if config.mode == "open" and trace.has_times and not isinstance(config.arrivals, Poisson):
        yield f"arrivals.kind={_kind(config)}", f"{trace.path} has arrival times of its own"
    if any(isinstance(row.adapter, Unsaid) for row in trace.rows):
        return
    if config.base_model_share:
        yield f"base_model_share={config.base_model_share:g}", f"{trace.path} names every request's adapter"
    if config.drift is not None:
        yield "drift", f"{trace.path} names every request's adapter"


def _kind(config: WorkloadConfig) -> str:
    return next(name for name, cls in KINDS.items() if isinstance(config.arrivals, cls))
