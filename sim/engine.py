"""One vLLM engine (a replica) in SimPy, on two timelines: the engine's host thread and its GPU."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Protocol

from simpy import Environment
from simpy.events import Event, EventPriority

from sim.adapters import AdapterEvent, AdapterTiers
from sim.config import EngineConfig
from sim.costs import FS_PER_NS, CostModel, StepCost, StepShape
from sim.cudagraph import CudaGraphs
from sim.fast_forward import DecodeRun, plan_run
from sim.fast_scheduler import FastScheduler
from sim.loader import Loader
from sim.lora_grid import LoraGrid, Step, num_lora_programs
from sim.request import Request, RequestStatus
from sim.scheduler import Scheduler, StepPlan
from sim.steps import GpuIdle, StepObserver, StepRecord

SHORTEST_IDLE_NS = 1_000_000
"""A policy that holds back all that waits is asked again after so long at the earliest."""
ENGINES_PRIORITY = 2
"""Engines come after everything else of an instant, arrivals in particular; the first replica first."""


class Observer(StepObserver, Protocol):
    """What is told of an engine's doings, at the instant when the engine itself knows, or after a run."""

    def on_run(self, run: DecodeRun) -> None:
        """Further steps were scheduled and the results of as many known, as `DecodeRun.play` would tell."""
        ...

    def on_preempt(self, request: Request, now_ns: int) -> None:
        """`request` lost its KV blocks and waits again."""
        ...

    def on_swaps(self, events: Sequence[AdapterEvent], now_ns: int) -> None:
        """Adapters came to the host cache, or left it, beside the engine's work."""
        ...

    def on_finish(self, request: Request, now_ns: int) -> None:
        """`request` is complete. What is submitted here is seen by a schedule at the same instant."""
        ...


@dataclass(slots=True)
class Turn:
    """Which engine of an environment is at work now."""

    rank: int = -1
    """-1: none."""


@dataclass(frozen=True)
class Place:
    """An engine's place among those of an environment."""

    rank: int = 0
    """At the same instant, the smaller comes first."""
    turn: Turn = field(default_factory=Turn)
    """Shared by all."""


@dataclass(eq=False)
class Engine:
    """Schedules, prepares and runs steps as vllm/v1/engine/core.py does (`step`, `step_with_batch_queue`).

    With asynchronous scheduling the host thread goes on to the next step as soon as it has launched one, and
    takes over results when two are under way; without, it waits for each step's results. Where the steps to
    come are all alike the engine sleeps until their end and makes up for them then, or when a request comes
    or goes (`engine.fast_forward`).
    """

    env: Environment
    config: EngineConfig
    scheduler: Scheduler
    tiers: AdapterTiers
    graphs: CudaGraphs
    costs: CostModel
    observer: Observer
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Of the adapters whose rank is not `max_lora_rank`."""
    place: Place = field(default_factory=Place)
    loader: Loader | None = None
    """Loads adapters beside the engine's work; None: the host thread loads what a step lacks."""
    lora_grid: LoraGrid | None = None
    """Counts the thread blocks of the LoRA kernels; None for profiles that do not know what one costs."""
    num_steps: int = field(default=0, init=False)
    _under_way: deque[StepRecord] = field(default_factory=deque, init=False)
    _run: DecodeRun | None = field(default=None, init=False)
    _alarm: Event | None = field(default=None, init=False)
    _idle_since_ns: int | None = field(default=None, init=False)
    _gpu_free_ns: int = field(default=0, init=False)
    _gpu_carry_fs: int = field(default=0, init=False)
    _no_work_ns: int = field(default=0, init=False)
    _most_host_entries: int = field(default=0, init=False)
    _applied: list[str] = field(default_factory=list, init=False)
    _lora_mapping: object = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._most_host_entries = len(self.tiers.host_cache)
        self._priority = EventPriority(ENGINES_PRIORITY + self.place.rank)
        if self.loader is not None:
            self.loader.on_ready, self.loader.on_change = self._take_all, self._interrupt
            self.loader.on_events = lambda events: self.observer.on_swaps(events, self._now_ns)
        self._max_under_way = 2 if self.config.async_scheduling else 1
        self._sleep_until(self._now_ns, self._schedule_and_launch)

    def submit(self, request: Request) -> None:
        """Take in a request that arrives now."""
        if self.loader is None or not self.loader.arrive(request):
            self._take(request)

    def _take_all(self, requests: list[Request]) -> None:
        for request in requests:
            self._take(request)

    def _take(self, request: Request) -> None:
        """Hand a request to the scheduler. A run of steps goes on where it makes no difference to them."""
        if self._run is None or self.scheduler.concerns(request):
            self._interrupt()
        self.scheduler.add_request(request)

    def abort(self, request: Request) -> None:
        """Take out a request whose client has gone, unless it has finished.

        Known before the next schedule, and before the results of a step under way, as
        vllm/v1/engine/core.py does (`_process_aborts_queue`): what that step yields for it is dropped.
        """
        if request.is_finished:
            return
        request.abort_ns = self._now_ns
        waits = request.status is not RequestStatus.RUNNING
        if self.loader is not None and waits and self.loader.abort(request):
            request.status = RequestStatus.FINISHED_ABORTED
        else:
            self._interrupt()
            self.scheduler.abort(request)

    def stop(self) -> None:
        """The replica is lost, and has nothing in flight any more."""
        if self.loader is not None:
            self.loader.stop()

    def settle(self) -> None:
        """Bring everything up to date when the simulation has stopped."""
        self._interrupt()
        self.scheduler.settle()

    @property
    def _now_ns(self) -> int:
        return int(self.env.now)

    def _sleep_until(self, time_ns: int, then: Callable[[], None]) -> None:
        """Go on with `then` at `time_ns`, after everything else of that instant."""
        alarm = self._alarm = Event(self.env)
        alarm._ok, alarm._value, alarm.callbacks = True, None, [self._wake]
        self._then = then
        self.env.schedule(alarm, self._priority, time_ns - self._now_ns)

    def _wake(self, alarm: Event) -> None:
        """Go on, unless something else has been decided since."""
        if alarm is self._alarm:
            self.place.turn.rank = self.place.rank
            self._then()
            self.place.turn.rank = -1

    def _interrupt(self) -> None:
        """Something happens to the engine now: it no longer sleeps through a run, or for want of work."""
        if self._run is not None:
            run, now_ns = self._run, self._now_ns
            # An engine that comes later in this instant finds this one after its turn.
            num_turns = run.num_turns(now_ns, inclusive=self.place.turn.rank > self.place.rank)
            next_turn_ns = run.turn_ns(num_turns + 1)
            self._make_up_for(run, num_turns)
            self._sleep_until(next_turn_ns, self._take_results)
        elif self._idle_since_ns is not None:
            self._no_work_ns += self._now_ns - self._idle_since_ns
            self._idle_since_ns = None
            self._sleep_until(self._now_ns, self._schedule_and_launch)

    def _schedule_and_launch(self) -> None:
        """Do what the host thread does from here on without waiting; it is free at this instant."""
        under_way, now_ns = self._under_way, self._now_ns
        while True:
            plan = self._schedule()
            if plan.num_tokens:
                record = self._launch(plan)
                under_way.append(record)
                if len(under_way) < self._max_under_way:
                    if record.launch_end_ns > now_ns:
                        return self._sleep_until(record.launch_end_ns, self._schedule_and_launch)
                    continue
            if under_way:
                if self._results_known_ns() > now_ns:
                    return self._wait_for_results()
                self._update(under_way.popleft())
            elif not plan.preempted:
                return self._idle()

    def _idle(self) -> None:
        """Wait for a request, or for the policy to let one go that waits."""
        self._idle_since_ns, self._alarm = self._now_ns, None
        admission = self.scheduler.admission
        change_ns = admission.next_change_ns() if len(admission) else None
        if change_ns is not None:
            self._sleep_until(max(change_ns, self._now_ns + SHORTEST_IDLE_NS), self._end_idle)

    def _end_idle(self) -> None:
        assert self._idle_since_ns is not None
        self._no_work_ns += self._now_ns - self._idle_since_ns
        self._idle_since_ns = None
        self._schedule_and_launch()

    def _results_known_ns(self) -> int:
        """When the host thread has taken over the results of the oldest step under way."""
        oldest, newest = self._under_way[0], self._under_way[-1]
        return max(self._now_ns, newest.launch_end_ns, oldest.gpu_end_ns) + oldest.cost.update_ns

    def _wait_for_results(self) -> None:
        """Sleep until the next results are known, or through the steps that will be alike."""
        first_turn_ns = self._results_known_ns()
        self._run = self._plan_run(first_turn_ns)
        if self._run is not None:
            self._sleep_until(self._run.turn_ns(self._run.num_steps + 1), self._end_run)
        else:
            self._sleep_until(first_turn_ns, self._take_results)

    def _take_results(self) -> None:
        self._update(self._under_way.popleft())
        self._schedule_and_launch()

    def _plan_run(self, first_turn_ns: int) -> DecodeRun | None:
        """Return the run that begins now, if any."""
        scheduler, under_way = self.scheduler, self._under_way
        if not isinstance(scheduler, FastScheduler) or under_way[-1].events:
            return None
        if len(under_way) < self._max_under_way:
            return None
        num_steps = scheduler.num_same_steps()
        if num_steps < 1:
            return None
        run = plan_run(tuple(under_way), num_steps, first_turn_ns, self._gpu_carry_fs)
        change_ns = scheduler.admission.next_change_ns() if len(scheduler.admission) else None
        if run is not None and change_ns is not None:
            run.num_steps = run.num_turns(change_ns, inclusive=False)
        return run if run is not None and run.num_steps else None

    def _end_run(self) -> None:
        assert self._run is not None
        self._make_up_for(self._run, self._run.num_steps)
        self._take_results()

    def _make_up_for(self, run: DecodeRun, num_steps: int) -> None:
        """Do the first `num_steps` turns of the run, and end it."""
        self._run = None
        if not num_steps:
            return
        run.num_steps = num_steps
        self.observer.on_run(run)
        self._note_tokens(run.under_way[0].plan, run.turn_ns(1))
        assert isinstance(self.scheduler, FastScheduler)
        self.scheduler.advance(num_steps, run.turn_ns(num_steps))
        plans = enumerate(self.scheduler.in_flight, num_steps + 1 - len(run.under_way))
        records = [run.record(number, plan) for number, plan in plans]
        newest = records[-1]
        self.tiers.repeat(newest.plan.adapters, num_steps, newest.schedule_ns)
        self.costs.step(newest.shape)
        self._under_way = deque(records)
        self._gpu_free_ns, self._gpu_carry_fs = newest.gpu_end_ns, run.carry_after_fs()
        self.num_steps += num_steps

    def _schedule(self) -> StepPlan:
        plan = self.scheduler.schedule()
        for request in plan.preempted:
            self.observer.on_preempt(request, self._now_ns)
        for request in plan.admitted:
            if request.scheduled_ns is None:
                request.scheduled_ns = self._now_ns
        if self.loader is not None:
            for request in plan.preempted:
                self.loader.requeue(request)
            for request in plan.admitted:
                self.loader.depart(request)
        return plan

    def _launch(self, plan: StepPlan) -> StepRecord:
        """Lay a scheduled step on the two timelines."""
        now_ns, gpu_free_ns = self._now_ns, self._gpu_free_ns
        shape = self._shape(plan)
        cost = self.costs.step(shape)
        if self.loader is not None and self.loader.is_busy:
            cost = cost.slowed(self.loader.config.host_factor)
        adapters = self._prepare_adapters(plan, now_ns + cost.schedule_ns)
        launch_ns = self._inputs_ready_ns(plan, adapters.end_ns, cost)
        launch_end_ns = launch_ns + cost.launch_ns
        gpu_start_ns = max(gpu_free_ns, launch_ns)
        gpu_ns, self._gpu_carry_fs = divmod(self._gpu_carry_fs + cost.gpu_fs, FS_PER_NS)
        gpu_end_ns = max(gpu_start_ns + gpu_ns, launch_end_ns)
        explained_ns = adapters.idle_load_ns + adapters.idle_activate_ns + self._no_work_ns
        record = StepRecord(
            step=self.num_steps,
            plan=plan,
            shape=shape,
            cost=cost,
            events=adapters.events,
            schedule_ns=now_ns,
            load_ns=adapters.load_ns,
            activate_ns=adapters.activate_ns,
            launch_end_ns=launch_end_ns,
            gpu_start_ns=gpu_start_ns,
            gpu_end_ns=gpu_end_ns,
            gpu_idle=GpuIdle(
                adapters.idle_load_ns,
                adapters.idle_activate_ns,
                gpu_start_ns - gpu_free_ns - explained_ns,
                self._no_work_ns,
            ),
        )
        self.num_steps += 1
        self._gpu_free_ns, self._no_work_ns = gpu_end_ns, 0
        self.observer.on_step(record)
        return record

    def _prepare_adapters(self, plan: StepPlan, start_ns: int) -> "_AdapterPhase":
        """Load and activate what the step lacks, one after another on the host thread, from `start_ns` on."""
        host_entries = len(self.tiers.host_cache)
        phase = _AdapterPhase(self._apply(plan.adapters), end_ns=start_ns)
        for kind, adapter, _ in phase.events:
            begin_ns = phase.end_ns
            if kind == "load":
                host_entries += 1
                phase.end_ns += self.costs.load_ns(
                    host_entries > self._most_host_entries, self._rank(adapter)
                )
                self._most_host_entries = max(self._most_host_entries, host_entries)
                phase.load_ns += phase.end_ns - begin_ns
                phase.idle_load_ns += max(0, phase.end_ns - max(begin_ns, self._gpu_free_ns))
            elif kind == "activate":
                phase.end_ns += self._activate_ns(adapter)
                phase.activate_ns += phase.end_ns - begin_ns
                phase.idle_activate_ns += max(0, phase.end_ns - max(begin_ns, self._gpu_free_ns))
            elif kind == "evict_host":
                host_entries -= 1
        return phase

    def _apply(self, adapters: dict[str, None]) -> list[AdapterEvent]:
        """Bring the adapters into slots; where the step before had the same, they are there."""
        in_order = list(adapters)
        if in_order == self._applied:
            self.tiers.repeat(in_order, 1, self._now_ns)
            return []
        self._applied = in_order
        return self.tiers.apply(in_order)

    def _activate_ns(self, adapter: str) -> int:
        duration_ns = self.costs.activate_ns(self._rank(adapter))
        if self.loader is not None and self.loader.is_busy:
            return round(duration_ns * self.loader.config.host_factor)
        return duration_ns

    def _rank(self, adapter: str) -> int:
        return self.ranks.get(adapter, self.config.max_lora_rank)

    def _inputs_ready_ns(self, plan: StepPlan, adapters_ready_ns: int, cost: StepCost) -> int:
        """When the first launch begins, which waits for the GPU where the LoRA mapping has changed.

        The mapping has the adapter of every token, in the order of vllm/v1/worker/gpu/model_runner.py:
        requests with fewer tokens first. vllm/lora/model_manager.py writes it only when it differs from the
        last one.
        """
        of_single_tokens, of_chunks = plan.group.token_adapters, []
        if plan.chunks:
            in_batch_order = sorted(plan.chunks.items(), key=itemgetter(1))
            of_chunks = [(request.adapter, num_tokens) for request, num_tokens in in_batch_order]
            num_single = sum(num_tokens == 1 for _, num_tokens in of_chunks)
            of_single_tokens = of_single_tokens + [adapter for adapter, _ in of_chunks[:num_single]]
            del of_chunks[:num_single]
        mapping = of_single_tokens, of_chunks
        if mapping == self._lora_mapping:
            return adapters_ready_ns + cost.prepare_ns
        self._lora_mapping = mapping
        return max(adapters_ready_ns, self._gpu_free_ns) + cost.remap_ns

    def _shape(self, plan: StepPlan) -> StepShape:
        num_reqs, num_adapters = plan.num_reqs, len(plan.adapters)
        graph = self.graphs.choose(num_reqs, plan.num_tokens, plan.max_query_len, num_adapters)
        return StepShape(
            graph=graph.mode,
            num_padded_tokens=graph.num_padded_tokens,
            num_reqs=num_reqs,
            num_tokens=plan.num_tokens,
            num_prefill_tokens=plan.num_prefill_tokens,
            num_prefill_reqs=plan.num_prefill_reqs,
            attention_work=plan.attention_work,
            kv_tokens=plan.kv_tokens,
            num_adapters=num_adapters,
            num_lora_tokens=plan.num_lora_tokens,
            num_waiting=plan.num_waiting,
            host_cache_entries=len(self.tiers.host_cache),
            max_loras=self.config.max_loras,
            max_lora_rank=self.config.max_lora_rank,
            num_lora_programs=num_lora_programs(
                self.lora_grid,
                Step(
                    graph.num_padded_tokens,
                    num_adapters,
                    num_reqs - plan.num_prefill_reqs,
                    plan.num_prefill_tokens,
                ),
            ),
            num_passed_over=plan.num_passed_over,
        )

    def _update(self, record: StepRecord) -> None:
        """The step's tokens and completions are known now."""
        plan, now_ns = record.plan, self._now_ns
        finished = self.scheduler.update_from_output(plan, now_ns)
        self.observer.on_tokens(plan, now_ns)
        self._note_tokens(plan, now_ns)
        for request in finished:
            request.finish_ns = request.last_token_ns = now_ns
            self.observer.on_finish(request, now_ns)
        if finished and self.loader is not None and self.loader.num_held:
            self.loader.look()

    def _note_tokens(self, plan: StepPlan, now_ns: int) -> None:
        """Write down when requests got their tokens, of those that are not in the group of the plan."""
        for request in plan.sampled_chunks:
            if request.first_token_ns is None:
                request.first_token_ns = now_ns
            request.last_token_ns = now_ns


@dataclass(slots=True)
class _AdapterPhase:
    """The host thread's work on a step's adapters, in ns; `idle_` is what an idle GPU had to wait for it."""

    events: list[AdapterEvent]
    end_ns: int
    load_ns: int = 0
    activate_ns: int = 0
    idle_load_ns: int = 0
    idle_activate_ns: int = 0
