"""Scripts of requests, and the engine's loop that plays one to any scheduler, ours or vLLM's."""

import random
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from policies.admission import AdmissionPolicy, vllm_queue
from sim.config import EngineConfig
from sim.fast_scheduler import make_scheduler
from sim.kv_blocks import KVBlockPool
from sim.prefix_cache import PrefixCachingBlockPool
from sim.request import Request
from sim.scheduler import StepPlan

NUM_ITERATIONS = 400
RULES = (
    "adapters_above_max_loras",
    "adapters_below",
    "chunked_prompt",
    "few_kv_blocks_preemption",
    "burst",
    "priority",
    "priority_preemption",
    "priority_preemption_gives_tokens_back",
    "prefix_hit",
    "prefix_hit_after_preemption",
    "prefix_hit_other_adapter",
    "abort_running",
    "abort_waiting",
    "abort_in_flight",
    "long_prefill_token_threshold",
    "reserve_full_isl_off",
    "async_finish_one_step_later",
    "stop_before_max_tokens",
)


@dataclass
class Case:
    """What happens when, counted in iterations of the engine's loop."""

    engine: dict[str, Any]
    arrivals: list[tuple[int, dict[str, Any]]]
    """Before which iteration's schedule a request arrives, and its fields."""
    aborts: list[tuple[int, str, str]] = field(default_factory=list)
    """Iteration, the call that it comes before (`schedule` or `update`), request."""

    @property
    def config(self) -> EngineConfig:
        return EngineConfig(**self.engine)


class Subject(Protocol):
    """A scheduler and what stands for its worker."""

    def add(self, arrival: dict[str, Any]) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def schedule(self) -> tuple[Any, dict[str, Any]]:
        """A step for `update`, and the answer: `plan` is [[request, tokens], ...]."""
        ...

    def update(self, step: Any) -> dict[str, Any]: ...


def play(case: Case, subject: Subject) -> list[dict[str, Any]]:
    """Run vLLM's engine loop (`step`, or `step_with_batch_queue`); return the answer to each call.

    It ends when the script is over and nothing runs or waits.
    """
    answers: list[dict[str, Any]] = []
    batch_queue: deque[Any] = deque()
    depth = 2 if case.config.async_scheduling else 1
    last = max((at for at, *_ in [*case.arrivals, *case.aborts]), default=0)
    for iteration in range(NUM_ITERATIONS):
        for at, arrival in case.arrivals:
            if at == iteration:
                subject.add(arrival)
        abort(case, subject, iteration, "schedule")
        step, answer = subject.schedule()
        answers.append(answer)
        if answer["plan"]:
            batch_queue.append(step)
            if len(batch_queue) < depth:
                continue
        if batch_queue:
            abort(case, subject, iteration, "update")
            answers.append(subject.update(batch_queue.popleft()))
        elif iteration > last and not answer["running"] and not answer["waiting"]:
            break
    return answers


def abort(case: Case, subject: Subject, iteration: int, before: str) -> None:
    for at, call, request_id in case.aborts:
        if (at, call) == (iteration, before):
            subject.abort(request_id)


class Ours:
    """Our scheduler; `seen` counts the rules that have shown."""

    def __init__(
        self,
        config: EngineConfig,
        fast_forward: bool = False,
        admission: AdmissionPolicy[Request] | None = None,
    ) -> None:
        assert config.num_gpu_blocks is not None
        config = replace(config, fast_forward=fast_forward)
        pool = PrefixCachingBlockPool if config.enable_prefix_caching else KVBlockPool
        self.config = config
        self.kv = pool(config.num_gpu_blocks, config.block_size)
        if admission is None:
            admission = vllm_queue(config.scheduling_policy)
        self.scheduler = make_scheduler(config, self.kv, admission)
        self.requests: dict[str, Request] = {}
        self.seen: Counter[str] = Counter()
        self.scheduler._take_back = self._see_taken_back  # type: ignore[method-assign]
        self._in_flight: deque[StepPlan] = deque()
        self._prefixes: dict[int, str | None] = {}

    def add(self, arrival: dict[str, Any]) -> None:
        request = Request(**arrival | {"prefix_hashes": tuple(arrival["prefix_hashes"])})
        self.requests[request.request_id] = request
        self.scheduler.add_request(request)

    def abort(self, request_id: str) -> None:
        request = self.requests.get(request_id)
        if request is None:
            return
        self.seen["abort_running"] += request in self.scheduler.running
        self.seen["abort_waiting"] += request not in self.scheduler.running and not request.is_finished
        in_flight = any(request in plan.sampled for plan in self._in_flight)
        self.seen["abort_in_flight"] += in_flight and not request.is_finished
        self.scheduler.abort(request)

    def schedule(self) -> tuple[StepPlan, dict[str, Any]]:
        plan = self.scheduler.schedule()
        if plan.num_scheduled_tokens:
            self._in_flight.append(plan)
        self._see(plan)
        return plan, {
            "plan": [[request.request_id, tokens] for request, tokens in plan.num_scheduled_tokens.items()],
            "preempted": sorted(request.request_id for request in plan.preempted),
            **self._state(),
        }

    def update(self, step: StepPlan) -> dict[str, Any]:
        self._in_flight.popleft()
        finished = self.scheduler.update_from_output(step)
        self.seen["stop_before_max_tokens"] += sum(r.num_output_tokens < r.max_tokens for r in finished)
        self.seen["async_finish_one_step_later"] += len(self._in_flight) * len(finished)
        return {
            "tokens": sorted(request.request_id for request in step.sampled),
            "finished": sorted(request.request_id for request in finished),
            **self._state(),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "running": [request.request_id for request in self.scheduler.running],
            "waiting": len(self.scheduler.admission),
            "free_blocks": self.kv.num_free_blocks,
        }

    def _see(self, plan: StepPlan) -> None:
        config, seen, tokens = self.config, self.seen, plan.num_scheduled_tokens
        priority = config.scheduling_policy == "priority"
        waiting = len(self.scheduler.admission) > 0
        if waiting and plan.adapters and not plan.preempted:
            kind = "adapters_above_max_loras" if len(plan.adapters) == config.max_loras else "adapters_below"
            seen[kind] += 1
        seen["burst"] += waiting and len(plan.admitted) > 3
        seen["chunked_prompt"] += len(tokens) - len(plan.sampled)
        seen["long_prefill_token_threshold"] += config.long_prefill_token_threshold in tokens.values()
        seen["reserve_full_isl_off"] += not config.scheduler_reserve_full_isl and len(plan.admitted)
        seen["priority_preemption" if priority else "few_kv_blocks_preemption"] += len(plan.preempted)
        if priority and [r.arrival_ns for r in plan.admitted] != sorted(r.arrival_ns for r in plan.admitted):
            seen["priority"] += 1
        for request in plan.admitted:
            self._see_prefix(request, request.num_computed_tokens - tokens[request])

    def _see_taken_back(self, victim: Request, plan: StepPlan) -> int:
        self.seen["priority_preemption_gives_tokens_back"] += 1
        return type(self.scheduler)._take_back(self.scheduler, victim, plan)

    def _see_prefix(self, request: Request, num_cached_tokens: int) -> None:
        resumed = request.num_preemptions > 0
        self.seen["prefix_hit_after_preemption" if resumed else "prefix_hit"] += num_cached_tokens > 0
        missed = self.config.enable_prefix_caching and not resumed and not num_cached_tokens
        for number in request.prefix_hashes:
            other = self._prefixes.setdefault(number, request.adapter) != request.adapter
            self.seen["prefix_hit_other_adapter"] += other and missed


def draw_case(rng: random.Random, **fixed: Any) -> Case:
    """A random case; `fixed` are engine settings that are not drawn."""
    block_size = rng.choice([1, 4, 16])
    max_model_len = rng.choice([24, 64, 200])
    max_num_seqs = rng.choice([1, 2, 4, 8, 16])
    few, many = max_model_len // block_size + 2, 6 * max_model_len // block_size + 8
    engine = {
        "max_loras": rng.choice([1, 2, 4]),
        "max_cpu_loras": 4,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": rng.choice([max_num_seqs, 16, 40, 64, 512]) + max_num_seqs,
        "max_model_len": max_model_len,
        "block_size": block_size,
        "num_gpu_blocks": rng.choice([few, rng.randint(few, many), many]) - (rng.random() < 0.05),
        "async_scheduling": rng.random() < 0.5,
        "enable_prefix_caching": rng.random() < 0.5,
        "scheduling_policy": rng.choice(["fcfs", "priority"]),
        "scheduler_reserve_full_isl": rng.random() < 0.5,
        "long_prefill_token_threshold": rng.choice([0, 0, 3, 16]),
    }
    arrivals = draw_arrivals(rng, max_model_len, block_size)
    return Case(engine | fixed, arrivals, draw_aborts(rng, arrivals))


def draw_arrivals(
    rng: random.Random, max_model_len: int, block_size: int
) -> list[tuple[int, dict[str, Any]]]:
    adapters = [None, *(f"adapter-{n}" for n in range(rng.choice([0, 1, 3, 8])))]
    gap, burst, num_texts = rng.choice([0, 1, 4]), rng.choice([1, 1, 8]), rng.choice([0, 1, 3])
    arrivals: list[tuple[int, dict[str, Any]]] = []
    iteration = 0
    for number in range(rng.randint(1, 40)):
        longest = rng.choice([4, max_model_len // 2, max_model_len - 1])
        prompt = rng.randint(1, min(longest, max_model_len - 1))
        max_tokens = rng.randint(1, min(rng.choice([3, 30, 200]), max_model_len - prompt))
        text = 1000 * rng.randrange(num_texts) if num_texts else 0
        num_shared = rng.randint(0, prompt // block_size) if num_texts else 0
        arrival = {
            "request_id": f"r{number}",
            "arrival_ns": iteration,
            "num_prompt_tokens": prompt,
            "max_tokens": max_tokens,
            "output_length": rng.randint(1, max_tokens) if rng.random() < 0.4 else max_tokens,
            "adapter": rng.choice(adapters),
            "priority": rng.choice([0, 0, 1, 2, -1]),
            "prefix_hashes": [text + block for block in range(num_shared)],
        }
        arrivals.append((iteration, arrival))
        if number % burst == 0:
            iteration += rng.randint(0, gap)
    return arrivals


def draw_aborts(rng: random.Random, arrivals: list[tuple[int, dict[str, Any]]]) -> list[tuple[int, str, str]]:
    share = rng.choice([0, 0, 0.1, 0.5])
    return [
        (at + rng.randint(0, 30), rng.choice(["schedule", "update"]), arrival["request_id"])
        for at, arrival in arrivals
        if rng.random() < share
    ]
