# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
# distutils: language = c++
"""`sim.scheduler.Scheduler` with the queue `policies.admission.FcfsSkip`, as long as nothing is preempted."""

from libcpp.algorithm cimport find
from libcpp.vector cimport vector

from sim.compiled.state cimport FINISHED_ABORTED, FINISHED_LENGTH_CAPPED, NOTHING, RUNNING, WAITING, Request, i64

from sim.compiled.limits import LeavesCompiledError


cdef class Plan:
    """`sim.scheduler.StepPlan`: `tokens` belong to `requests`, in order."""

    cdef void clear(self) noexcept:
        """Begin anew."""
        self.requests.clear()
        self.tokens.clear()
        self.sampled.clear()
        self.adapters.clear()
        self.num_prefill_reqs = self.num_prefill_tokens = self.attention_work = self.kv_tokens = 0
        self.num_lora_tokens = self.num_waiting = 0
        self.finishes = False


cdef class Scheduler:
    """Decides the steps of one engine; requests are known by their place in `requests`.

    Those that wait form one line in order of arrival, and each adapter's form one of their own, so that a
    step whose adapters are complete looks at the lines of these alone. The line of an adapter is at its
    number plus one, that of requests without any at 0. Nobody ever comes back to a line, for nothing is
    preempted: so the place of a request in `requests` is that in the order of arrival, too.
    """

    def __init__(self, config, i64 num_free_blocks):
        self.num_free_blocks = num_free_blocks
        self.block_size = config.block_size
        self.max_num_seqs = config.max_num_seqs
        self.max_num_batched_tokens = config.max_num_batched_tokens
        self.max_model_len = config.max_model_len
        self.threshold = config.long_prefill_token_threshold
        self.max_loras = config.max_loras
        self.asynchronous = config.async_scheduling
        self.full_isl = config.scheduler_reserve_full_isl
        self.first_waiting = self.last_waiting = NOTHING
        self.first_of_adapter.push_back(NOTHING)
        self.last_of_adapter.push_back(NOTHING)

    cdef void know_adapter(self) noexcept:
        """There is one more adapter, whose number is the next."""
        self.first_of_adapter.push_back(NOTHING)
        self.last_of_adapter.push_back(NOTHING)
        self.in_step.push_back(NOTHING)

    cdef void add(self, int index) noexcept:
        """Put a request that has just arrived at the end of its lines."""
        cdef Request* request = &self.requests[index]
        cdef int line = request.adapter + 1
        request.status = WAITING
        request.behind = request.behind_of_adapter = NOTHING
        request.before, request.before_of_adapter = self.last_waiting, self.last_of_adapter[line]
        if self.last_waiting == NOTHING:
            self.first_waiting = index
        else:
            self.requests[self.last_waiting].behind = index
        if self.last_of_adapter[line] == NOTHING:
            self.first_of_adapter[line] = index
        else:
            self.requests[self.last_of_adapter[line]].behind_of_adapter = index
        self.last_waiting = self.last_of_adapter[line] = index
        self.num_waiting += 1

    cdef void leave_line(self, int index) noexcept:
        """Take a request out of its lines."""
        cdef Request* request = &self.requests[index]
        cdef int line = request.adapter + 1
        if request.before == NOTHING:
            self.first_waiting = request.behind
        else:
            self.requests[request.before].behind = request.behind
        if request.behind == NOTHING:
            self.last_waiting = request.before
        else:
            self.requests[request.behind].before = request.before
        if request.before_of_adapter == NOTHING:
            self.first_of_adapter[line] = request.behind_of_adapter
        else:
            self.requests[request.before_of_adapter].behind_of_adapter = request.behind_of_adapter
        if request.behind_of_adapter == NOTHING:
            self.last_of_adapter[line] = request.before_of_adapter
        else:
            self.requests[request.behind_of_adapter].before_of_adapter = request.before_of_adapter
        self.num_waiting -= 1

    cdef Plan schedule(self, i64 now_ns):
        """Decide the next step. Raises LeavesCompiledError where it would preempt."""
        cdef Plan plan = Plan() if self.spare is None else self.spare
        cdef i64 token_budget = self.max_num_batched_tokens
        self.step += 1
        self.spare = None
        self.schedule_running(plan, &token_budget)
        if self.num_waiting and token_budget > 0 and <i64>self.running.size() < self.max_num_seqs:
            self.admit(plan, token_budget, now_ns)
        self.sum_up(plan)
        return plan

    cdef void take_back(self, Plan plan) noexcept:
        """Nobody needs the plan any more: the next one has its place in memory."""
        plan.clear()
        self.spare = plan

    cdef bint schedule_running(self, Plan plan, i64* token_budget) except -1:
        cdef Request* request
        cdef i64 computed, placeholders, num_new_tokens
        cdef int index
        for index in self.running:
            if token_budget[0] <= 0:
                break
            request = &self.requests[index]
            computed, placeholders = request.num_computed_tokens, request.num_output_placeholders
            if placeholders and computed + 2 - placeholders >= request.final_num_tokens:
                continue
            num_new_tokens = request.num_tokens + placeholders - computed
            if 0 < self.threshold < num_new_tokens:
                num_new_tokens = self.threshold
            num_new_tokens = min(num_new_tokens, token_budget[0], self.max_model_len - 1 - computed)
            if num_new_tokens == 0:
                continue
            if not self.allocate(request, num_new_tokens, False):
                raise LeavesCompiledError("a request would be preempted")
            plan.requests.push_back(index)
            plan.tokens.push_back(num_new_tokens)
            token_budget[0] -= num_new_tokens
            self.use(plan, request.adapter)
        return True

    cdef bint allocate(self, Request* request, i64 num_new_tokens, bint whole) noexcept:
        """`sim.kv_blocks.KVBlockPool.allocate_slots`."""
        cdef i64 needed = request.num_computed_tokens + num_new_tokens
        cdef i64 required = max(needed, request.num_tokens) if whole else needed
        cdef i64 size = self.block_size, held = request.num_kv_blocks
        if (required + size - 1) // size - held > self.num_free_blocks:
            return False
        request.num_kv_blocks = (needed + size - 1) // size
        self.num_free_blocks -= request.num_kv_blocks - held
        return True

    cdef void use(self, Plan plan, int adapter) noexcept:
        """The step has a request for this adapter."""
        if adapter != NOTHING and self.in_step[adapter] != self.step:
            self.in_step[adapter] = self.step
            plan.adapters.push_back(adapter)

    cdef void admit(self, Plan plan, i64 token_budget, i64 now_ns) noexcept:
        """Admit waiting requests, first come, first served, of adapters that the step has or has room for."""
        cdef Request* request
        cdef i64 num_new_tokens
        cdef int index
        while True:
            index = self.candidate(plan)
            if index == NOTHING:
                plan.num_waiting = self.num_waiting
                return
            request = &self.requests[index]
            num_new_tokens = request.num_tokens
            if 0 < self.threshold < num_new_tokens:
                num_new_tokens = self.threshold
            num_new_tokens = min(num_new_tokens, token_budget)
            if not self.allocate(request, num_new_tokens, self.full_isl):
                return
            self.leave_line(index)
            request.status = RUNNING
            if request.scheduled_ns == NOTHING:
                request.scheduled_ns = now_ns
            self.running.push_back(index)
            plan.requests.push_back(index)
            plan.tokens.push_back(num_new_tokens)
            token_budget -= num_new_tokens
            self.use(plan, request.adapter)
            if token_budget == 0 or <i64>self.running.size() >= self.max_num_seqs:
                return

    cdef int candidate(self, Plan plan) noexcept:
        """Return who is tried next: who came first, of those whose adapter the step may have."""
        cdef int adapter, first, found
        if <i64>plan.adapters.size() < self.max_loras:
            return self.first_waiting
        found = self.first_of_adapter[0]
        for adapter in plan.adapters:
            first = self.first_of_adapter[adapter + 1]
            if first != NOTHING and (found == NOTHING or first < found):
                found = first
        return found

    cdef void sum_up(self, Plan plan) noexcept:
        """Count the scheduled tokens as computed, and the step's shape."""
        cdef Request* request
        cdef i64 context, after, num_tokens, longest = 0, num_decodes
        cdef size_t place
        for place in range(plan.requests.size()):
            request, num_tokens = &self.requests[plan.requests[place]], plan.tokens[place]
            context = request.num_computed_tokens
            request.num_computed_tokens = after = context + num_tokens
            if after >= request.num_tokens + request.num_output_placeholders:
                plan.sampled.push_back(plan.requests[place])
                if self.asynchronous:
                    request.num_output_placeholders += 1
                    if request.num_tokens + request.num_output_placeholders >= request.final_num_tokens:
                        plan.finishes = True
                elif request.num_tokens + 1 >= request.final_num_tokens:
                    plan.finishes = True
            if num_tokens > 1 or context < request.num_prompt_tokens:
                plan.num_prefill_reqs += 1
                plan.num_prefill_tokens += num_tokens
                plan.attention_work += num_tokens * context + num_tokens * num_tokens // 2
                longest = max(longest, num_tokens)
            else:
                plan.kv_tokens += after
            if request.adapter != NOTHING:
                plan.num_lora_tokens += num_tokens
        plan.num_reqs = plan.requests.size()
        num_decodes = plan.num_reqs - plan.num_prefill_reqs
        plan.num_tokens = num_decodes + plan.num_prefill_tokens
        plan.max_query_len = max(longest, min(num_decodes, 1))

    cdef void take_tokens(self, Plan plan, vector[int]& finished) noexcept:
        """Each sampled request has one more token; `finished` are those that end with it.

        Of `plan.sampled`, those that are gone are taken out.
        """
        cdef Request* request
        cdef size_t kept = 0
        cdef int index
        for index in plan.sampled:
            request = &self.requests[index]
            if request.status != RUNNING:
                continue
            plan.sampled[kept] = index
            kept += 1
            request.num_tokens += 1
            if self.asynchronous:
                request.num_output_placeholders -= 1
            if request.num_tokens >= request.final_num_tokens:
                finished.push_back(index)
        plan.sampled.resize(kept)

    cdef void finish(self, int index) noexcept:
        """A request is complete."""
        self.release(index)
        self.requests[index].status = FINISHED_LENGTH_CAPPED

    cdef void abort(self, int index) noexcept:
        """Take out a request that has not finished."""
        if self.requests[index].status == RUNNING:
            self.release(index)
        else:
            self.leave_line(index)
        self.requests[index].status = FINISHED_ABORTED

    cdef void release(self, int index) noexcept:
        """A request runs no longer."""
        self.running.erase(find(self.running.begin(), self.running.end(), index))
        self.num_free_blocks += self.requests[index].num_kv_blocks
        self.requests[index].num_kv_blocks = 0
