"""The metrics that a run may have, by their names in ``sweep.csv``."""

import simpy

from policies.routing import RoundRobin
from sim.config import FailoverConfig, SloConfig
from sim.gateway import Gateway
from sim.ledger import Ledger
from sim.recorder import Recorder
from sim.router import Router
from sim.summary import gateway_metrics, run_metrics
from sim.sweep.rows import scalars


def metric_names() -> list[str]:
    """Return all names, in order: those of a run in which nothing happens, and that leaves nothing out."""
    ledger = Ledger()
    recorder = Recorder(start_ns=0, end_ns=None, on_finished=lambda request: None, step_log=None)
    of_engines = run_metrics([], ledger.counts([], True), recorder, 0, SloConfig(ttft_ms=1))
    router = Router([], RoundRobin())
    gateway = Gateway(simpy.Environment(), router, ledger, FailoverConfig(), None, lambda request: None)
    return [name for name, _ in scalars({**of_engines, "gateway": gateway_metrics(gateway), "kv_blocks": 0})]
