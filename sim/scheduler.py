"""vLLM's V1 scheduler: from the state, the next step's plan. It knows nothing of time."""

from collections import Counter
from collections.abc import Callable, Mapping

from policies.admission import AdmissionPolicy, AdmissionView
from sim.config import EngineConfig
from sim.kv_blocks import KVBlockPool
from sim.lockstep import NO_GROUP, Group
from sim.request import Request, RequestStatus


class StepPlan:
    """What one engine step computes (vllm/v1/core/sched/output.py, `SchedulerOutput`)."""

    num_reqs: int = 0
    num_tokens: int = 0
    max_query_len: int = 0
    """Most tokens of one request."""
    num_prefill_reqs: int = 0
    num_prefill_tokens: int = 0
    attention_work: int = 0
    """Sum of n * (context + n / 2) over prefill chunks of n tokens, each term rounded down."""
    kv_tokens: int = 0
    """Sum over decoding requests of their context after the step."""
    num_lora_tokens: int = 0
    num_waiting: int = 0
    """All that were left waiting by a search that went to the end of the queue. 0 where it ended early: the
    batch was full, or a request did not fit in the KV cache, and those behind it were not looked at."""
    num_passed_over: int = 0
    """`AdmissionView.num_passed_over` at the end of the search. Unlike `num_waiting` it has those in front of
    the request at which a search ended early."""

    def __init__(self, group: Group = NO_GROUP, tick: int = 0) -> None:
        self.group = group
        """Requests that are counted together (sim.fast_scheduler), one token each."""
        self.tick = tick
        """Number of the step (sim.fast_scheduler)."""
        self.joined: list[Request] = []
        """Of `group`, those that were not in it before."""
        self.chunks: dict[Request, int] = {}
        """Tokens of the other requests, which come after the group: running ones first, then those admitted
        in this step."""
        self.adapters: dict[str, None] = group.adapters.copy()
        """The distinct adapters in order of first appearance."""
        self.admitted: list[Request] = []
        """Requests that start or resume in this step."""
        self.preempted: list[Request] = []
        self.sampled_chunks: list[Request] = []
        """Of `chunks`, the requests that get a token from this step: all but unfinished prompts. Those that
        have finished when the results arrive are taken out by `Scheduler.update_from_output`."""

    @property
    def num_scheduled_tokens(self) -> dict[Request, int]:
        """Tokens of every request of the step, in order."""
        return dict.fromkeys(self.group.requests, 1) | self.chunks

    @property
    def sampled(self) -> list[Request]:
        """Every request that gets a token from this step, in order."""
        return self.group.requests + self.sampled_chunks

    def repeated(self, tick: int) -> "StepPlan":
        """Return the plan of a later step of the same group alone."""
        plan = StepPlan(self.group, tick)
        plan.num_reqs, plan.num_tokens, plan.max_query_len = self.num_reqs, self.num_tokens, 1
        plan.kv_tokens = self.kv_tokens + (tick - self.tick) * self.num_reqs
        plan.num_lora_tokens = self.num_lora_tokens
        plan.num_waiting, plan.num_passed_over = self.num_waiting, self.num_passed_over
        return plan

    def settle(self) -> None:
        """Hold every request on its own."""
        self.chunks, self.sampled_chunks = self.num_scheduled_tokens, self.sampled
        self.group, self.joined = NO_GROUP, []


def _last(running: list[Request]) -> Request:
    return running[-1]


def _least_urgent(running: list[Request]) -> Request:
    return max(running, key=lambda request: (request.priority, request.arrival_ns))


VICTIMS: Mapping[str, Callable[[list[Request]], Request]] = {"fcfs": _last, "priority": _least_urgent}
"""Which running request is preempted, for each `scheduling_policy`."""


class Scheduler:
    """vllm/v1/core/sched/scheduler.py, and with `async_scheduling` async_scheduler.py: that one plans a step
    before the results of the one before are known.

    `admission` holds the waiting requests, and `kv` the blocks of the running ones. `scheduling_policy` says
    which running request is preempted.
    """

    def __init__(self, config: EngineConfig, kv: KVBlockPool, admission: AdmissionPolicy[Request]) -> None:
        self.config = config
        self.kv = kv
        self.admission = admission
        self.running: list[Request] = []
        self.waiting_loras: Counter[str | None] = Counter()
        self.running_loras: Counter[str | None] = Counter()
        """How many requests of each adapter wait and run."""
        self.num_waiting = 0
        """All that `admission` holds."""
        self._blocked: Request | None = None
        """The waiting request at which the last search ended, because it did not fit in the KV cache."""
        self._asynchronous = config.async_scheduling
        self._victim = VICTIMS[config.scheduling_policy]

    def add_request(self, request: Request) -> None:
        """Take in a request that has just arrived."""
        self.waiting_loras[request.adapter] += 1
        self.num_waiting += 1
        self.admission.add(request)

    def in_use(self) -> set[str]:
        """The adapters of all requests that run or wait."""
        used = {*(+self.running_loras), *(+self.waiting_loras)}
        return {adapter for adapter in used if adapter is not None}

    @property
    def num_deferred(self) -> int:
        """Waiting requests that `max_loras` keeps from joining those that run now (vLLM's
        `skipped_waiting`).
        """
        running = +self.running_loras
        if len(running.keys() - {None}) < self.config.max_loras:
            return 0
        waiting = self.waiting_loras.items()
        return sum(count for adapter, count in waiting if adapter is not None and adapter not in running)

    def num_output_tokens(self, request: Request) -> int:
        """Tokens of `request` that are known."""
        return request.num_output_tokens

    def concerns(self, request: Request) -> bool:
        """Whether the arrival of `request` might make a step unlike the last one."""
        if len(self.running) >= self.config.max_num_seqs:
            return False
        return self._blocked is None or not self.num_waiting or self.admission.overtakes(request)

    def has_requests(self) -> bool:
        """Whether any request is running or waiting."""
        return bool(self.running) or self.num_waiting > 0

    def settle(self) -> None:
        """Bring the fields of all requests up to date, which they always are here."""

    def schedule(self) -> StepPlan:
        """Decide the next step. The plan is empty when nothing can be scheduled before results arrive."""
        plan = StepPlan()
        token_budget = self._schedule_running(plan, self.running, self.config.max_num_batched_tokens)
        if self.num_waiting and token_budget > 0 and not plan.preempted:
            self._schedule_waiting(plan, token_budget)
        self._update_after_schedule(plan)
        return plan

    def _schedule_running(self, plan: StepPlan, running: list[Request], token_budget: int) -> int:
        """Continue running requests, in order, and return what is left of the token budget."""
        allocate_slots = self.kv.allocate_slots
        threshold = self.config.long_prefill_token_threshold
        last_position = self.config.max_model_len - 1
        index = 0
        # Preemption shortens the list while it is walked: at its end, or anywhere with priorities.
        while index < len(running) and token_budget > 0:
            request = running[index]
            index += 1
            num_computed_tokens = request.num_computed_tokens
            placeholders = request.num_output_placeholders
            if placeholders and (
                num_computed_tokens + 2 - placeholders >= request.num_prompt_tokens + request.max_tokens
            ):
                continue  # Asynchronous: the step before yields its last token.
            num_new_tokens = request.num_tokens + placeholders - num_computed_tokens
            if 0 < threshold < num_new_tokens:
                num_new_tokens = threshold
            num_new_tokens = min(num_new_tokens, token_budget, last_position - num_computed_tokens)
            if num_new_tokens == 0:
                continue
            while not allocate_slots(request, num_new_tokens):
                victim = self._preempt(plan)
                if victim is request:
                    return token_budget
                if victim in plan.chunks:
                    token_budget += self._take_back(victim, plan)
                    index -= 1
            plan.chunks[request] = num_new_tokens
            token_budget -= num_new_tokens
            if request.adapter is not None:
                plan.adapters[request.adapter] = None
        return token_budget

    def _preempt(self, plan: StepPlan) -> Request:
        """Send a running request back to wait and forget what is computed of it (`_preempt_request`)."""
        victim = self._victim(self.running)
        self.running.remove(victim)
        victim.status = RequestStatus.PREEMPTED
        self.kv.free(victim)
        victim.num_computed_tokens = 0
        victim.num_preemptions += 1
        self.running_loras[victim.adapter] -= 1
        self.waiting_loras[victim.adapter] += 1
        self.num_waiting += 1
        self.admission.requeue(victim)
        plan.preempted.append(victim)
        return victim

    def _take_back(self, victim: Request, plan: StepPlan) -> int:
        """Remove a preempted request from the step, which priorities may need; returns its tokens."""
        num_tokens = plan.chunks.pop(victim)
        adapters = (request.adapter for request in plan.chunks)
        plan.adapters = {adapter: None for adapter in adapters if adapter is not None}
        return num_tokens

    def _schedule_waiting(self, plan: StepPlan, token_budget: int) -> None:
        """Search the waiting requests, unless there is no place for one."""
        self._blocked = None
        if len(self.running) < self.config.max_num_seqs:
            view = AdmissionView(self.config.max_loras, plan.adapters)
            self._admit(plan, view, token_budget)
            plan.num_passed_over = view.num_passed_over

    def _admit(self, plan: StepPlan, view: AdmissionView, token_budget: int) -> None:
        """Admit waiting requests in the order that the admission policy gives."""
        config, kv, running, adapters = self.config, self.kv, self.running, plan.adapters
        threshold = config.long_prefill_token_threshold
        for request in self.admission.candidates(view):
            adapter = request.adapter
            if not view.accepts(adapter):
                continue
            computed_blocks = kv.computed_blocks(request)
            num_computed_tokens = len(computed_blocks) * kv.block_size if computed_blocks else 0
            num_new_tokens = request.num_tokens - num_computed_tokens
            if 0 < threshold < num_new_tokens:
                num_new_tokens = threshold
            num_new_tokens = min(num_new_tokens, token_budget)
            if not kv.allocate_slots(
                request, num_new_tokens, computed_blocks, config.scheduler_reserve_full_isl
            ):
                self._blocked = request
                return
            self.admission.admit(request)
            self.num_waiting -= 1
            self.waiting_loras[adapter] -= 1
            self.running_loras[adapter] += 1
            request.status = RequestStatus.RUNNING
            request.num_computed_tokens = num_computed_tokens
            running.append(request)
            plan.admitted.append(request)
            plan.chunks[request] = num_new_tokens
            token_budget -= num_new_tokens
            if adapter is not None:
                adapters[adapter] = None
            if token_budget == 0 or len(running) >= config.max_num_seqs:
                return
        plan.num_waiting = self.num_waiting

    def _update_after_schedule(self, plan: StepPlan) -> None:
        """Count the scheduled tokens as computed, so that the next step can be planned; sum up the shape."""
        plan.num_reqs = plan.num_tokens = num_together = len(plan.group.requests)
        plan.max_query_len = 1 if num_together else 0
        plan.num_lora_tokens = plan.group.num_lora_tokens
        if plan.chunks:
            self._count_chunks(plan)
            if self._asynchronous:
                for request in plan.sampled_chunks:
                    request.num_output_placeholders += 1

    def _count_chunks(self, plan: StepPlan) -> None:
        """Count the tokens of `chunks` as computed, and add them to the shape."""
        num_prefill_reqs = num_prefill_tokens = num_lora_tokens = longest = 0
        for request, num_new_tokens in plan.chunks.items():
            context = request.num_computed_tokens
            request.num_computed_tokens = after = context + num_new_tokens
            if after >= request.num_tokens + request.num_output_placeholders:
                plan.sampled_chunks.append(request)
            if num_new_tokens > 1 or context < request.num_prompt_tokens:
                num_prefill_reqs += 1
                num_prefill_tokens += num_new_tokens
                plan.attention_work += num_new_tokens * context + num_new_tokens * num_new_tokens // 2
                longest = max(longest, num_new_tokens)
            else:
                plan.kv_tokens += after
            if request.adapter is not None:
                num_lora_tokens += num_new_tokens
        num_decodes = plan.num_reqs + len(plan.chunks) - num_prefill_reqs
        plan.num_reqs = num_decodes + num_prefill_reqs
        plan.num_tokens = num_decodes + num_prefill_tokens
        plan.num_prefill_reqs, plan.num_prefill_tokens = num_prefill_reqs, num_prefill_tokens
        plan.max_query_len = max(longest, min(num_decodes, 1))
        plan.num_lora_tokens += num_lora_tokens

    def update_from_output(self, plan: StepPlan, now_ns: int = 0) -> list[Request]:
        """Take over the results of the oldest step, known at `now_ns`; returns the requests that finish."""
        finished = self._take_tokens(plan)
        for request in finished:
            num_output_tokens = request.num_tokens - request.num_prompt_tokens
            stopped = num_output_tokens == request.output_length < request.max_tokens
            if request.status is RequestStatus.RUNNING:
                self.running.remove(request)
            self._leave(
                request, RequestStatus.FINISHED_STOPPED if stopped else RequestStatus.FINISHED_LENGTH_CAPPED
            )
        return finished

    def _take_tokens(self, plan: StepPlan) -> list[Request]:
        """Add a token to each request that has not finished before; returns those that end with it.

        As `check_stop` (vllm/v1/core/sched/utils.py), they end by themselves, at the caller's limit, or at
        the model's.
        """
        max_model_len = self.config.max_model_len
        finished, known_before = [], False
        for request in plan.sampled_chunks:
            if request.status is not RequestStatus.RUNNING and request.is_finished:
                known_before = True
                continue
            num_tokens = request.num_tokens = request.num_tokens + 1
            if num_tokens >= request.final_num_tokens or num_tokens >= max_model_len:
                finished.append(request)
        if known_before:
            plan.sampled_chunks = [request for request in plan.sampled_chunks if not request.is_finished]
        if self._asynchronous:
            self._fill_placeholders(plan.sampled_chunks)
        return finished

    def _fill_placeholders(self, sampled: list[Request]) -> None:
        """Let each token that is known now take the place of one (`_update_request_with_output`)."""
        cached = self.config.enable_prefix_caching
        for request in sampled:
            request.num_output_placeholders -= 1
            if cached and request.status is RequestStatus.RUNNING:
                self.kv.cache_blocks(request, request.num_computed_tokens - request.num_output_placeholders)

    def abort(self, request: Request) -> None:
        """Take `request` out at once (`finish_requests`), unless it has finished.

        Its blocks are free, also where a step that is under way still computes it; what that step yields for
        it is dropped.
        """
        if request.is_finished:
            return
        if request.status is RequestStatus.RUNNING:
            self.running.remove(request)
        self._leave(request, RequestStatus.FINISHED_ABORTED)

    def _leave(self, request: Request, status: RequestStatus) -> None:
        running = request.status is RequestStatus.RUNNING
        request.status = status
        if running:
            self.running_loras[request.adapter] -= 1
            self.kv.free(request)
            self.admission.on_finish(request)
        else:
            self.waiting_loras[request.adapter] -= 1
            self.num_waiting -= 1
            self.admission.remove(request)
