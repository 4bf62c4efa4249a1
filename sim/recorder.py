"""The observer of a run: counts what an engine does within the metrics window."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from sim.engine import StepRecord
from sim.metrics import NS_PER_S
from sim.request import Request
from sim.results import STEPS_SCHEMA
from sim.scheduler import StepPlan


@dataclass(slots=True)
class GpuTime:
    """What the GPU did within the window, in ns. What is left of the window is idle time without work."""

    compute: float = 0
    loading: float = 0
    activation: float = 0
    host: float = 0


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

    def table(self) -> pa.Table:
        """Return all rows, as STEPS_SCHEMA."""
        columns = [
            list(self._step),
            [time_ns / NS_PER_S for time_ns in self._start_ns],
            [time_ns / NS_PER_S for time_ns in self._end_ns],
            self._request_ids,
            list(self._num_tokens),
        ]
        return pa.table(columns, schema=STEPS_SCHEMA)


class Recorder:
    """Counts over the window [``start_ns``, ``end_ns``); ``end_ns`` None is the end of the run.

    ``on_finished`` is called for each completed request, before the engine schedules at that instant.
    ``step_log`` takes every step, those of the warm-up too. A step costs O(its requests), and no
    memory but for gaps between tokens that did not occur before.
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
        self.num_output_tokens = 0
        self.num_steps = 0
        self.num_preemptions = 0
        self.num_adapter_uses = 0
        self.adapter_events: Counter[str] = Counter()
        self.itl_gaps_ns: defaultdict[int, int] = defaultdict(int)
        self.gpu_time = GpuTime()
        self._gpu_free_ns = 0

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
            self.adapter_events.update(event.kind for event in record.events)

    def on_preempt(self, request: Request, now_ns: int) -> None:
        """Count a preemption."""
        self.num_preemptions += now_ns >= self.start_ns

    def on_tokens(self, plan: StepPlan, now_ns: int) -> None:
        """Count a step's tokens and the gaps since each request's token before."""
        start_ns = self.start_ns
        if now_ns < start_ns:
            return
        self.num_output_tokens += len(plan.sampled)
        tokens_before = [request.last_token_ns for request in plan.sampled if request.arrival_ns >= start_ns]
        # Most requests of a step had their last token at the same instant: the step before.
        for token_ns, count in Counter(tokens_before).items():
            if token_ns is not None:
                self.itl_gaps_ns[now_ns - token_ns] += count

    def on_finish(self, request: Request, now_ns: int) -> None:
        """Pass a completion on."""
        self.on_finished(request)

    def _add_gpu_time(self, record: StepRecord) -> None:
        """Add what of the GPU's waiting before the step, and of the step itself, lies in the window."""
        waited = self._share_in_window(self._gpu_free_ns, record.gpu_start_ns)
        busy = self._share_in_window(record.gpu_start_ns, record.gpu_end_ns)
        time, idle = self.gpu_time, record.gpu_idle
        time.compute += busy * (record.gpu_end_ns - record.gpu_start_ns)
        if waited:
            time.loading += waited * idle.loading_ns
            time.activation += waited * idle.activation_ns
            time.host += waited * idle.host_ns
        self._gpu_free_ns = record.gpu_end_ns

    def _share_in_window(self, begin_ns: int, end_ns: int) -> float:
        """Fraction of [begin_ns, end_ns) that lies in the window; 0 of nothing."""
        first = max(begin_ns, self.start_ns)
        last = end_ns if self.end_ns is None else min(end_ns, self.end_ns)
        return (last - first) / (end_ns - begin_ns) if last > first else 0
