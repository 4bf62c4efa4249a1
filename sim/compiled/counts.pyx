# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
# distutils: language = c++
"""What `sim.recorder.Recorder` counts of steps, to be added to one in the end."""

from cpython cimport array

from libcpp.vector cimport vector

from sim.compiled.scheduler cimport Plan, Scheduler
from sim.compiled.state cimport NOTHING, Request, i64
from sim.compiled.tiers cimport ACTIVATE, Event

from sim.adapters import EVENT_KINDS

if EVENT_KINDS != ("load", "activate", "evict_host", "evict_slot"):  # As `Kind`.
    raise ImportError("sim.compiled was built for other sources; build it anew: pip install -e .")


cdef class Counts:
    """Counts over the window [`start_ns`, `end_ns`)."""

    def __init__(self, recorder):
        self.start_ns = recorder.start_ns
        self.has_end = recorder.end_ns is not None
        self.end_ns = recorder.end_ns or 0
        self.keeps_steps = recorder.step_log is not None

    cdef void on_step(
        self, i64 number, Plan plan, vector[Event]& events, i64 schedule_ns, i64 start_ns, i64 end_ns, Idle idle
    ) except *:
        """Count a step that has just been scheduled."""
        cdef bint activates = False
        cdef Event event
        cdef i64 num_tokens
        cdef int index
        if self.keeps_steps:
            for index in plan.requests:
                self.step_requests.push_back(index)
            for num_tokens in plan.tokens:
                self.step.push_back(number)
                self.step_start_ns.push_back(start_ns)
                self.step_end_ns.push_back(end_ns)
                self.step_tokens.push_back(num_tokens)
        self.add_gpu_time(start_ns, end_ns, idle)
        if schedule_ns < self.start_ns:
            return
        self.num_steps += 1
        self.num_adapter_uses += plan.adapters.size()
        for event in events:
            self.events[<int>event.kind] += 1
            activates = activates or event.kind == ACTIVATE
        self.num_swap_steps += activates

    cdef void add_gpu_time(self, i64 start_ns, i64 end_ns, Idle idle) except *:
        """Add what of the GPU's waiting before the step, and of the step itself, lies in the window."""
        cdef i64 free_ns = self.gpu_free_ns, waited_ns = start_ns - self.gpu_free_ns, part_ns
        self.gpu_free_ns = end_ns
        if free_ns < self.start_ns or (self.has_end and end_ns > self.end_ns):
            part_ns = self.in_window_ns(free_ns, start_ns)
            self.compute_ns += self.in_window_ns(start_ns, end_ns)
        else:
            part_ns = waited_ns
            self.compute_ns += end_ns - start_ns
        if part_ns and part_ns != waited_ns:
            # Python's integers: the products may take more than 64 bits.
            of_waited, waited = int(part_ns), int(waited_ns)
            self.loading_ns += int(idle.loading_ns) * of_waited // waited
            self.activation_ns += int(idle.activation_ns) * of_waited // waited
            self.host_ns += int(idle.host_ns) * of_waited // waited
        elif part_ns:
            self.loading_ns += idle.loading_ns
            self.activation_ns += idle.activation_ns
            self.host_ns += idle.host_ns

    cdef i64 in_window_ns(self, i64 begin_ns, i64 end_ns) noexcept:
        """How much of [begin_ns, end_ns) lies in the window."""
        begin_ns = max(begin_ns, self.start_ns)
        if self.has_end:
            end_ns = min(end_ns, self.end_ns)
        return max(end_ns - begin_ns, 0)

    cdef void on_tokens(self, Plan plan, Scheduler scheduler, i64 now_ns) noexcept:
        """Count a step's tokens and the gaps since each request's token before."""
        cdef i64 before_ns = self.tokens_ns, num_together = 0
        cdef Request* request
        cdef int index
        self.tokens_ns = now_ns
        if now_ns < self.start_ns:
            return
        self.num_output_tokens += plan.sampled.size()
        for index in plan.sampled:
            request = &scheduler.requests[index]
            if request.last_token_ns == NOTHING or request.arrival_ns < self.start_ns:
                continue
            if request.last_token_ns == before_ns:
                num_together += 1
            else:
                self.gaps_ns.push_back(now_ns - request.last_token_ns)
                self.gap_counts.push_back(1)
        if num_together and self.gaps_ns.size() and self.gaps_ns.back() == now_ns - before_ns:
            self.gap_counts[self.gap_counts.size() - 1] += num_together
        elif num_together:
            self.gaps_ns.push_back(now_ns - before_ns)
            self.gap_counts.push_back(num_together)

    def add_to(self, recorder, requests):
        """Add everything to a recorder; `requests` are those of the engine."""
        recorder.num_output_tokens += self.num_output_tokens
        recorder.num_steps += self.num_steps
        recorder.num_adapter_uses += self.num_adapter_uses
        recorder.num_swap_steps += self.num_swap_steps
        for place, kind in enumerate(EVENT_KINDS):
            if self.events[place]:
                recorder.adapter_events[kind] += self.events[place]
        gpu_time = recorder.gpu_time
        gpu_time.compute += self.compute_ns
        gpu_time.loading += self.loading_ns
        gpu_time.activation += self.activation_ns
        gpu_time.host += self.host_ns
        recorder.gaps.extend(numbers(self.gaps_ns), numbers(self.gap_counts))
        if self.keeps_steps:
            ids = [requests[index].request_id for index in self.step_requests]
            columns = self.step, self.step_start_ns, self.step_end_ns, self.step_tokens
            recorder.step_log.extend(ids, *[numbers(column) for column in columns])


cdef array.array numbers(vector[i64]& values):
    """Return the values as a Python array."""
    cdef array.array found = array.clone(array.array("q"), values.size(), zero=False)
    cdef size_t place
    for place in range(values.size()):
        found.data.as_longlongs[place] = values[place]
    return found
