"""FcfsSkip and Priority against vLLM's two queues, written down naively."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from policies.admission import AdmissionPolicy, AdmissionView, FcfsSkip, Priority, vllm_queue
from sim.request import Request

MAX_LORAS = 2


@dataclass
class TwoQueues:
    """`waiting` and `skipped_waiting`, walked request by request (vllm/v1/core/sched/scheduler.py)."""

    waiting: list[Request] = field(default_factory=list)
    skipped: list[Request] = field(default_factory=list)

    def admit(self, scheduled: dict[str, None], most: int) -> list[Request]:
        admitted: list[Request] = []
        step_skipped: list[Request] = []
        while (self.waiting or self.skipped) and len(admitted) < most:
            queue = self.first_queue()
            head = queue[0]
            if head.adapter is not None and head.adapter not in scheduled and len(scheduled) == MAX_LORAS:
                step_skipped.append(queue.pop(0))
                continue
            if head.num_prompt_tokens > 9:  # Stands for a request that does not fit.
                break
            if head.adapter is not None:
                scheduled[head.adapter] = None
            admitted.append(queue.pop(0))
        self.skipped[:0] = step_skipped
        return admitted

    def first_queue(self) -> list[Request]:
        return self.skipped or self.waiting

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def requeue(self, request: Request) -> None:
        self.waiting.insert(0, request)

    def remove(self, request: Request) -> None:
        (self.waiting if request in self.waiting else self.skipped).remove(request)


class TwoHeaps(TwoQueues):
    """The same with `policy=priority`."""

    def first_queue(self) -> list[Request]:
        for queue in (self.waiting, self.skipped):
            queue.sort(key=urgency)
        heads = [queue for queue in (self.waiting, self.skipped) if queue]
        return min(heads, key=lambda queue: urgency(queue[0]))

    def requeue(self, request: Request) -> None:
        self.add(request)


def urgency(request: Request) -> tuple[int, int, str]:
    return request.priority, request.arrival_ns, request.request_id


def admit(policy: AdmissionPolicy[Request], scheduled: dict[str, None], most: int) -> list[Request]:
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
@pytest.mark.parametrize(("policy_class", "queues_class"), [(FcfsSkip, TwoQueues), (Priority, TwoHeaps)])
def test_equals_vllms_two_queues(policy_class: Any, queues_class: Any, seed: int) -> None:
    policy: AdmissionPolicy[Request] = policy_class()
    queues: TwoQueues = queues_class()
    running: list[Request] = []
    rng = random.Random(seed)
    for number, (operation, first, second) in enumerate(draw_operations(random.Random(seed))):
        queued = [*queues.skipped, *queues.waiting]
        if operation == "add":
            request = Request(str(number), number // 9, second, 1, adapter=first, priority=rng.randint(0, 2))
            policy.add(request)
            queues.add(request)
        elif operation == "step":
            admitted = admit(policy, dict.fromkeys(first), second)
            assert admitted == queues.admit(dict.fromkeys(first), second)
            running += admitted
        elif operation == "requeue" and first < len(running):
            request = running.pop(first)
            policy.requeue(request)
            queues.requeue(request)
        elif operation == "remove" and first < len(queued):
            policy.remove(queued[first])
            queues.remove(queued[first])
        elif operation == "shrink" and first < len(queued):
            queued[first].num_prompt_tokens = 1
        assert len(policy) == len(queues.waiting) + len(queues.skipped)
    for request in (*queues.skipped, *queues.waiting):
        request.num_prompt_tokens = 1
    while len(policy):
        expected = queues.first_queue().pop(0)
        assert next(policy.candidates(AdmissionView(10, {}))) is expected
        policy.admit(expected)


def test_vllms_queue_is_that_of_the_scheduling_policy() -> None:
    assert isinstance(vllm_queue("fcfs"), FcfsSkip)
    assert isinstance(vllm_queue("priority"), Priority)


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
