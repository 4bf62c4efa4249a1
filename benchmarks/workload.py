"""The work that is timed, and the loop's clock."""

import cProfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import simpy
from hydra import compose, initialize_config_module

from sim import simulation
from sim.compiled import choice
from sim.config import run_values

REFERENCE: dict[str, Any] = {
    "workload.mode": "open",
    "workload.duration_s": "null",
    "workload.num_requests": 10_000,
    "workload.request_rate": 8,
    "workload.input_length": 512,
    "workload.output_length": 128,
    "workload.num_adapters": 1000,
    "engine.max_loras": 32,
    "engine.max_cpu_loras": 1000,
    "seed": 0,
}
"""Zipf 1.0 (the default), cold start, one replica, the shipped profile."""
CAPACITY = 8.0
"""Requests a second that the reference engine can just serve."""


def overrides(**changes: Any) -> list[str]:
    """Return the reference work as arguments; in `changes` `__` stands for a dot."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={value}" for key, value in (REFERENCE | changed).items()]


_Environment = simpy.Environment


@dataclass
class Timing:
    """Wall time in s of the loop: engine and clients, without process start, profile and output."""

    loop_s: float
    num_requests: int
    num_steps: int
    num_tokens: int
    num_events: int

    def rates(self) -> dict[str, float]:
        """Return what happens in a second of wall time."""
        counts = {"requests": self.num_requests, "engine_steps": self.num_steps}
        counts |= {"request_steps": self.num_tokens, "simpy_events": self.num_events}
        return {f"{name}_per_s": round(count / self.loop_s) for name, count in counts.items()}


class TimedEnvironment(_Environment):
    """An environment that says how long it ran and how many events it had."""

    last: ClassVar["TimedEnvironment"]
    profiler: ClassVar[cProfile.Profile | None] = None

    def run(self, until: Any = None) -> Any:
        """Run as usual."""
        TimedEnvironment.last = self
        begin_s = time.perf_counter()
        if self.profiler is not None:
            self.profiler.runcall(super().run, until)
        else:
            super().run(until)
        self.loop_s = time.perf_counter() - begin_s
        self.num_events = next(self._eid)


def simulate(compiled: bool = True, **changes: Any) -> Timing:
    """Simulate the reference work with `changes`, in compiled code if that is there."""
    with initialize_config_module("conf", version_base="1.3"):
        config = run_values(compose("config", overrides(**changes)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simpy, "Environment", TimedEnvironment)
        if not compiled:
            patch.setattr(choice, "CompiledEngine", None)
        summary = simulation.simulate(config).summary
    environment = TimedEnvironment.last
    counts = summary["counts"]["submitted"], summary["engine_steps"], summary["total_output_tokens"]
    return Timing(environment.loop_s, *counts, environment.num_events)


def time_outs_per_s(number: int = 200_000) -> float:
    """Return how many time-outs of one process SimPy does in a second here."""
    environment = simpy.Environment()

    def sleeper() -> Any:
        for _ in range(number):
            yield environment.timeout(1)

    environment.process(sleeper())
    begin_s = time.perf_counter()
    environment.run()
    return number / (time.perf_counter() - begin_s)


def profiled(run: Callable[[], Any]) -> cProfile.Profile:
    """Return the profile of the loop of `run`."""
    TimedEnvironment.profiler = profiler = cProfile.Profile()
    try:
        run()
    finally:
        TimedEnvironment.profiler = None
    return profiler
