"""Every admission policy under the scheduler itself, with a KV cache so small that requests are preempted."""

import random
from collections import deque
from dataclasses import dataclass

import pytest

from sim.config import EngineConfig
from sim.kv_blocks import KVBlockPool
from sim.request import Request
from sim.scheduler import Scheduler, StepPlan
from tests.policies.admission_conformance import make_policy
from tests.policies.engine_double import MS, EngineDouble
from tests.policies.test_admission_conformance import TESTED

ADAPTERS = (None, *"vvvvwwxyz")
STEP_NS = 10 * MS


@dataclass
class SchedulerView(EngineDouble):
    """Looks at a scheduler."""

    def num_output_tokens(self, request: Request) -> int:  # type: ignore[override]
        return request.num_output_tokens


class Run:
    """Steps of equal length, and requests that arrive in between."""

    def __init__(self, name: str, asynchronous: bool, seed: int) -> None:
        self.rng = random.Random(seed)
        self.view = SchedulerView(max_num_seqs=6, max_num_batched_tokens=24)
        self.policy = make_policy(name)
        self.policy.bind(self.view)
        config = EngineConfig(
            max_loras=2,
            max_num_seqs=6,
            max_num_batched_tokens=24,
            max_model_len=64,
            block_size=4,
            async_scheduling=asynchronous,
        )
        self.scheduler = Scheduler(config, KVBlockPool(18, 4), self.policy)
        self.view.running = self.scheduler.running  # type: ignore[assignment]
        self.under_way: deque[StepPlan] = deque()
        self.num_loras = 0
        self.num_preemptions = 0

    def requests(self, number: int) -> list[Request]:
        rng, time_ns, requests = self.rng, 0, []
        for index in range(number):
            time_ns += rng.choice([0, 0, STEP_NS // 3, 5 * STEP_NS])
            prompt, output, adapter = rng.randint(1, 30), rng.randint(1, 12), rng.choice(ADAPTERS)
            limit = output + rng.choice([0, 5])
            requests.append(Request(f"r{index}", time_ns, prompt, output, limit, adapter, rng.randint(0, 2)))
        return requests

    def play(self, requests: list[Request]) -> None:
        """Until all have finished."""
        arriving, scheduler = deque(requests), self.scheduler
        lag = int(scheduler.config.async_scheduling)
        for _ in range(100 * len(requests)):
            while arriving and arriving[0].arrival_ns <= self.view.now_ns:
                request = arriving.popleft()
                self.view.waiting.append(request)
                scheduler.add_request(request)
            if not arriving and not scheduler.has_requests():
                return
            plan = scheduler.schedule()
            self.num_loras = max(self.num_loras, len(plan.adapters))
            self.num_preemptions += len(plan.preempted)
            idle = not (plan.num_tokens or plan.preempted or self.under_way or arriving)
            if plan.num_tokens:
                self.under_way.append(plan)
            while len(self.under_way) > (lag if plan.num_tokens else 0):
                self.update(self.under_way.popleft())
            change_ns = self.policy.next_change_ns()
            self.view.now_ns += STEP_NS
            if idle:
                assert change_ns is not None, "some wait, nothing runs, and nothing will ever change"
                self.view.now_ns = max(self.view.now_ns, change_ns)
        raise AssertionError(f"still waiting: {len(self.policy)}")

    def update(self, plan: StepPlan) -> None:
        for request in self.scheduler.update_from_output(plan):
            request.finish_ns = self.view.now_ns


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("name", sorted(TESTED))
def test_nothing_is_lost_and_nobody_starves(name: str, asynchronous: bool) -> None:
    num_preemptions = 0
    for seed in range(6):
        run = Run(name, asynchronous, seed)
        requests = run.requests(60)
        run.play(requests)
        assert [request.num_output_tokens for request in requests] == [
            request.output_length for request in requests
        ]
        assert not len(run.policy)
        assert run.scheduler.kv.num_used_blocks == 0
        assert run.num_loras == 2
        num_preemptions += run.num_preemptions
    assert num_preemptions > 0
