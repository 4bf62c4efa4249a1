"""vLLM's V1 scheduler: from the state, the next step's plan. It knows nothing of time."""

from dataclasses import dataclass, field

from policies.admission import AdmissionPolicy, AdmissionView
from sim.config import EngineConfig
from sim.kv_blocks import KVBlockPool
from sim.request import Request, RequestStatus


@dataclass(slots=True)
class StepPlan:
    """What one engine step computes (vllm/v1/core/sched/output.py, `SchedulerOutput`)."""

    num_scheduled_tokens: dict[Request, int] = field(default_factory=dict)
    """Tokens per request, running requests first, then those admitted in this step."""
    adapters: dict[str, None] = field(default_factory=dict)
    """The distinct adapters in order of first appearance."""
    admitted: list[Request] = field(default_factory=list)
    """Requests that start or resume in this step."""
    preempted: list[Request] = field(default_factory=list)
    sampled: list[Request] = field(default_factory=list)
    """Requests that get a token from this step: all but unfinished prompts. Those that have finished when the
    results arrive are taken out by `Scheduler.update_from_output`."""
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


class Scheduler:
    """Synchronous, first come first served, without prefix caching (vllm/v1/core/sched/scheduler.py).

    `admission` holds the waiting requests, and `kv` the blocks of the running ones.
    """

    def __init__(self, config: EngineConfig, kv: KVBlockPool, admission: AdmissionPolicy[Request]) -> None:
        self.config = config
        self.kv = kv
        self.admission = admission
        self.running: list[Request] = []

    def add_request(self, request: Request) -> None:
        """Take in a request that has just arrived."""
        self.admission.add(request)

    def has_requests(self) -> bool:
        """Whether any request is running or waiting."""
        return bool(self.running) or len(self.admission) > 0

    def schedule(self) -> StepPlan:
        """Decide the next step. The plan is empty when nothing can be scheduled before results arrive."""
        plan = StepPlan()
        token_budget = self._schedule_running(plan)
        if not plan.preempted and token_budget > 0 and len(self.admission):
            self._schedule_waiting(plan, token_budget)
        self._update_after_schedule(plan)
        return plan

    def _schedule_running(self, plan: StepPlan) -> int:
        """Continue running requests, in order, and return what is left of the token budget."""
        running, allocate_slots = self.running, self.kv.allocate_slots
        threshold = self.config.long_prefill_token_threshold
        last_position = self.config.max_model_len - 1
        token_budget = self.config.max_num_batched_tokens
        index = 0
        # Preemption shortens the list from its end while it is walked.
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
            if not allocate_slots(request, num_new_tokens) and not self._preempt_for(
                request, num_new_tokens, plan
            ):
                break
            plan.num_scheduled_tokens[request] = num_new_tokens
            token_budget -= num_new_tokens
            if request.adapter is not None:
                plan.adapters[request.adapter] = None
        return token_budget

    def _preempt_for(self, request: Request, num_new_tokens: int, plan: StepPlan) -> bool:
        """Preempt from the tail until `request` gets its blocks; False if it had to go itself."""
        while True:
            preempted = self.running.pop()
            self.kv.free(preempted)
            preempted.status = RequestStatus.PREEMPTED
            preempted.num_computed_tokens = 0
            preempted.num_preemptions += 1
            self.admission.requeue(preempted)
            plan.preempted.append(preempted)
            if preempted is request:
                return False
            if self.kv.allocate_slots(request, num_new_tokens):
                return True

    def _schedule_waiting(self, plan: StepPlan, token_budget: int) -> None:
        """Admit waiting requests in the order that the admission policy gives."""
        config, running = self.config, self.running
        threshold = config.long_prefill_token_threshold
        if len(running) >= config.max_num_seqs:
            return
        view = AdmissionView(config.max_loras, plan.adapters)
        for request in self.admission.candidates(view):
            if not view.accepts(request.adapter):
                continue
            num_new_tokens = request.num_tokens - request.num_computed_tokens
            if 0 < threshold < num_new_tokens:
                num_new_tokens = threshold
            num_new_tokens = min(num_new_tokens, token_budget)
            if not self.kv.allocate_slots(request, num_new_tokens, config.scheduler_reserve_full_isl):
                break
            self.admission.admit(request)
            request.status = RequestStatus.RUNNING
            running.append(request)
            plan.admitted.append(request)
            plan.num_scheduled_tokens[request] = num_new_tokens
            token_budget -= num_new_tokens
            if request.adapter is not None:
                plan.adapters[request.adapter] = None
            if token_budget == 0 or len(running) >= config.max_num_seqs:
                break

    def _update_after_schedule(self, plan: StepPlan) -> None:
        """Count the scheduled tokens as computed, so that the next step can be planned; sum up the shape."""
        for request, num_new_tokens in plan.num_scheduled_tokens.items():
            context = request.num_computed_tokens
            request.num_computed_tokens = after = context + num_new_tokens
            if after >= request.num_tokens + request.num_output_placeholders:
                plan.sampled.append(request)
            if num_new_tokens > 1 or context < request.num_prompt_tokens:
                plan.num_prefill_reqs += 1
                plan.num_prefill_tokens += num_new_tokens
                plan.attention_work += num_new_tokens * context + num_new_tokens * num_new_tokens // 2
                plan.max_query_len = max(plan.max_query_len, num_new_tokens)
            else:
                plan.kv_tokens += after
            if request.adapter is not None:
                plan.num_lora_tokens += num_new_tokens
        num_decodes = len(plan.num_scheduled_tokens) - plan.num_prefill_reqs
        plan.num_tokens = plan.num_prefill_tokens + num_decodes
        if num_decodes:
            plan.max_query_len = max(plan.max_query_len, 1)

    def update_from_output(self, plan: StepPlan) -> list[Request]:
        """Take over the results of the oldest step; returns the requests that finish with it.

        As `check_stop` (vllm/v1/core/sched/utils.py), they end by themselves, at the caller's limit, or at
        the model's.
        """
        max_model_len = self.config.max_model_len
        finished, known_before = [], False
        for request in plan.sampled:
            if request.status is not RequestStatus.RUNNING and request.is_finished:
                known_before = True
                continue
            num_tokens = request.num_tokens = request.num_tokens + 1
            if num_tokens >= request.final_num_tokens or num_tokens >= max_model_len:
                finished.append(request)
        if known_before:
            plan.sampled = [request for request in plan.sampled if not request.is_finished]
        for request in finished:
            self._finish(request)
        if finished:
            self.running = [request for request in self.running if not request.is_finished]
        return finished

    def _finish(self, request: Request) -> None:
        if request.status is RequestStatus.PREEMPTED:
            self.admission.remove(request)
        else:
            self.kv.free(request)
        stopped = request.num_output_tokens == request.output_length < request.max_tokens
        request.status = RequestStatus.FINISHED_STOPPED if stopped else RequestStatus.FINISHED_LENGTH_CAPPED


class AsyncScheduler(Scheduler):
    """Plans a step before the results of the one before are known (vllm/v1/core/sched/async_scheduler.py)."""

    def _update_after_schedule(self, plan: StepPlan) -> None:
        super()._update_after_schedule(plan)
        for request in plan.sampled:
            request.num_output_placeholders += 1

    def update_from_output(self, plan: StepPlan) -> list[Request]:
        """As the synchronous scheduler; each token takes the place of a placeholder."""
        finished = super().update_from_output(plan)
        for request in plan.sampled:
            request.num_output_placeholders -= 1
        return finished
