"""One vLLM engine (a replica) in SimPy, on two timelines: the engine's host thread and its GPU."""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Protocol

from simpy import Environment
from simpy.events import Event, EventCallbacks, EventPriority

from sim.adapters import AdapterEvent, AdapterTiers
from sim.alarm import Alarm, alarm
from sim.config import EngineConfig
from sim.costs import FS_PER_NS, CostModel, StepCost, StepShape
from sim.cudagraph import CudaGraphs
from sim.errors import UserError
from sim.fast_forward import DecodeRun, plan_run
from sim.fast_scheduler import FastScheduler
from sim.loader import Loader
from sim.lora_grid import LoraGrid, Step, num_lora_programs
from sim.request import Request, RequestStatus
from sim.scheduler import Scheduler, StepPlan
from sim.steps import StepObserver, StepRecord, gpu_idle

SHORTEST_IDLE_NS = 1_000_000
"""A policy that holds back all that waits is asked again after so long at the earliest."""
MOST_PREEMPTED = 10_000
"""So many preemptions without a token of who was preempted are no pressure but a circle."""
NUM_TOKENS = itemgetter(1)
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


class Engine:
    """Schedules, prepares and runs steps as vllm/v1/engine/core.py does (`step`, `step_with_batch_queue`).

    With asynchronous scheduling the host thread goes on to the next step as soon as it has launched one, and
    takes over results when two are under way; without, it waits for each step's results. Where the steps to
    come are all alike the engine sleeps until their end and makes up for them then, or when a request comes
    or goes (`engine.fast_forward`).

    `ranks` has the adapters whose rank is not `max_lora_rank`. `loader` loads adapters beside the engine's
    work; None: the host thread loads what a step lacks. `lora_grid` counts the thread blocks of the LoRA
    kernels; None for profiles that do not know what one costs.
    """

    def __init__(  # noqa: PLR0913, PLR0917, each a piece of the engine
        self,
        env: Environment,
        config: EngineConfig,
        scheduler: Scheduler,
        tiers: AdapterTiers,
        graphs: CudaGraphs,
        costs: CostModel,
        observer: Observer,
        ranks: Mapping[str, int] | None = None,
        place: Place | None = None,
        loader: Loader | None = None,
        lora_grid: LoraGrid | None = None,
    ) -> None:
        self.env = env
        self.config = config
        self.scheduler = scheduler
        self.tiers = tiers
        self.graphs = graphs
        self.costs = costs
        self.observer = observer
        self.ranks = ranks or {}
        self.place = place or Place()
        self.loader = loader
        self.lora_grid = lora_grid
        self.num_steps = 0
        self._num_preempted_in_vain = 0
        self._priority = EventPriority(ENGINES_PRIORITY + self.place.rank)
        self._fast = scheduler if isinstance(scheduler, FastScheduler) else None
        self._max_under_way = 2 if config.async_scheduling else 1
        self._under_way: deque[StepRecord] = deque()
        self._run: DecodeRun | None = None
        self._alarm: Alarm | None = None
        self._on_alarm: EventCallbacks = [self._wake]
        self._idle_since_ns: int | None = None
        self._gpu_free_ns = 0
        self._gpu_carry_fs = 0
        self._no_work_ns = 0
        self._most_host_entries = len(tiers.host_cache)
        self._applied: list[str] = []
        self._lora_mapping: tuple[list[tuple[str | None, int]], list[str | None]] = [], []
        if loader is not None:
            loader.on_ready, loader.on_change = self._take_all, self._interrupt
            loader.on_events = self._on_loader_events
        self._sleep_until(self._now_ns, self._now_ns, self._schedule_and_launch)

    def submit(self, request: Request) -> None:
        """Take in a request that arrives now."""
        if self.loader is None or not self.loader.arrive(request):
            self._take(request)

    def _take_all(self, requests: list[Request]) -> None:
        for request in requests:
            self._take(request)

    def _take(self, request: Request) -> None:
        """Hand a request to the scheduler. A run of steps goes on where it makes no difference to them."""
        if self._run is None:
            if self._idle_since_ns is not None:
                self._interrupt()
        elif self.scheduler.concerns(request):
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
    def num_waiting(self) -> int:
        """Requests that wait for a place in the batch, or for their adapter."""
        return self.scheduler.num_waiting + self._num_held

    @property
    def num_deferred(self) -> int:
        """Of those that wait: for their adapter to come, or for one of those that run to go."""
        return self.scheduler.num_deferred + self._num_held

    @property
    def _num_held(self) -> int:
        return 0 if self.loader is None else self.loader.num_held

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        return len(self.scheduler.running)

    @property
    def num_used_blocks(self) -> int:
        """KV blocks that requests hold."""
        return self.scheduler.kv.num_used_blocks

    @property
    def slots(self) -> Collection[str]:
        """The adapters in GPU slots."""
        return self.tiers.slots.keys()

    @property
    def host_cache(self) -> Collection[str]:
        """The adapters in the host cache."""
        return self.tiers.host_cache

    @property
    def _now_ns(self) -> int:
        return int(self.env.now)

    def _sleep_until(self, time_ns: int, now_ns: int, then: Callable[[int], None]) -> None:
        """Go on with `then` at `time_ns`, after everything else of that instant."""
        self._then = then
        self._alarm = alarm(self.env, time_ns, now_ns, self._on_alarm, self._priority)

    def _wake(self, event: Event) -> None:
        """Go on, unless something else has been decided since."""
        latest = self._alarm
        if event is latest:
            turn = self.place.turn
            turn.rank = self.place.rank
            self._then(latest.time_ns)
            turn.rank = -1

    def _interrupt(self) -> None:
        """Something happens to the engine now: it no longer sleeps through a run, or for want of work."""
        run = self._run
        if run is not None:
            # An engine that comes later in this instant finds this one after its turn.
            inclusive = self.place.turn.rank > self.place.rank
            now_ns = self._now_ns
            num_turns = run.num_turns(now_ns, inclusive)
            next_turn_ns = run.turn_ns(num_turns + 1)
            self._make_up_for(run, num_turns)
            self._sleep_until(next_turn_ns, now_ns, self._take_results)
        elif self._idle_since_ns is not None:
            now_ns = self._now_ns
            self._note_idle_time(now_ns)
            self._sleep_until(now_ns, now_ns, self._schedule_and_launch)

    def _schedule_and_launch(self, now_ns: int) -> None:
        """Do what the host thread does from here on without waiting; it is free at this instant."""
        under_way, schedule, loader = self._under_way, self.scheduler.schedule, self.loader
        while True:
            if loader is not None and loader.is_due:
                loader.give()
            plan = schedule()
            if plan.admitted or plan.preempted:
                self._note_moves(plan, now_ns)
            if plan.num_tokens:
                record = self._launch(plan, now_ns)
                under_way.append(record)
                if len(under_way) < self._max_under_way:
                    if record.launch_end_ns > now_ns:
                        return self._sleep_until(record.launch_end_ns, now_ns, self._schedule_and_launch)
                    continue
            if under_way:
                known_ns = self._results_known_ns(now_ns)
                if known_ns > now_ns:
                    return self._wait_for_results(known_ns, now_ns)
                self._update(under_way.popleft(), now_ns)
            elif not plan.preempted:
                return self._idle(now_ns)

    def _idle(self, now_ns: int) -> None:
        """Wait for a request, or for the policy to let one go that waits."""
        self._idle_since_ns, self._alarm = now_ns, None
        change_ns = self._next_change_ns()
        if change_ns is not None:
            self._sleep_until(max(change_ns, now_ns + SHORTEST_IDLE_NS), now_ns, self._end_idle)

    def _end_idle(self, now_ns: int) -> None:
        self._note_idle_time(now_ns)
        self._schedule_and_launch(now_ns)

    def _note_idle_time(self, now_ns: int) -> None:
        """There is work again."""
        assert self._idle_since_ns is not None
        self._no_work_ns += now_ns - self._idle_since_ns
        self._idle_since_ns = None

    def _next_change_ns(self) -> int | None:
        """When the policy may let others go of those who wait, though nobody comes or goes; None: never."""
        scheduler = self.scheduler
        return scheduler.admission.next_change_ns() if scheduler.num_waiting else None

    def _results_known_ns(self, now_ns: int) -> int:
        """When the host thread has taken over the results of the oldest step under way."""
        oldest, newest = self._under_way[0], self._under_way[-1]
        return max(now_ns, newest.launch_end_ns, oldest.gpu_end_ns) + oldest.cost.update_ns

    def _wait_for_results(self, known_ns: int, now_ns: int) -> None:
        """Sleep until the next results are known, or through the steps that will be alike."""
        self._run = run = self._plan_run(known_ns)
        if run is not None:
            self._sleep_until(run.turn_ns(run.num_steps + 1), now_ns, self._end_run)
        else:
            self._sleep_until(known_ns, now_ns, self._take_results)

    def _take_results(self, now_ns: int) -> None:
        self._update(self._under_way.popleft(), now_ns)
        self._schedule_and_launch(now_ns)

    def _plan_run(self, first_turn_ns: int) -> DecodeRun | None:
        """Return the run that begins now, if any."""
        under_way = self._under_way
        newest = under_way[-1]
        if self._fast is None or newest.plan.chunks or newest.events or len(under_way) < self._max_under_way:
            return None
        num_steps = self._fast.num_same_steps()
        if num_steps < 1:
            return None
        run = plan_run(tuple(under_way), num_steps, first_turn_ns, self._gpu_carry_fs)
        if run is None:
            return None
        change_ns = self._next_change_ns()
        if change_ns is not None:
            run.num_steps = run.num_turns(change_ns, inclusive=False)
        return run if run.num_steps else None

    def _end_run(self, now_ns: int) -> None:
        assert self._run is not None
        self._make_up_for(self._run, self._run.num_steps)
        self._take_results(now_ns)

    def _make_up_for(self, run: DecodeRun, num_steps: int) -> None:
        """Do the first `num_steps` turns of the run, and end it."""
        self._run = None
        if not num_steps:
            return
        assert self._fast is not None
        run.num_steps = num_steps
        self.observer.on_run(run)
        self._note_tokens(run.under_way[0].plan, run.turn_ns(1))
        self._fast.advance(num_steps, run.turn_ns(num_steps))
        plans = enumerate(self._fast.in_flight, num_steps + 1 - len(run.under_way))
        self._under_way = deque([run.record(number, plan) for number, plan in plans])
        newest = self._under_way[-1]
        self.tiers.repeat(newest.plan.adapters, num_steps, newest.schedule_ns)
        self.costs.step(newest.shape)
        self._gpu_free_ns, self._gpu_carry_fs = newest.gpu_end_ns, run.total_fs(num_steps) % FS_PER_NS
        self.num_steps += num_steps

    def _note_moves(self, plan: StepPlan, now_ns: int) -> None:
        """Requests came into the batch, or left it, without being complete."""
        if plan.preempted:
            self._num_preempted_in_vain += len(plan.preempted)
            if self._num_preempted_in_vain > MOST_PREEMPTED:
                raise UserError(
                    f"engine.num_gpu_blocks: {self._num_preempted_in_vain} preemptions, and no prompt was "
                    f"complete between them: {plan.preempted[-1].request_id} and others take each other's KV "
                    "blocks for ever; expected more blocks, or engine.scheduler_reserve_full_isl=true"
                )
        for request in plan.preempted:
            self.observer.on_preempt(request, now_ns)
            if self.loader is not None:
                self.loader.requeue(request)
        for request in plan.admitted:
            if request.scheduled_ns is None:
                request.scheduled_ns = now_ns
            if self.loader is not None:
                self.loader.depart(request)

    def _launch(self, plan: StepPlan, now_ns: int) -> StepRecord:
        """Lay a scheduled step on the two timelines."""
        gpu_free_ns = self._gpu_free_ns
        shape = self._shape(plan)
        cost = self.costs.step(shape)
        if self.loader is not None and self.loader.is_busy:
            cost = cost.slowed(self.loader.config.host_factor)
        swaps = self._prepare_adapters(plan, now_ns, now_ns + cost.schedule_ns)
        self._gpu_free_ns = swaps.copied_ns
        launch_ns = self._inputs_ready_ns(plan, swaps.end_ns, cost)
        launch_end_ns = launch_ns + cost.launch_ns
        gpu_start_ns = max(self._gpu_free_ns, launch_ns)
        gpu_ns, self._gpu_carry_fs = divmod(self._gpu_carry_fs + cost.gpu_fs, FS_PER_NS)
        self._gpu_free_ns = gpu_end_ns = max(gpu_start_ns + gpu_ns, launch_end_ns)
        waited_ns = gpu_start_ns - gpu_free_ns
        idle = gpu_idle(waited_ns, swaps.idle_load_ns, swaps.idle_activate_ns, self._no_work_ns)
        record = StepRecord(
            self.num_steps,
            plan,
            shape,
            cost,
            swaps.events,
            now_ns,
            swaps.load_ns,
            swaps.activate_ns,
            launch_end_ns,
            gpu_start_ns,
            gpu_end_ns,
            idle,
        )
        self.num_steps += 1
        self._no_work_ns = 0
        self.observer.on_step(record)
        return record

    def _prepare_adapters(self, plan: StepPlan, now_ns: int, start_ns: int) -> "_Swaps":
        """Load and activate what the step lacks, one after another on the host thread, from `start_ns` on."""
        # Before they are applied, which a load adds to.
        host_entries = len(self.tiers.host_cache)
        swaps = _Swaps(self._apply(plan.adapters, now_ns), start_ns, self._gpu_free_ns)
        if not swaps.events:
            return swaps
        costs, ranks, default_rank = self.costs, self.ranks, self.config.max_lora_rank
        loader, gpu_free_ns, activate_ns = self.loader, self._gpu_free_ns, 0
        for kind, adapter, _ in swaps.events:
            if kind == "activate":
                rank = ranks.get(adapter, default_rank)
                if copy_ns := costs.copy_ns(rank):
                    swaps.copy(copy_ns, activate_ns)
                duration_ns = costs.activate_ns(rank)
                if loader is not None and loader.is_busy:
                    duration_ns = round(duration_ns * loader.config.host_factor)
                activate_ns += duration_ns
            elif kind == "load":
                swaps.activate(activate_ns, gpu_free_ns)
                host_entries, activate_ns = host_entries + 1, 0
                swaps.load(self._load_ns(adapter, host_entries), gpu_free_ns)
            elif kind == "evict_host":
                host_entries -= 1
        swaps.activate(activate_ns, gpu_free_ns)
        swaps.wait_for_copies(gpu_free_ns)
        return swaps

    def _apply(self, adapters: dict[str, None], now_ns: int) -> list[AdapterEvent]:
        """Bring the adapters into slots; where the step before had the same, they are there."""
        in_order = list(adapters)
        if in_order == self._applied:
            self.tiers.repeat(adapters, 1, now_ns)
            return []
        self._applied = in_order
        return self.tiers.apply(in_order)

    def _on_loader_events(self, events: list[AdapterEvent]) -> None:
        """What the loader evicts may be what the last step had, which is then no longer there."""
        self._applied = []
        self.observer.on_swaps(events, self._now_ns)

    def _load_ns(self, adapter: str, host_entries: int) -> int:
        """Draw the time of a load after which the host cache has so many entries."""
        grows = host_entries > self._most_host_entries
        if grows:
            self._most_host_entries = host_entries
        return self.costs.load_ns(grows, self.ranks.get(adapter, self.config.max_lora_rank))

    def _inputs_ready_ns(self, plan: StepPlan, adapters_ready_ns: int, cost: StepCost) -> int:
        """When the first launch begins, which waits for the GPU where the LoRA mapping has changed.

        The mapping has the adapter of every token, in the order of vllm/v1/worker/gpu/model_runner.py:
        requests with fewer tokens first. vllm/lora/model_manager.py writes it only when it differs from the
        last one.
        """
        of_chunks: list[tuple[str | None, int]] = []
        of_single_tokens = plan.group.token_adapters
        if plan.chunks:
            in_batch_order = sorted(plan.chunks.items(), key=NUM_TOKENS)
            of_chunks = [(request.adapter, num_tokens) for request, num_tokens in in_batch_order]
            num_single = 0
            while num_single < len(of_chunks) and of_chunks[num_single][1] == 1:
                num_single += 1
            if num_single:
                of_single_tokens = of_single_tokens + [adapter for adapter, _ in of_chunks[:num_single]]
                del of_chunks[:num_single]
        # Chunks first: they are few, and most often tell two mappings apart.
        mapping = of_chunks, of_single_tokens
        if mapping == self._lora_mapping:
            return adapters_ready_ns + cost.prepare_ns
        self._lora_mapping = mapping
        return max(adapters_ready_ns, self._gpu_free_ns) + cost.remap_ns

    def _shape(self, plan: StepPlan) -> StepShape:
        num_reqs, num_adapters, config = plan.num_reqs, len(plan.adapters), self.config
        graph = self.graphs.choose(num_reqs, plan.num_tokens, plan.max_query_len, num_adapters)
        padded, num_programs = graph.num_padded_tokens, 0
        if self.lora_grid is not None:
            num_decodes = num_reqs - plan.num_prefill_reqs
            step = Step(padded, num_adapters, num_decodes, plan.num_prefill_tokens)
            num_programs = num_lora_programs(self.lora_grid, step)
        return StepShape(
            graph.mode,
            padded,
            num_reqs,
            plan.num_tokens,
            plan.num_prefill_tokens,
            plan.num_prefill_reqs,
            plan.attention_work,
            plan.kv_tokens,
            num_adapters,
            plan.num_lora_tokens,
            plan.num_waiting,
            len(self.tiers.host_cache),
            config.max_loras,
            config.max_lora_rank,
            num_programs,
            plan.num_passed_over,
        )

    def _update(self, record: StepRecord, now_ns: int) -> None:
        """The step's tokens and completions are known now."""
        plan = record.plan
        finished = self.scheduler.update_from_output(plan, now_ns)
        self.observer.on_tokens(plan, now_ns)
        if plan.sampled_chunks:
            self._note_tokens(plan, now_ns)
        if finished:
            for request in finished:
                request.finish_ns = request.last_token_ns = now_ns
                self.observer.on_finish(request, now_ns)
            if self.loader is not None and self.loader.num_held:
                self.loader.look()

    def _note_tokens(self, plan: StepPlan, now_ns: int) -> None:
        """Write down when requests got their tokens, of those that are not in the group of the plan."""
        if plan.sampled_chunks:
            self._num_preempted_in_vain = 0
        for request in plan.sampled_chunks:
            if request.first_token_ns is None:
                request.first_token_ns = now_ns
            request.last_token_ns = now_ns


class _Swaps:
    """The host thread's work on a step's adapters, in ns; `idle_` is what an idle GPU had to wait for it.

    The GPU copies an adapter to its slot when it has finished the steps before, and not before the host
    begins with it; `copied_ns` is when it is done with the last one.
    """

    __slots__ = (
        *("activate_ns", "copied_ns", "end_ns", "events", "idle_activate_ns", "idle_load_ns", "load_ns"),
    )

    def __init__(self, events: list[AdapterEvent], end_ns: int, gpu_free_ns: int) -> None:
        self.events = events
        self.end_ns = end_ns
        self.copied_ns = gpu_free_ns
        self.load_ns = self.activate_ns = self.idle_load_ns = self.idle_activate_ns = 0

    def load(self, duration_ns: int, gpu_free_ns: int) -> None:
        """Work on for so long, while the GPU is free from `gpu_free_ns` on."""
        self.load_ns += duration_ns
        self.idle_load_ns += self._go_on(duration_ns, gpu_free_ns)

    def activate(self, duration_ns: int, gpu_free_ns: int) -> None:
        """Work on for so long, while the GPU is free from `gpu_free_ns` on."""
        self.activate_ns += duration_ns
        self.idle_activate_ns += self._go_on(duration_ns, gpu_free_ns)

    def copy(self, duration_ns: int, after_ns: int) -> None:
        """Copy one more adapter, with which the host begins `after_ns` from now."""
        self.copied_ns = max(self.copied_ns, self.end_ns + after_ns) + duration_ns

    def wait_for_copies(self, gpu_free_ns: int) -> None:
        """Count what the step has to wait for copies when the host is done."""
        self.idle_activate_ns += max(0, self.copied_ns - max(self.end_ns, gpu_free_ns))

    def _go_on(self, duration_ns: int, gpu_free_ns: int) -> int:
        """Return how much of it the GPU waits for."""
        begin_ns = self.end_ns
        self.end_ns = end_ns = begin_ns + duration_ns
        if begin_ns >= gpu_free_ns:
            return duration_ns
        return end_ns - gpu_free_ns if end_ns > gpu_free_ns else 0
