"""The observer of a served engine: passes on what the engine tells."""

from collections.abc import Sequence

from sim.adapters import AdapterEvent
from sim.fast_forward import DecodeRun
from sim.request import Request
from sim.scheduler import StepPlan
from sim.serve.metrics import ReplicaMetrics
from sim.serve.outputs import Output
from sim.serve.swaps import SwapStats
from sim.steps import StepRecord


class ServingObserver:
    """Tells ``outputs`` (of the requests in flight) of their tokens; counts for ``metrics`` and ``swaps``."""

    def __init__(self, outputs: dict[Request, Output], metrics: ReplicaMetrics, swaps: SwapStats) -> None:
        self._outputs = outputs
        self._metrics = metrics
        self._swaps = swaps

    def on_step(self, record: StepRecord) -> None:
        """Count the adapters that the step swaps, and what starting requests found in the prefix cache."""
        if record.events:
            self._swaps.count(record.events)
            self._metrics.count_swaps(record.events)
        for request in record.plan.admitted:
            output = self._outputs.get(request)
            if output is not None and not request.num_preemptions:
                # The tokens that the step computes count as computed already.
                num_new_tokens = record.plan.num_scheduled_tokens[request]
                output.num_cached_tokens = request.num_computed_tokens - num_new_tokens
                self._metrics.count_admission(output)

    def on_tokens(self, plan: StepPlan, now_ns: int) -> None:
        """Pass each request's token on to its output."""
        num_computed_tokens, sampled = 0, plan.sampled
        for request in sampled:
            output = self._outputs.get(request)
            if output is None:
                continue
            if output.last_token_ns is None:
                num_computed_tokens += request.num_prompt_tokens - output.num_cached_tokens
                self._metrics.observe_first_token(output, now_ns)
            else:
                self._metrics.observe_gap(now_ns - output.last_token_ns)
            output.add_token(now_ns)
        if sampled:
            self._metrics.count_step(num_computed_tokens, len(sampled))

    def on_run(self, run: DecodeRun) -> None:
        """Take the steps of a run one by one."""
        run.play(self)

    def on_swaps(self, events: Sequence[AdapterEvent], now_ns: int) -> None:
        """Count the adapters that were loaded ahead of need."""
        self._metrics.count_swaps(events)

    def on_preempt(self, request: Request, now_ns: int) -> None:
        """Count a preemption."""
        self._metrics.count_preemption()

    def on_finish(self, request: Request, now_ns: int) -> None:
        """Let the output of a complete request go."""
        output = self._outputs.pop(request, None)
        if output is not None:
            output.finish()
            self._metrics.observe_finish(output)
