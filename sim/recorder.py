"""The observer of a run: counts what an engine does within the metrics window."""

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

from sim.adapters import EVENT_KINDS, AdapterEvent
from sim.columns import table
from sim.fast_forward import DecodeRun
from sim.gaps import TokenGaps
from sim.metrics import NS_PER_S
from sim.request import Request
from sim.results import STEPS_SCHEMA
from sim.scheduler import StepPlan
from sim.steps import StepRecord


@dataclass(slots=True)
class GpuTime:
    """What the GPU did within the window, in ns. What is left of the window is idle time without work."""

    compute: int = 0
    loading: int = 0
    activation: int = 0
    host: int = 0

    def add(self, other: "GpuTime") -> None:
        """Add the times of another GPU."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class StepLog:
    """Columns of ``steps.parquet``."""

    def __init__(self) -> None:
        self._step, self._start_ns, self._end_ns, self._num_tokens = (array("q") for _ in range(4))
        self._request_ids: list[str] = []

    def append(self, record: StepRecord) -> None:
        """Add a row for each request of a step."""
        tokens = record.plan.num_scheduled_tokens
        self._request_ids += [request.request_id for request in tokens]
        self._num_tokens.extend(tokens.values())
        for column, value in (
            (self._step, record.step),
            (self._start_ns, record.gpu_start_ns),
            (self._end_ns, record.gpu_end_ns),
        ):
            column.extend([value] * len(tokens))

    def extend(
        self,
        request_ids: Sequence[str],
        steps: "array[int]",
        starts_ns: "array[int]",
        ends_ns: "array[int]",
        num_tokens: "array[int]",
    ) -> None:
        """Add a row for each request id, and of the columns that belong to them."""
        self._request_ids += request_ids
        for column, values in (
            (self._step, steps),
            (self._start_ns, starts_ns),
            (self._end_ns, ends_ns),
            (self._num_tokens, num_tokens),
        ):
            column.extend(values)

    def table(self) -> pa.Table:
        """Return all rows, as STEPS_SCHEMA."""
        columns: list[list[Any]] = [
            list(self._step),
            [time_ns / NS_PER_S for time_ns in self._start_ns],
            [time_ns / NS_PER_S for time_ns in self._end_ns],
            self._request_ids,
            list(self._num_tokens),
        ]
        return table(columns, STEPS_SCHEMA)


class Recorder:
    """Counts over the window [``start_ns``, ``end_ns``); ``end_ns`` None is the end of the run.

    ``on_finished`` is called for each completed request, before the engine schedules at that instant.
    ``step_log`` takes every step, those of the warm-up too. A step, or a run of steps, costs
    a few numbers of memory.
    """

    def __init__(
        self,
        start_ns: int,
        end_ns: int | None,
        on_finished: Callable[[Request], None],
        step_log: StepLog | None,
    ) -> None:
        self.start_ns = start_ns
        self.end_ns = end_ns
        self.on_finished = on_finished
        self.step_log = step_log
        self.num_replicas = 1
        self.num_output_tokens = 0
        self.num_steps = 0
        self.num_preemptions = 0
        self.num_adapter_uses = 0
        self.num_swap_steps = 0
        """Steps that activated any adapter."""
        self.adapter_events: Counter[str] = Counter()
        self.gaps = TokenGaps()
        self.gpu_time = GpuTime()
        self._gpu_free_ns = 0
        self._tokens_ns = 0

    @classmethod
    def total(cls, recorders: Sequence["Recorder"]) -> "Recorder":
        """Return the counts of several replicas as one; one alone is returned as it is."""
        first, *others = recorders
        if not others:
            return first
        total = cls(first.start_ns, first.end_ns, first.on_finished, None)
        total.num_replicas = len(recorders)
        for recorder in recorders:
            total.num_output_tokens += recorder.num_output_tokens
            total.num_steps += recorder.num_steps
            total.num_preemptions += recorder.num_preemptions
            total.num_adapter_uses += recorder.num_adapter_uses
            total.num_swap_steps += recorder.num_swap_steps
            total.adapter_events.update(recorder.adapter_events)
            total.gpu_time.add(recorder.gpu_time)
            total.gaps.add(recorder.gaps)
        return total

    def on_step(self, record: StepRecord) -> None:
        """Count a step that has just been scheduled."""
        if self.step_log is not None:
            self.step_log.append(record)
        self._add_gpu_time(record)
        if record.schedule_ns < self.start_ns:
            return
        self.num_steps += 1
        self.num_adapter_uses += len(record.plan.adapters)
        if record.events:
            num_activations = self.adapter_events["activate"]
            self._count_events(record.events)
            self.num_swap_steps += self.adapter_events["activate"] > num_activations

    def on_preempt(self, request: Request, now_ns: int) -> None:
        """Count a preemption."""
        self.num_preemptions += now_ns >= self.start_ns

    def on_swaps(self, events: Sequence[AdapterEvent], now_ns: int) -> None:
        """Count loads and evictions beside the engine's work."""
        if now_ns >= self.start_ns:
            self._count_events(events)

    def _count_events(self, events: Sequence[AdapterEvent]) -> None:
        kinds, counts = [event[0] for event in events], self.adapter_events
        for kind in EVENT_KINDS:
            counts[kind] += kinds.count(kind)

    def on_tokens(self, plan: StepPlan, now_ns: int) -> None:
        """Count a step's tokens and the gaps since each request's token before."""
        start_ns, before_ns, self._tokens_ns = self.start_ns, self._tokens_ns, now_ns
        if now_ns < start_ns:
            return
        together, joined, chunks = plan.group.requests, plan.joined, plan.sampled_chunks
        self.num_output_tokens += len(together) + len(chunks)
        num_together = len(together) - len(joined)
        if start_ns:
            num_together = self._num_counted(together) - self._num_counted(joined)
        if num_together:
            self.gaps.append(now_ns - before_ns, num_together)
        if joined or chunks:
            # Most of the others had their last token at the same instant too: the step before.
            counts: dict[int, int] = {}
            for request in joined + chunks:
                token_ns = request.last_token_ns
                if token_ns is not None and request.arrival_ns >= start_ns:
                    counts[token_ns] = counts.get(token_ns, 0) + 1
            for token_ns, count in counts.items():
                self.gaps.append(now_ns - token_ns, count)

    def on_run(self, run: DecodeRun) -> None:
        """Count the steps and the tokens of a run."""
        begin_ns, end_ns = run.last.gpu_end_ns, run.gpu_end_ns(run.num_steps)
        in_window = min(begin_ns, run.turn_ns(1)) >= self.start_ns and end_ns <= (self.end_ns or end_ns)
        if self.step_log is not None or not in_window:
            run.play(self)
            return
        plan, num_steps = run.last.plan, run.num_steps
        self.on_tokens(run.under_way[0].plan, run.turn_ns(1))
        self.num_output_tokens += (num_steps - 1) * plan.num_reqs
        self.gaps.append_run(run, self._num_counted(plan.group.requests))
        self._tokens_ns = run.turn_ns(num_steps)
        self.num_steps += num_steps
        self.num_adapter_uses += num_steps * len(plan.adapters)
        busy_ns = run.busy_ns(num_steps)
        self.gpu_time.compute += busy_ns
        self.gpu_time.host += end_ns - begin_ns - busy_ns
        self._gpu_free_ns = end_ns

    def _num_counted(self, requests: Sequence[Request]) -> int:
        """How many of the requests arrived in the window."""
        if not self.start_ns:
            return len(requests)
        return sum(request.arrival_ns >= self.start_ns for request in requests)

    def on_finish(self, request: Request, now_ns: int) -> None:
        """Pass a completion on."""
        self.on_finished(request)

    def _add_gpu_time(self, record: StepRecord) -> None:
        """Add what of the GPU's waiting before the step, and of the step itself, lies in the window."""
        start_ns, end_ns, free_ns = record.gpu_start_ns, record.gpu_end_ns, self._gpu_free_ns
        self._gpu_free_ns = end_ns
        time, idle, waited_ns = self.gpu_time, record.gpu_idle, start_ns - free_ns
        part_ns = waited_ns
        if free_ns < self.start_ns or (self.end_ns is not None and end_ns > self.end_ns):
            part_ns = self._in_window_ns(free_ns, start_ns)
            time.compute += self._in_window_ns(start_ns, end_ns)
        else:
            time.compute += end_ns - start_ns
        if part_ns:
            time.loading += idle.loading_ns * part_ns // waited_ns
            time.activation += idle.activation_ns * part_ns // waited_ns
            time.host += idle.host_ns * part_ns // waited_ns

    def _in_window_ns(self, begin_ns: int, end_ns: int) -> int:
        """How much of [begin_ns, end_ns) lies in the window."""
        begin_ns = max(begin_ns, self.start_ns)
        if self.end_ns is not None and end_ns > self.end_ns:
            end_ns = self.end_ns
        return end_ns - begin_ns if end_ns > begin_ns else 0
