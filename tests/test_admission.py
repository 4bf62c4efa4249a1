"""FcfsSkip against vLLM's two queues, written down naively."""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from policies.admission import AdmissionView, FcfsSkip
from sim.request import Request

MAX_LORAS = 2


@dataclass
class TwoQueues:
    """`waiting` and `skipped_waiting`, walked request by request (vllm/v1/core/sched/scheduler.py)."""

    waiting: deque[Request] = field(default_factory=deque)
    skipped: deque[Request] = field(default_factory=deque)

    def admit(self, scheduled: dict[str, None], most: int) -> list[Request]:
        admitted: list[Request] = []
        step_skipped: list[Request] = []
        while (self.waiting or self.skipped) and len(admitted) < most:
            queue = self.skipped or self.waiting
            head = queue.popleft()
            if head.adapter is not None and head.adapter not in scheduled and len(scheduled) == MAX_LORAS:
                step_skipped.append(head)
                continue
            if head.num_prompt_tokens > 9:  # Stands for a request that does not fit.
                queue.appendleft(head)
                break
            if head.adapter is not None:
                scheduled[head.adapter] = None
            admitted.append(head)
        self.skipped.extendleft(reversed(step_skipped))
        return admitted

    def remove(self, request: Request) -> None:
        (self.waiting if request in self.waiting else self.skipped).remove(request)


def admit(policy: FcfsSkip[Request], scheduled: dict[str, None], most: int) -> list[Request]:
    admitted: list[Request] = []
    view = AdmissionView(MAX_LORAS, scheduled)
    for candidate in policy.candidates(view) if most else ():
        assert view.accepts(candidate.adapter)
        if candidate.num_prompt_tokens > 9:
            break
        policy.admit(candidate)
        admitted.append(candidate)
        if candidate.adapter is not None:
            scheduled[candidate.adapter] = None
        if len(admitted) == most:
            break
    return admitted


def draw_operations(rng: random.Random) -> Iterator[tuple[str, Any, int]]:
    """Mostly steps that have `max_loras` adapters already, so that much is passed over."""
    kinds = ["add", "add", "step", "step", "requeue", "remove", "shrink"]
    for _ in range(150):
        kind = rng.choice(kinds)
        if kind == "add":
            yield kind, rng.choice([None, *"vwxyz"]), rng.choice([1, 1, 1, 10])
        elif kind == "step":
            yield kind, rng.sample("vwxyz", rng.choice([0, 1, 2, 2])), rng.randint(0, 4)
        else:
            yield kind, rng.randint(0, 9), 0


@pytest.mark.parametrize("seed", range(300))
def test_equals_vllms_two_queues(seed: int) -> None:
    policy: FcfsSkip[Request] = FcfsSkip()
    queues = TwoQueues()
    running: list[Request] = []
    for number, (operation, first, second) in enumerate(draw_operations(random.Random(seed))):
        queued = [*queues.skipped, *queues.waiting]
        if operation == "add":
            request = Request(str(number), 0, second, 1, adapter=first)
            policy.add(request)
            queues.waiting.append(request)
        elif operation == "step":
            admitted = admit(policy, dict.fromkeys(first), second)
            assert admitted == queues.admit(dict.fromkeys(first), second)
            running += admitted
        elif operation == "requeue" and first < len(running):
            request = running.pop(first)
            policy.requeue(request)
            queues.waiting.appendleft(request)
        elif operation == "remove" and first < len(queued):
            policy.remove(queued[first])
            queues.remove(queued[first])
        elif operation == "shrink" and first < len(queued):
            queued[first].num_prompt_tokens = 1
        assert len(policy) == len(queues.waiting) + len(queues.skipped)
    for request in (*queues.skipped, *queues.waiting):
        request.num_prompt_tokens = 1
        assert next(policy.candidates(AdmissionView(10, {}))) is request
        policy.admit(request)


def test_a_preempted_request_goes_behind_those_that_were_passed_over_and_before_all_others() -> None:
    policy: FcfsSkip[Request] = FcfsSkip()
    skipped, blocked, preempted = (
        Request(name, 0, size, 1, adapter=name) for name, size in (("s", 1), ("v", 10), ("p", 1))
    )
    policy.add(skipped)
    policy.add(blocked)
    assert admit(policy, {"v": None, "w": None}, 4) == []
    policy.requeue(preempted)
    blocked.num_prompt_tokens = 1
    assert admit(policy, {"s": None, "p": None}, 4) == [skipped, preempted]


def test_memory_does_not_grow_with_requests_that_came_and_went() -> None:
    policy: FcfsSkip[Request] = FcfsSkip()
    policy.add(Request("stuck", 0, 10, 1, adapter="z"))
    for number in range(1000):
        policy.add(Request(str(number), 0, 1, 1, adapter="vw"[number % 2]))
        assert len(admit(policy, {"v": None, "w": None}, 1)) == 1
    assert len(policy._heads) + sum(map(len, policy._lines.values())) <= 6
