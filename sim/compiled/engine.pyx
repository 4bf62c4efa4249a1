# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
# distutils: language = c++
"""`sim.engine.Engine` for vLLM's own policies: the same steps on the same two timelines."""

cimport cython
from libcpp.algorithm cimport lower_bound, stable_sort
from libcpp.pair cimport pair
from libcpp.vector cimport vector

from sim.compiled.costs cimport FULL, NO_GRAPH, NUM_COUNTS, PIECEWISE, Cost, Shape, StepCosts
from sim.compiled.counts cimport Counts, Idle
from sim.compiled.scheduler cimport Plan, Scheduler
from sim.compiled.state cimport NOTHING, RUNNING, Request, i64
from sim.compiled.tiers cimport ACTIVATE, EVICT_HOST, LOAD, Event, Tiers

from simpy.core import Infinity
from simpy.events import EventPriority

from sim.alarm import alarm
from sim.compiled.limits import LeavesCompiledError
from sim.costs import FS_PER_NS
from sim.engine import ENGINES_PRIORITY
from sim.request import RequestStatus

ctypedef pair[i64, int] Tokens
"""How many a request has in a step, and its adapter."""

cdef i64 FS = FS_PER_NS
cdef i64 NEVER_NS = 2**63 - 1
cdef i64 LATEST_NS = 2**62, LONGEST_SWAP_NS = 2**50
"""146 years, and 13 days: so that times stay within 64 bits."""
cdef dict STATUSES = {int(status): status for status in RequestStatus}

cdef enum Then:
    SCHEDULE
    TAKE_RESULTS


cdef bint has_fewer(const Tokens& one, const Tokens& other) noexcept:
    return one.first < other.first


cdef i64 within_reason(i64 swap_ns) except -1:
    """Return the duration of a swap. Raises LeavesCompiledError for one of weeks."""
    if swap_ns > LONGEST_SWAP_NS:
        raise LeavesCompiledError("a swap takes weeks")
    return swap_ns


@cython.final
cdef class Step:
    """`sim.steps.StepRecord`, as far as it is needed while the step is under way."""

    cdef Plan plan
    cdef i64 update_ns, launch_end_ns, gpu_end_ns


@cython.final
cdef class Swaps:
    """The host thread's work on a step's adapters, as `sim.engine._Swaps` has it."""

    cdef i64 end_ns, copied_ns, activate_ns, idle_load_ns, idle_activate_ns, gpu_free_ns

    cdef i64 go_on(self, i64 duration_ns):
        """Work on for so long; returns how much of it the GPU waits for."""
        cdef i64 begin_ns = self.end_ns
        self.end_ns += duration_ns
        return max(self.end_ns - max(begin_ns, self.gpu_free_ns), 0)

    cdef void activate(self):
        """Do the activations that have come up."""
        self.idle_activate_ns += self.go_on(self.activate_ns)
        self.activate_ns = 0


@cython.final
cdef class CompiledEngine:
    """One engine in SimPy, which need not have an event for each step.

    Nobody else acts before the next event of the environment, so that steps up to it (and not at it: at one
    instant engines come last) may be made ahead of time: `wake` does. Where a request finishes others may act,
    for a closed loop sends its successor: a step that finishes any has its results taken at an event of its
    own. `then` and `next_ns` are what `sim.engine.Engine` has in its `_then` and its alarm.

    `observer` is a `sim.recorder.Recorder`, to which all is added in the end (`settle`).
    """

    cdef readonly object env, loader
    cdef readonly i64 num_steps
    cdef object config, costs, observer, ranks, priority, on_alarm, name_numbers, alarm
    cdef list requests, names
    cdef dict places, numbers
    cdef Scheduler scheduler
    cdef Tiers tiers
    cdef StepCosts step_costs
    cdef Counts counts
    cdef vector[i64] graph_sizes, rank_of, copy_ns_of
    cdef i64 num_blocks, largest_full, max_loras, max_lora_rank, max_model_len
    cdef bint caches_prefixes
    cdef Step oldest, newest
    cdef int max_under_way
    cdef Then then
    cdef i64 next_ns, idle_since_ns, no_work_ns, gpu_free_ns, gpu_carry_fs, most_host_entries
    cdef vector[Tokens] mapping

    def __init__(self, env, config, scheduler, tiers, graphs, costs, observer, ranks, place):
        self.env, self.config, self.costs, self.observer, self.ranks = env, config, costs, observer, ranks
        self.loader, self.priority = None, EventPriority(ENGINES_PRIORITY + place.rank)
        self.on_alarm, self.name_numbers = [self.wake], tiers.number
        self.requests, self.names, self.places, self.numbers = [], [], {}, {}
        self.num_blocks = scheduler.kv.num_free_blocks
        self.scheduler = Scheduler(scheduler.config, self.num_blocks)
        self.tiers = Tiers(config.max_loras, config.host_cache_entries)
        self.step_costs, self.counts = StepCosts(costs.coefficients), Counts(observer)
        self.graph_sizes, self.largest_full = graphs.sizes, graphs.largest_full
        self.max_loras, self.max_lora_rank = config.max_loras, config.max_lora_rank
        self.max_model_len = config.max_model_len
        self.caches_prefixes = config.enable_prefix_caching
        self.max_under_way = 2 if config.async_scheduling else 1
        self.idle_since_ns = NOTHING
        self.fill(config.warm_host_cache, config.warm_slots)
        self.then, self.next_ns = SCHEDULE, self.now_ns()
        self.sleep()

    cdef fill(self, host_cache, slots):
        """Start warm, with these adapters, the oldest first."""
        for adapter in host_cache:
            self.tiers.host_cache.put(self.number(adapter))
        for adapter in slots:
            self.tiers.take_slot(self.number(adapter))
        self.most_host_entries = self.tiers.host_cache.size

    cdef i64 now_ns(self):
        return self.env.now

    cdef int number(self, adapter) except -2:
        """Return the number of an adapter's name, which may be new."""
        if adapter is None:
            return NOTHING
        found = self.numbers.get(adapter)
        if found is None:
            found = self.numbers[adapter] = len(self.names)
            self.names.append(adapter)
            self.scheduler.know_adapter()
            self.tiers.know_adapter(found, self.name_numbers(adapter))
            rank = self.ranks.get(adapter, self.max_lora_rank)
            self.rank_of.push_back(rank)
            self.copy_ns_of.push_back(self.costs.copy_ns(rank))
        return found

    def submit(self, request):
        """Take in a request that arrives now. Raises LeavesCompiledError for what it does not know."""
        cdef Request state
        cdef int index = len(self.requests)
        if request.prefix_hashes and self.caches_prefixes:
            raise LeavesCompiledError("requests share prefixes")
        if not request.final_num_tokens == request.num_prompt_tokens + request.max_tokens <= self.max_model_len:
            raise LeavesCompiledError("a request ends otherwise than at its max_tokens")
        state.arrival_ns = request.arrival_ns
        state.scheduled_ns = state.first_token_ns = state.last_token_ns = state.finish_ns = NOTHING
        state.num_prompt_tokens = state.num_tokens = request.num_prompt_tokens
        state.final_num_tokens = request.final_num_tokens
        state.num_computed_tokens = state.num_kv_blocks = state.num_output_placeholders = 0
        state.adapter = self.number(request.adapter)
        self.scheduler.requests.push_back(state)
        self.requests.append(request)
        self.places[request] = index
        self.scheduler.add(index)
        self.interrupt()

    def abort(self, request):
        """Take out a request whose client has gone, unless it has finished."""
        if not request.is_finished:
            request.abort_ns = self.env.now
            self.interrupt()
            index = self.places.pop(request)
            self.scheduler.abort(index)
            self.write_back(index)

    def stop(self):
        """The replica is lost, and has nothing in flight any more."""

    def settle(self):
        """Bring everything up to date when the simulation has stopped."""
        for index in self.places.values():
            self.write_back(index)
        self.counts.add_to(self.observer, self.requests)
        if self.num_steps:
            self.costs.note_seen(self.step_costs.seen())

    @property
    def num_waiting(self):
        """Requests that wait."""
        return self.scheduler.num_waiting

    @property
    def num_deferred(self):
        """Waiting requests that `max_loras` keeps from joining those that run now."""
        cdef Scheduler scheduler = self.scheduler
        running = {scheduler.requests[index].adapter for index in scheduler.running} - {NOTHING}
        if len(running) < self.max_loras:
            return 0
        return sum(request.adapter is not None and self.numbers[request.adapter] not in running
                   for request, index in self.places.items() if scheduler.requests[index].status != RUNNING)

    @property
    def num_running(self):
        """Requests in the batch."""
        return self.scheduler.running.size()

    @property
    def num_used_blocks(self):
        """KV blocks that requests hold."""
        return self.num_blocks - self.scheduler.num_free_blocks

    @property
    def slots(self):
        """The adapters in GPU slots, in order of activation."""
        return [self.names[number] for number in self.tiers.in_slots()]

    @property
    def host_cache(self):
        """The adapters in the host cache."""
        return {name for number, name in enumerate(self.names) if self.tiers.host_cache.has(number)}

    cdef write_back(self, int index):
        """Bring the fields of a request up to date."""
        cdef Request* state = &self.scheduler.requests[index]
        request = self.requests[index]
        request.status = STATUSES[state.status]
        request.num_tokens, request.num_computed_tokens = state.num_tokens, state.num_computed_tokens
        if state.scheduled_ns != NOTHING:
            request.scheduled_ns = state.scheduled_ns
        if state.first_token_ns != NOTHING:
            request.first_token_ns, request.last_token_ns = state.first_token_ns, state.last_token_ns
        if state.finish_ns != NOTHING:
            request.finish_ns = state.finish_ns

    cdef interrupt(self):
        """Something happens to the engine now: it no longer sleeps for want of work."""
        if self.idle_since_ns != NOTHING:
            self.then, self.next_ns = SCHEDULE, self.now_ns()
            self.note_idle_time(self.next_ns)
            self.sleep()

    cdef void note_idle_time(self, i64 now_ns):
        """There is work again."""
        self.no_work_ns += now_ns - self.idle_since_ns
        self.idle_since_ns = NOTHING

    cdef sleep(self):
        """Go on at `next_ns`, after everything else of that instant."""
        self.alarm = alarm(self.env, self.next_ns, self.env.now, self.on_alarm, self.priority)

    def wake(self, event):
        """Go on, and on as long as nobody else does anything and nobody is to be told."""
        cdef i64 next_event_ns = 0
        if event is not self.alarm:
            return
        self.go_on(True)
        if self.idle_since_ns == NOTHING:
            peeked = self.env.peek()
            next_event_ns = NEVER_NS if peeked == Infinity else peeked
        while self.idle_since_ns == NOTHING:
            if self.next_ns >= next_event_ns or (self.then == TAKE_RESULTS and self.oldest.plan.finishes):
                return self.sleep()
            self.go_on(False)

    cdef go_on(self, bint may_finish):
        """Do what is to be done at `next_ns`."""
        if self.then == TAKE_RESULTS:
            self.update(self.next_ns)
        self.schedule_and_launch(self.next_ns, may_finish)

    cdef schedule_and_launch(self, i64 now_ns, bint may_finish):
        """Do what the host thread does from here on without waiting; it is free at this instant.

        Unless requests may finish, it ends before that, to go on at the same instant.
        """
        cdef Plan plan
        cdef i64 known_ns
        while True:
            plan = self.scheduler.schedule(now_ns)
            if plan.num_tokens:
                self.launch(plan, now_ns)
                if self.max_under_way == 2 and self.oldest is self.newest:
                    if self.newest.launch_end_ns > now_ns:
                        self.then, self.next_ns = SCHEDULE, self.newest.launch_end_ns
                        return
                    continue
            else:
                self.scheduler.take_back(plan)
            if self.oldest is None:
                self.idle_since_ns = now_ns
                return
            known_ns = max(now_ns, self.newest.launch_end_ns, self.oldest.gpu_end_ns) + self.oldest.update_ns
            if known_ns > now_ns or (self.oldest.plan.finishes and not may_finish):
                self.then, self.next_ns = TAKE_RESULTS, known_ns
                return
            self.update(now_ns)

    cdef update(self, i64 now_ns):
        """The tokens and completions of the oldest step are known now."""
        cdef Plan plan = self.oldest.plan
        cdef vector[int] finished
        cdef Request* request
        cdef int index
        self.oldest = None if self.oldest is self.newest else self.newest
        if self.oldest is None:
            self.newest = None
        self.scheduler.take_tokens(plan, finished)
        for index in finished:
            self.scheduler.finish(index)
        self.counts.on_tokens(plan, self.scheduler, now_ns)
        for index in plan.sampled:
            request = &self.scheduler.requests[index]
            request.last_token_ns = now_ns
            if request.first_token_ns == NOTHING:
                request.first_token_ns = now_ns
        self.scheduler.take_back(plan)
        for index in finished:
            self.scheduler.requests[index].finish_ns = now_ns
            self.write_back(index)
            del self.places[self.requests[index]]
            self.observer.on_finish(self.requests[index], now_ns)

    cdef launch(self, Plan plan, i64 now_ns):
        """Lay a scheduled step on the two timelines."""
        cdef Step step = Step()
        cdef vector[Event] events
        cdef Shape shape = self.shape(plan)
        cdef Cost cost = self.step_costs.cost(&shape)
        cdef i64 gpu_free_ns = self.gpu_free_ns, launch_ns, gpu_start_ns, waited_ns
        cdef Swaps swaps = self.prepare_adapters(plan, events, now_ns + cost.schedule_ns)
        cdef Idle idle
        self.gpu_free_ns = swaps.copied_ns
        launch_ns = self.inputs_ready_ns(plan, swaps.end_ns, &cost)
        step.plan, step.update_ns, step.launch_end_ns = plan, cost.update_ns, launch_ns + cost.launch_ns
        gpu_start_ns = max(self.gpu_free_ns, launch_ns)
        step.gpu_end_ns = max(gpu_start_ns + (self.gpu_carry_fs + cost.gpu_fs) // FS, step.launch_end_ns)
        self.gpu_carry_fs = (self.gpu_carry_fs + cost.gpu_fs) % FS
        self.gpu_free_ns = step.gpu_end_ns
        if step.gpu_end_ns > LATEST_NS:
            raise LeavesCompiledError("a run takes more than a century")
        waited_ns = gpu_start_ns - gpu_free_ns
        idle.loading_ns, idle.activation_ns = swaps.idle_load_ns, swaps.idle_activate_ns
        idle.host_ns = waited_ns - idle.loading_ns - idle.activation_ns - self.no_work_ns
        self.counts.on_step(self.num_steps, plan, events, now_ns, gpu_start_ns, step.gpu_end_ns, idle)
        self.num_steps += 1
        self.no_work_ns = 0
        self.newest = step
        if self.oldest is None:
            self.oldest = step

    cdef Shape shape(self, Plan plan) except *:
        """Return the shape of a step, which begins with the choice of its graph (`sim.cudagraph`)."""
        cdef Shape shape
        cdef bint uniform = plan.max_query_len == 1 and plan.num_tokens == plan.num_reqs
        cdef i64 padded = plan.num_tokens
        found = lower_bound(self.graph_sizes.begin(), self.graph_sizes.end(), plan.num_tokens)
        if found == self.graph_sizes.end():
            shape.graph = NO_GRAPH
        else:
            padded = self.graph_sizes[found - self.graph_sizes.begin()]
            shape.graph = FULL if uniform and padded <= self.largest_full else PIECEWISE
        shape.counts = [
            padded,
            plan.num_reqs,
            plan.num_tokens,
            plan.num_prefill_tokens,
            plan.num_prefill_reqs,
            plan.attention_work,
            plan.kv_tokens,
            <i64>plan.adapters.size(),
            plan.num_lora_tokens,
            plan.num_waiting,
            self.tiers.host_cache.size,
            self.max_loras,
            self.max_lora_rank,
            0,
            0,
        ]
        return shape

    cdef Swaps prepare_adapters(self, Plan plan, vector[Event]& events, i64 start_ns):
        """Load and activate what the step lacks, one after another on the host thread, from `start_ns` on."""
        cdef Swaps swaps = Swaps()
        cdef i64 host_entries = self.tiers.host_cache.size, copy_ns, duration_ns
        cdef Event event
        swaps.gpu_free_ns = swaps.copied_ns = self.gpu_free_ns
        swaps.end_ns = start_ns
        self.tiers.apply(plan.adapters, events)
        for event in events:
            if event.kind == ACTIVATE:
                copy_ns = self.copy_ns_of[event.adapter]
                if copy_ns:
                    swaps.copied_ns = max(swaps.copied_ns, swaps.end_ns + swaps.activate_ns) + copy_ns
                duration_ns = self.costs.activate_ns(self.rank_of[event.adapter])
                swaps.activate_ns += within_reason(duration_ns)
            elif event.kind == LOAD:
                swaps.activate()
                host_entries += 1
                swaps.idle_load_ns += swaps.go_on(self.load_ns(event.adapter, host_entries))
            elif event.kind == EVICT_HOST:
                host_entries -= 1
        swaps.activate()
        swaps.idle_activate_ns += max(0, swaps.copied_ns - max(swaps.end_ns, self.gpu_free_ns))
        return swaps

    cdef i64 load_ns(self, int adapter, i64 host_entries) except -1:
        """Draw the time of a load after which the host cache has so many entries."""
        cdef bint grows = host_entries > self.most_host_entries
        self.most_host_entries = max(self.most_host_entries, host_entries)
        return within_reason(self.costs.load_ns(grows, self.rank_of[adapter]))

    cdef i64 inputs_ready_ns(self, Plan plan, i64 adapters_ready_ns, Cost* cost):
        """When the first launch begins, which waits for the GPU where the LoRA mapping has changed."""
        cdef vector[Tokens] mapping
        cdef size_t place
        mapping.reserve(plan.requests.size())
        for place in range(plan.requests.size()):
            mapping.push_back(Tokens(plan.tokens[place], self.scheduler.requests[plan.requests[place]].adapter))
        if plan.max_query_len > 1:
            stable_sort(mapping.begin(), mapping.end(), &has_fewer)
        if mapping == self.mapping:
            return adapters_ready_ns + cost.prepare_ns
        self.mapping.swap(mapping)
        return max(adapters_ready_ns, self.gpu_free_ns) + cost.remap_ns
