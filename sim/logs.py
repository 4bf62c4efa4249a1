"""What else is told of an engine's doings beside its recorder, where ``record`` asks for it."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from sim.adapter_log import AdapterLog
from sim.adapters import AdapterEvent
from sim.config import RecordConfig
from sim.engine import Observer
from sim.fast_forward import DecodeRun
from sim.request import Request
from sim.scheduler import StepPlan
from sim.steps import StepRecord
from sim.trace import TraceLog, check_perfetto


class Log(Protocol):
    """What takes steps and swaps, one by one."""

    def on_step(self, record: StepRecord) -> None:
        """A step is scheduled."""
        ...

    def on_swaps(self, events: Sequence[AdapterEvent], now_ns: int) -> None:
        """Adapters moved beside the engine's work."""
        ...


class Logs:
    """The logs of one replica."""

    def __init__(self, record: RecordConfig, num_slots: int) -> None:
        self.adapters = AdapterLog()
        self.trace = TraceLog(self.adapters, num_slots)
        self._told: list[Log] = []
        if record.adapters or record.trace:
            self._told.append(self.adapters)
        if record.trace:
            check_perfetto()
            self._told.append(self.trace)

    def beside(self, recorder: Observer, slots: Mapping[str, int]) -> Observer:
        """Return who tells the recorder and the logs; the recorder itself where there is no log.

        ``slots`` are those that are filled when the run starts.
        """
        self.adapters.begin(slots)
        # In a run of steps that are alike no adapter moves, so the trace alone wants each of them.
        of_runs = [log for log in self._told if log is self.trace]
        return _Observers(recorder, self._told, of_runs) if self._told else recorder


class _Observers:
    def __init__(self, first: Observer, logs: Sequence[Log], of_runs: Sequence[Log]) -> None:
        self._first, self._logs, self._of_runs = first, logs, of_runs

    def on_step(self, record: StepRecord) -> None:
        self._first.on_step(record)
        for log in self._logs:
            log.on_step(record)

    def on_run(self, run: DecodeRun) -> None:
        self._first.on_run(run)
        if self._of_runs:
            run.play(_Steps(self._of_runs))

    def on_swaps(self, events: Sequence[AdapterEvent], now_ns: int) -> None:
        self._first.on_swaps(events, now_ns)
        for log in self._logs:
            log.on_swaps(events, now_ns)

    def on_tokens(self, plan: StepPlan, now_ns: int) -> None:
        self._first.on_tokens(plan, now_ns)

    def on_preempt(self, request: Request, now_ns: int) -> None:
        self._first.on_preempt(request, now_ns)

    def on_finish(self, request: Request, now_ns: int) -> None:
        self._first.on_finish(request, now_ns)


class _Steps:
    """The steps of a run alone."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self._logs = logs

    def on_step(self, record: StepRecord) -> None:
        for log in self._logs:
            log.on_step(record)

    def on_tokens(self, plan: StepPlan, now_ns: int) -> None:
        """The logs need no tokens."""
