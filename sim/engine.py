"""One vLLM engine (a replica) as a SimPy process, on two timelines: the engine's host thread and its GPU."""

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple, Protocol

from simpy import Environment
from simpy.events import Event, EventPriority

from sim.adapters import AdapterEvent, AdapterTiers
from sim.config import EngineConfig
from sim.costs import CostModel, StepCost, StepShape
from sim.cudagraph import CudaGraphs
from sim.request import Request
from sim.scheduler import Scheduler, StepPlan


class Wakeup(Event):
    """A time-out that comes after everything else of its instant, arrivals in particular."""

    def __init__(self, env: Environment, delay_ns: int) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(self, EventPriority(2), delay_ns)


class GpuIdle(NamedTuple):
    """Why the GPU did nothing between the step before and this one, in ns."""

    loading_ns: int
    """The host thread loaded adapters from disk."""
    activation_ns: int
    """The host thread copied adapters to GPU slots."""
    host_ns: int
    """The host thread scheduled, prepared inputs or took over results."""
    no_work_ns: int
    """There was nothing to schedule."""


@dataclass(slots=True)
class StepRecord:
    """One step; all of it is known when it is scheduled. Times are ns of simulated time."""

    step: int
    """Counts the engine's steps from 0."""
    plan: StepPlan
    shape: StepShape
    cost: StepCost
    events: list[AdapterEvent]
    schedule_ns: int
    """When it is scheduled."""
    load_ns: int
    activate_ns: int
    launch_end_ns: int
    """When the host thread is free again."""
    gpu_start_ns: int
    gpu_end_ns: int
    gpu_idle: GpuIdle


class Observer(Protocol):
    """What is told of an engine's doings, at the instant when the engine itself knows."""

    def on_step(self, record: StepRecord) -> None:
        """A step is scheduled."""
        ...

    def on_preempt(self, request: Request, now_ns: int) -> None:
        """`request` lost its KV blocks and waits again."""
        ...

    def on_tokens(self, plan: StepPlan, now_ns: int) -> None:
        """Each request in `plan.sampled` has one more token; its `last_token_ns` is still the one before."""
        ...

    def on_finish(self, request: Request, now_ns: int) -> None:
        """`request` is complete. What is submitted here is seen by a schedule at the same instant."""
        ...


@dataclass(eq=False)
class Engine:
    """Schedules, prepares and runs steps as vllm/v1/engine/core.py does (`step`, `step_with_batch_queue`).

    With asynchronous scheduling the host thread goes on to the next step as soon as it has launched one, and
    takes over results when two are under way; without, it waits for each step's results.
    """

    env: Environment
    config: EngineConfig
    scheduler: Scheduler
    tiers: AdapterTiers
    graphs: CudaGraphs
    costs: CostModel
    observer: Observer
    num_steps: int = field(default=0, init=False)
    _gpu_free_ns: int = field(default=0, init=False)
    _no_work_ns: int = field(default=0, init=False)
    _most_host_entries: int = field(default=0, init=False)
    _lora_mapping: list[tuple[str | None, int]] = field(default_factory=list, init=False)
    _work: Event | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.env.process(self._run())

    def submit(self, request: Request) -> None:
        """Take in a request that arrives now."""
        self.scheduler.add_request(request)
        if self._work is not None:
            self._work.succeed()
            self._work = None

    def _run(self) -> Generator[Event, None, None]:
        batch_queue_size = 2 if self.config.async_scheduling else 1
        batch_queue: deque[StepRecord] = deque()
        yield Wakeup(self.env, 0)
        while True:
            plan = self._schedule()
            if plan.num_scheduled_tokens:
                batch_queue.append(self._launch(plan))
                yield from self._wait_until(batch_queue[-1].launch_end_ns)
                if len(batch_queue) < batch_queue_size:
                    continue
            if batch_queue:
                record = batch_queue.popleft()
                yield from self._wait_until(max(self._now_ns, record.gpu_end_ns) + record.cost.update_ns)
                self._update(record.plan)
            elif not plan.preempted:
                yield from self._wait_for_work()

    @property
    def _now_ns(self) -> int:
        return int(self.env.now)

    def _wait_until(self, time_ns: int) -> Generator[Event, None, None]:
        if time_ns > self._now_ns:
            yield Wakeup(self.env, time_ns - self._now_ns)

    def _wait_for_work(self) -> Generator[Event, None, None]:
        """Wait for an arrival, and then for whatever else arrives at that instant."""
        since_ns = self._now_ns
        self._work = self.env.event()
        yield self._work
        yield Wakeup(self.env, 0)
        self._no_work_ns += self._now_ns - since_ns

    def _schedule(self) -> StepPlan:
        plan = self.scheduler.schedule()
        for request in plan.preempted:
            self.observer.on_preempt(request, self._now_ns)
        for request in plan.admitted:
            if request.scheduled_ns is None:
                request.scheduled_ns = self._now_ns
        return plan

    def _launch(self, plan: StepPlan) -> StepRecord:
        """Lay a scheduled step on the two timelines."""
        shape = self._shape(plan)
        cost = self.costs.step(shape)
        adapters = self._prepare_adapters(plan, self._now_ns + cost.schedule_ns)
        launch_ns = self._inputs_ready_ns(plan, adapters.end_ns, cost)
        launch_end_ns = launch_ns + cost.launch_ns
        gpu_start_ns = max(self._gpu_free_ns, launch_ns)
        idle = GpuIdle(adapters.idle_load_ns, adapters.idle_activate_ns, 0, self._no_work_ns)
        record = StepRecord(
            step=self.num_steps,
            plan=plan,
            shape=shape,
            cost=cost,
            events=adapters.events,
            schedule_ns=self._now_ns,
            load_ns=adapters.load_ns,
            activate_ns=adapters.activate_ns,
            launch_end_ns=launch_end_ns,
            gpu_start_ns=gpu_start_ns,
            gpu_end_ns=max(gpu_start_ns + cost.gpu_ns, launch_end_ns),
            gpu_idle=idle._replace(host_ns=gpu_start_ns - self._gpu_free_ns - sum(idle)),
        )
        self.num_steps += 1
        self._gpu_free_ns, self._no_work_ns = record.gpu_end_ns, 0
        self.observer.on_step(record)
        return record

    def _prepare_adapters(self, plan: StepPlan, start_ns: int) -> "_AdapterPhase":
        """Load and activate what the step lacks, one after another on the host thread, from `start_ns` on."""
        host_entries = len(self.tiers.host_cache)
        phase = _AdapterPhase(self.tiers.apply(plan.adapters), end_ns=start_ns)
        for kind, _, _ in phase.events:
            begin_ns = phase.end_ns
            if kind == "load":
                host_entries += 1
                phase.end_ns += self.costs.load_ns(grows=host_entries > self._most_host_entries)
                self._most_host_entries = max(self._most_host_entries, host_entries)
                phase.load_ns += phase.end_ns - begin_ns
                phase.idle_load_ns += max(0, phase.end_ns - max(begin_ns, self._gpu_free_ns))
            elif kind == "activate":
                phase.end_ns += self.costs.activate_ns()
                phase.activate_ns += phase.end_ns - begin_ns
                phase.idle_activate_ns += max(0, phase.end_ns - max(begin_ns, self._gpu_free_ns))
            elif kind == "evict_host":
                host_entries -= 1
        return phase

    def _inputs_ready_ns(self, plan: StepPlan, adapters_ready_ns: int, cost: StepCost) -> int:
        """When the first launch begins, which waits for the GPU where the LoRA mapping has changed.

        The mapping has the adapter of every token, in the order of vllm/v1/worker/gpu/model_runner.py:
        requests with fewer tokens first. vllm/lora/model_manager.py writes it only when it differs from the
        last one.
        """
        in_batch_order = sorted(plan.num_scheduled_tokens.items(), key=itemgetter(1))
        mapping = [(request.adapter, num_tokens) for request, num_tokens in in_batch_order]
        if mapping == self._lora_mapping:
            return adapters_ready_ns + cost.prepare_ns
        self._lora_mapping = mapping
        return max(adapters_ready_ns, self._gpu_free_ns) + cost.remap_ns

    def _shape(self, plan: StepPlan) -> StepShape:
        num_reqs, num_adapters = len(plan.num_scheduled_tokens), len(plan.adapters)
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
            num_waiting=len(self.scheduler.admission),
            host_cache_entries=len(self.tiers.host_cache),
            max_loras=self.config.max_loras,
            max_lora_rank=self.config.max_lora_rank,
        )

    def _update(self, plan: StepPlan) -> None:
        """The step's tokens and completions are known now."""
        now_ns = self._now_ns
        finished = self.scheduler.update_from_output(plan)
        self.observer.on_tokens(plan, now_ns)
        for request in plan.sampled:
            if request.first_token_ns is None:
                request.first_token_ns = now_ns
            request.last_token_ns = now_ns
        for request in finished:
            request.finish_ns = now_ns
            self.observer.on_finish(request, now_ns)


@dataclass(slots=True)
class _AdapterPhase:
    """The host thread's work on a step's adapters, in ns; `idle_` is what an idle GPU had to wait for it."""

    events: list[AdapterEvent]
    end_ns: int
    load_ns: int = 0
    activate_ns: int = 0
    idle_load_ns: int = 0
    idle_activate_ns: int = 0
