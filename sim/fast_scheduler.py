"""The same schedulers, with requests that decode in lock-step counted together: for the fast forward."""

from collections import deque

from policies.admission import AdmissionPolicy
from sim.config import EngineConfig
from sim.kv_blocks import KVBlockPool
from sim.lockstep import Lockstep
from sim.request import Request, RequestStatus
from sim.scheduler import Scheduler, StepPlan


class FastScheduler(Scheduler):
    """Decides as `Scheduler` does, at a cost per step that does not grow with the requests that decode.

    `running` is the lock-step group, which comes first, and `_others`: prompts, and whatever comes after one
    that is not computed yet. (Asynchronous: those whose last token is under way are in neither.) Where a
    step might preempt, and at an abort, the group dissolves, and the plain scheduler decides.
    """

    def __init__(self, config: EngineConfig, kv: KVBlockPool, admission: AdmissionPolicy[Request]) -> None:
        super().__init__(config, kv, admission)
        self.lockstep = Lockstep(kv, config.async_scheduling)
        self._others: list[Request] = []
        self.in_flight: deque[StepPlan] = deque()
        """Steps whose results are not known, oldest first."""
        self._num_under_way = int(config.async_scheduling)
        """Steps under way whose tokens are not known when a step is scheduled."""

    def schedule(self) -> StepPlan:
        """Decide the next step."""
        lockstep = self.lockstep
        if self._asynchronous and (ending := lockstep.ends.get(lockstep.ticks - 1)):
            self._retire(ending)
        joined = self._join() if self._others else []
        if self._may_preempt():
            self.settle()
            plan = super().schedule()
            if plan.preempted:
                self._others = self.running.copy()
            plan.tick = lockstep.ticks
            lockstep.tick()
        else:
            plan = self._plan_with_group(joined)
        if plan.admitted:
            self._others += plan.admitted
        if plan.num_tokens:
            self.in_flight.append(plan)
        return plan

    def _plan_with_group(self, joined: list[Request]) -> StepPlan:
        """Decide a step that preempts nobody."""
        lockstep = self.lockstep
        group = lockstep.group
        plan = StepPlan(group, lockstep.ticks)
        plan.joined = joined
        lockstep.tick()
        token_budget = self.config.max_num_batched_tokens - len(group.requests)
        if self._others:
            token_budget = self._schedule_running(plan, self._others, token_budget)
        if self.num_waiting and token_budget > 0:
            self._schedule_waiting(plan, token_budget)
        self._update_after_schedule(plan)
        plan.kv_tokens += lockstep.context
        return plan

    def num_output_tokens(self, request: Request) -> int:
        """Tokens of `request` that are known."""
        return request.num_output_tokens + self.lockstep.num_tokens(request)

    def num_same_steps(self) -> int:
        """Steps that will follow just as the last one, if nothing arrives, is aborted or admitted."""
        *older, newest = self.in_flight
        if newest.chunks or newest.group is not self.lockstep.group:
            return 0
        members = self.lockstep.members
        if any(not members.keys() >= plan.chunks.keys() for plan in older):
            return 0
        return self.lockstep.num_same_ticks()

    def advance(self, num_steps: int, now_ns: int) -> None:
        """Take over as many results and schedule as many steps as `num_same_steps` has promised.

        `now_ns`: when the last of the results became known.
        """
        *older, newest = self.in_flight
        for plan in older:
            super()._take_tokens(plan)
        self.lockstep.tick(num_steps)
        self.lockstep.known = self.lockstep.ticks - len(self.in_flight)
        self.lockstep.tokens_ns = now_ns
        self.in_flight.clear()
        for tick in range(self.lockstep.known, self.lockstep.ticks):
            self.in_flight.append(newest.repeated(tick))

    def update_from_output(self, plan: StepPlan, now_ns: int = 0) -> list[Request]:
        """Take over the results of the oldest step; returns the requests that finish with it."""
        lockstep = self.lockstep
        finished: list[Request] = []
        if plan.sampled_chunks or plan.tick in lockstep.ends:
            finished = super().update_from_output(plan)
            for request in finished:
                if request in self._others:
                    self._others.remove(request)
        lockstep.known = plan.tick + 1
        lockstep.tokens_ns = now_ns
        self.in_flight.popleft()
        return finished

    def abort(self, request: Request) -> None:
        """Take `request` out at once, unless it has finished."""
        if request.status is RequestStatus.RUNNING:
            self.settle()
        super().abort(request)
        self._others = [other for other in self._others if other is not request]

    def settle(self) -> None:
        """Dissolve the group, so that every request's own fields are true."""
        if self.lockstep.members or self.lockstep.ends:
            self.lockstep.clear()
            for plan in self.in_flight:
                plan.settle()
            self._others = self.running.copy()

    def _may_preempt(self) -> bool:
        """Whether the running requests may need more blocks than are free."""
        kv, needed = self.kv, self.lockstep.blocks_needed()
        for request in self._others:
            num_tokens = request.num_tokens + request.num_output_placeholders
            needed += -(-num_tokens // kv.block_size) - request.num_kv_blocks
        return needed > kv.num_free_blocks

    def _retire(self, ending: list[Request]) -> None:
        """Let those go whose last token is known to be under way; they keep their place."""
        for request in ending:
            limit = request.num_prompt_tokens + request.max_tokens
            if request.final_num_tokens == limit or self._final(request) == self.config.max_model_len:
                self.lockstep.leave(request)

    def _join(self) -> list[Request]:
        """Let others into the group that decode, up to the first that does not; returns them."""
        joining: list[Request] = []
        for request in self._others:
            num_tokens = request.num_tokens + request.num_output_placeholders
            computed, final = request.num_computed_tokens, self._final(request)
            if (
                computed < request.num_prompt_tokens
                or num_tokens - computed != 1
                or num_tokens >= final
                or request.num_output_placeholders != self._num_under_way
            ):
                break
            joining.append(request)
            self.lockstep.join(request, final)
        if joining:
            del self._others[: len(joining)]
        return joining

    def _final(self, request: Request) -> int:
        """Tokens with which `request` is complete."""
        return min(request.final_num_tokens, self.config.max_model_len)

    def _take_tokens(self, plan: StepPlan) -> list[Request]:
        """The members whose last token this is come first in the order of `running`."""
        lockstep = self.lockstep
        if self._asynchronous and not lockstep.members.keys().isdisjoint(lockstep.ends.get(plan.tick, ())):
            # A request that stops by itself is still in the step that is under way.
            self.settle()
        ending: list[Request] = lockstep.ends.pop(plan.tick, [])
        for request in ending:
            self._end(request)
        lockstep.known = plan.tick + 1
        return ending + super()._take_tokens(plan) if plan.sampled_chunks else ending

    def _end(self, request: Request) -> None:
        """The last token of a request is known, which `Lockstep.known` does not count yet."""
        if self._asynchronous:
            request.num_output_placeholders -= 1
            self.kv.cache_blocks(request, request.num_computed_tokens)
        else:
            self.lockstep.leave(request)
        request.num_tokens += 1


def make_scheduler(config: EngineConfig, kv: KVBlockPool, admission: AdmissionPolicy[Request]) -> Scheduler:
    """Return the scheduler that `config` asks for."""
    return (FastScheduler if config.fast_forward else Scheduler)(config, kv, admission)
