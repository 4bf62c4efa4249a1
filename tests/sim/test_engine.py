"""Whole event logs of small scenarios, and the engine's invariants on random ones. One step lasts 10 ns."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simpy import Environment

from policies.admission import vllm_queue
from policies.eviction import Lru
from sim.adapters import AdapterTiers
from sim.config import EngineConfig
from sim.costs import FS_PER_NS, ConstantCosts, StepCost, StepShape
from sim.cudagraph import CudaGraphs
from sim.engine import Engine
from sim.fast_forward import DecodeRun
from sim.fast_scheduler import make_scheduler
from sim.kv_blocks import KVBlockPool
from sim.prefix_cache import PrefixCachingBlockPool
from sim.request import Request, RequestStatus
from sim.scheduler import StepPlan
from sim.steps import StepRecord

STEP = 10
CONFIG = EngineConfig(
    max_loras=2,
    max_num_seqs=4,
    max_num_batched_tokens=16,
    max_model_len=64,
    block_size=4,
    num_gpu_blocks=33,
    fast_forward=False,
)
SYNC = replace(CONFIG, async_scheduling=False)


@dataclass
class Log:
    """Keeps (time, event, request) of all that happens, and every step."""

    events: list[tuple[int, str, Any]] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    successors: dict[str, Request] = field(default_factory=dict)
    engine: Engine | None = None

    def on_step(self, record: StepRecord) -> None:
        self.steps.append(record)
        plan = {request.request_id: tokens for request, tokens in record.plan.num_scheduled_tokens.items()}
        self.events.append((record.gpu_start_ns, "step", plan))

    def on_run(self, run: DecodeRun) -> None:
        run.play(self)

    def on_preempt(self, request: Request, now_ns: int) -> None:
        self.events.append((now_ns, "preempt", request.request_id))

    def on_tokens(self, plan: StepPlan, now_ns: int) -> None:
        for request in plan.sampled:
            self.events.append((now_ns, "token", request.request_id))

    def on_finish(self, request: Request, now_ns: int) -> None:
        self.events.append((now_ns, "finish", request.request_id))
        if self.engine is not None and request.request_id in self.successors:
            self.engine.submit(self.successors[request.request_id])

    def of(self, *kinds: str) -> list[tuple[int, str, Any]]:
        return [event for event in self.events if event[1] in kinds]


class Costs:
    """Every phase costs something."""

    def step(self, shape: StepShape) -> StepCost:
        return StepCost(
            schedule_ns=1, prepare_ns=1, remap_ns=4, launch_ns=3, gpu_fs=STEP * FS_PER_NS, update_ns=1
        )

    def load_ns(self, grows: bool, rank: int) -> int:
        return 200 if grows else 100

    def activate_ns(self, rank: int) -> int:
        return 20

    def copy_ns(self, rank: int) -> int:
        return 0


class SlowCopies(Costs):
    """An adapter's copy to its slot takes longer than the host's work on it."""

    def copy_ns(self, rank: int) -> int:
        return 300


def request(name: str, arrival: int = 0, prompt: int = 4, output: int = 2, **more: Any) -> Request:
    return Request(name, arrival, prompt, output, **more)


def engine(env: Environment, config: EngineConfig, log: Log, costs: Any = None) -> Engine:
    assert config.num_gpu_blocks is not None
    kv = (PrefixCachingBlockPool if config.enable_prefix_caching else KVBlockPool)(
        config.num_gpu_blocks, config.block_size
    )
    scheduler = make_scheduler(config, kv, vllm_queue(config.scheduling_policy))
    tiers = AdapterTiers(config.max_loras, config.host_cache_entries, Lru(), Lru(), seed=0)
    return Engine(env, config, scheduler, tiers, CudaGraphs(config), costs or ConstantCosts(STEP / 1e6), log)


def run(
    config: EngineConfig,
    requests: list[Request],
    log: Log | None = None,
    costs: Any = None,
    aborts: dict[str, int] | None = None,
) -> Log:
    """`aborts`: when the client of a request gives up."""
    log, env = log or Log(), Environment()
    log.engine = engine(env, config, log, costs)

    def arrivals() -> Any:
        for arriving in requests:
            yield env.timeout(arriving.arrival_ns - env.now)
            log.engine.submit(arriving)

    def abort(request: Request, at: int) -> Any:
        yield env.timeout(at)
        log.events.append((env.now, "abort", request.request_id))
        log.engine.abort(request)

    env.process(arrivals())
    for request in requests:
        if aborts and request.request_id in aborts:
            env.process(abort(request, aborts[request.request_id]))
    env.run()
    return log


def test_sync_two_requests() -> None:
    assert run(SYNC, [request("a"), request("b", 5, output=1)]).events == [
        (0, "step", {"a": 4}),
        (10, "token", "a"),
        (10, "step", {"a": 1, "b": 4}),
        (20, "token", "a"),
        (20, "token", "b"),
        (20, "finish", "a"),
        (20, "finish", "b"),
    ]


def test_async_arrival_waits_for_the_step_that_is_planned_already() -> None:
    assert run(CONFIG, [request("a", output=3), request("b", 5, output=1)]).events == [
        (0, "step", {"a": 4}),
        (10, "step", {"a": 1}),
        (10, "token", "a"),
        (20, "step", {"a": 1, "b": 4}),
        (20, "token", "a"),
        (30, "token", "a"),
        (30, "token", "b"),
        (30, "finish", "a"),
        (30, "finish", "b"),
    ]


def test_async_arrival_at_the_instant_of_a_schedule_is_seen() -> None:
    assert run(CONFIG, [request("a", output=3), request("b", 10)]).of("step")[2] == (
        20,
        "step",
        {"a": 1, "b": 4},
    )


def test_sync_arrival_at_the_instant_of_a_schedule_is_seen() -> None:
    assert run(SYNC, [request("a", output=3), request("b", 10)]).of("step")[1] == (
        10,
        "step",
        {"a": 1, "b": 4},
    )


def test_async_stop_by_itself_is_known_one_step_late() -> None:
    early = request("a", output=1, max_tokens=9)
    log = run(replace(CONFIG, max_num_seqs=1), [early, request("b", output=1)])
    assert log.events == [
        (0, "step", {"a": 4}),
        (10, "step", {"a": 1}),
        (10, "token", "a"),
        (10, "finish", "a"),
        (20, "step", {"b": 4}),
        (30, "token", "b"),
        (30, "finish", "b"),
    ]


def test_async_last_token_at_max_tokens_is_not_scheduled_again_but_keeps_its_place() -> None:
    log = run(replace(CONFIG, max_num_seqs=1), [request("a", output=1), request("b", output=1)])
    assert log.of("step") == [(0, "step", {"a": 4}), (10, "step", {"b": 4})]
    assert log.steps[1].schedule_ns == 10


@pytest.mark.parametrize("config", [CONFIG, SYNC], ids=["async", "sync"])
def test_long_prompt_is_chunked_by_the_token_budget(config: EngineConfig) -> None:
    log = run(config, [request("a", prompt=40, output=1)])
    assert log.events == [
        (0, "step", {"a": 16}),
        (10, "step", {"a": 16}),
        (20, "step", {"a": 8}),
        (30, "token", "a"),
        (30, "finish", "a"),
    ]


def test_preempted_from_the_tail_and_recomputed_before_later_arrivals() -> None:
    config = replace(SYNC, num_gpu_blocks=5, enable_prefix_caching=False)
    log = run(config, [request("a", prompt=7, output=4), request("b", prompt=7, output=3), request("c", 5)])
    assert log.of("step", "preempt", "finish") == [
        (0, "step", {"a": 7, "b": 7}),
        (10, "step", {"a": 1, "b": 1}),
        (20, "preempt", "b"),
        (20, "step", {"a": 1}),
        (30, "step", {"a": 1}),
        (40, "finish", "a"),
        (40, "step", {"b": 9, "c": 4}),
        (50, "finish", "b"),
        (50, "step", {"c": 1}),
        (60, "finish", "c"),
    ]


def test_priority_preempts_the_least_urgent_and_admits_the_most_urgent() -> None:
    config = replace(SYNC, num_gpu_blocks=5, enable_prefix_caching=False, scheduling_policy="priority")
    first = [request("a", prompt=7, output=4, priority=1), request("b", prompt=7, output=3)]
    log = run(config, [*first, request("c", 5, priority=2), request("d", 5, priority=-1)])
    assert log.of("step", "preempt", "finish") == [
        (0, "step", {"b": 7, "a": 7}),
        (10, "step", {"b": 1, "a": 1}),
        (20, "preempt", "a"),
        (20, "step", {"b": 1}),
        (30, "finish", "b"),
        (30, "step", {"d": 4, "a": 9}),
        (40, "preempt", "a"),
        (40, "step", {"d": 1}),
        (50, "finish", "d"),
        (50, "step", {"a": 10, "c": 4}),
        (60, "finish", "a"),
        (60, "step", {"c": 1}),
        (70, "finish", "c"),
    ]


def test_priority_takes_tokens_back_from_a_request_that_the_step_has_already() -> None:
    config = replace(SYNC, num_gpu_blocks=5, scheduling_policy="priority")
    log = run(config, [request("a", prompt=7, output=4, priority=1), request("b", 1, prompt=7, output=4)])
    assert log.of("step", "preempt")[:4] == [
        (0, "step", {"a": 7}),
        (10, "step", {"a": 1, "b": 7}),
        (20, "preempt", "a"),
        (20, "step", {"b": 1}),
    ]


@pytest.mark.parametrize("config", [CONFIG, SYNC], ids=["async", "sync"])
def test_tokens_of_a_step_under_way_are_dropped_when_its_request_is_aborted(config: EngineConfig) -> None:
    log = run(config, [request("a", output=9), request("b", output=2)], aborts={"a": 5})
    assert log.of("token", "abort", "finish") == [
        (5, "abort", "a"),
        (10, "token", "b"),
        (20, "token", "b"),
        (20, "finish", "b"),
    ]
    # The asynchronous scheduler has planned the step from 10 on already.
    assert log.of("step")[1] == (10, "step", {"a": 1, "b": 1} if config.async_scheduling else {"b": 1})
    assert len(log.of("step")) == 2


def test_the_place_of_an_aborted_request_is_free_for_the_next_schedule() -> None:
    requests = [request("a", output=9), request("b", output=1)]
    log = run(replace(SYNC, max_num_seqs=1), requests, aborts={"a": 15})
    assert log.events == [
        (0, "step", {"a": 4}),
        (10, "token", "a"),
        (10, "step", {"a": 1}),
        (15, "abort", "a"),
        (20, "step", {"b": 4}),
        (30, "token", "b"),
        (30, "finish", "b"),
    ]
    assert requests[0].status is RequestStatus.FINISHED_ABORTED
    assert (requests[0].finish_ns, requests[0].abort_ns) == (None, 15)


def test_async_abort_of_a_request_that_the_next_step_has_already() -> None:
    requests = [request("a", output=9), request("b", output=1)]
    log = run(replace(CONFIG, max_num_seqs=1), requests, aborts={"a": 15})
    assert log.events == [
        (0, "step", {"a": 4}),
        (10, "step", {"a": 1}),
        (10, "token", "a"),
        (20, "step", {"a": 1}),
        (15, "abort", "a"),
        (30, "step", {"b": 4}),
        (40, "token", "b"),
        (40, "finish", "b"),
    ]


def test_an_aborted_request_that_waits_is_never_scheduled() -> None:
    log = run(replace(SYNC, max_num_seqs=1), [request("a"), request("b"), request("c")], aborts={"b": 3})
    assert log.of("step") == [
        (0, "step", {"a": 4}),
        (10, "step", {"a": 1}),
        (20, "step", {"c": 4}),
        (30, "step", {"c": 1}),
    ]


def test_abort_at_the_instant_of_completion_comes_first_and_later_does_nothing() -> None:
    requests = [request("a", output=1), request("b", output=1)]
    log = run(SYNC, requests, aborts={"a": 10, "b": 11})
    assert log.of("finish") == [(10, "finish", "b")]
    assert [r.status for r in requests] == [
        RequestStatus.FINISHED_ABORTED,
        RequestStatus.FINISHED_LENGTH_CAPPED,
    ]


def test_an_abort_wakes_an_engine_whose_first_waiting_request_never_fits() -> None:
    config = replace(SYNC, num_gpu_blocks=3)
    log = run(config, [request("big", prompt=12, output=1), request("b", output=1)], aborts={"big": 33})
    assert log.of("step") == [(33, "step", {"b": 4})]


def test_a_shared_prefix_is_computed_once_for_each_adapter() -> None:
    text = {"prompt": 10, "output": 1, "prefix_hashes": (1, 2)}
    requests = [
        request("a", 0, adapter="x", **text),
        request("b", 10, adapter="x", **text),
        request("c", 20, adapter="y", **text),
    ]
    steps = [(0, "step", {"a": 10}), (10, "step", {"b": 2}), (20, "step", {"c": 10})]
    assert run(SYNC, requests).of("step") == steps


def test_a_preempted_request_finds_its_own_blocks_and_computes_its_last_token_again() -> None:
    config = replace(SYNC, num_gpu_blocks=5)
    log = run(config, [request("a", prompt=7, output=4), request("b", prompt=7, output=3)])
    assert log.of("step", "preempt")[2:] == [
        (20, "preempt", "b"),
        (20, "step", {"a": 1}),
        (30, "step", {"a": 1}),
        (40, "step", {"b": 5}),
    ]


def test_adapters_beyond_max_loras_are_passed_over() -> None:
    requests = [request(f"{adapter}{n}", adapter=adapter) for n in (1, 2) for adapter in "xyz"]
    log = run(SYNC, [*requests, request("base")])
    assert log.of("step") == [
        (0, "step", {"x1": 4, "y1": 4, "x2": 4, "y2": 4}),
        (10, "step", {"x1": 1, "y1": 1, "x2": 1, "y2": 1}),
        (20, "step", {"z1": 4, "z2": 4, "base": 4}),
        (30, "step", {"z1": 1, "z2": 1, "base": 1}),
    ]


def test_closed_loop_successor_is_seen_at_the_instant_of_completion() -> None:
    log = run(SYNC, [request("a", output=1)], Log(successors={"a": request("b", 10, output=1)}))
    assert log.of("step") == [(0, "step", {"a": 4}), (10, "step", {"b": 4})]


def times(steps: list[StepRecord]) -> list[tuple[int, int, int]]:
    return [(step.schedule_ns, step.gpu_start_ns, step.gpu_end_ns) for step in steps]


def test_host_work_is_hidden_behind_the_gpu_only_when_asynchronous() -> None:
    sync = run(SYNC, [request("a", prompt=1, output=3)], costs=Costs()).steps
    assert times(sync) == [(0, 5, 15), (16, 18, 28), (29, 31, 41)]
    assert [step.gpu_idle.host_ns for step in sync] == [5, 3, 3]
    steps = run(CONFIG, [request("a", prompt=1, output=3)], costs=Costs()).steps
    assert times(steps) == [(0, 5, 15), (8, 15, 25), (16, 25, 35)]
    assert [step.gpu_idle.host_ns for step in steps] == [5, 0, 0]


def test_a_changed_lora_mapping_waits_for_the_gpu() -> None:
    steps = run(CONFIG, [request("a", prompt=4, output=3)], costs=Costs()).steps
    assert times(steps) == [(0, 5, 15), (8, 15 + 4, 29), (23, 29, 39)]
    assert [step.gpu_idle.host_ns for step in steps] == [5, 4, 0]


def test_loads_and_activations_delay_the_launch_and_explain_the_idle_gpu() -> None:
    log = run(SYNC, [request("a", 50, output=1, adapter="x")], costs=Costs())
    step = log.steps[0]
    assert (step.load_ns, step.activate_ns) == (200, 20)
    assert times(log.steps) == [(50, 50 + 1 + 200 + 20 + 4, 50 + 1 + 200 + 20 + 4 + STEP)]
    assert step.gpu_idle == (200, 20, 5, 50)
    assert [event.kind for event in step.events] == ["load", "activate"]


def test_copies_keep_the_gpu_one_after_another_and_the_mapping_waits_for_them() -> None:
    """The host loads and activates the second adapter while the first one is being copied."""
    both = [request(name, 50, output=1, adapter=name) for name in "xy"]
    step = run(SYNC, both, costs=SlowCopies()).steps[0]
    assert [event.kind for event in step.events] == ["load", "activate"] * 2
    first_begins = 50 + 1 + 200
    second_begins = first_begins + 20 + 200
    copied = max(first_begins + 300, second_begins) + 300
    assert step.gpu_start_ns == copied + 4
    assert step.gpu_idle == (400, 20 + 20 + copied - (second_begins + 20), 5, 50)


def test_only_a_host_cache_that_grows_allocates_memory() -> None:
    requests = [request(name, 1000 * n, output=1, adapter=name) for n, name in enumerate("wxyzw")]
    steps = run(replace(SYNC, max_cpu_loras=2), requests, costs=Costs()).steps
    assert [step.load_ns for step in steps] == [
        200,
        200,
        200,
        100,
        100,
    ]  # The third is loaded before another leaves.


class Checked(Log):
    """A log that holds the invariants of every step."""

    def on_step(self, record: StepRecord) -> None:
        super().on_step(record)
        assert self.engine is not None
        config, scheduler, plan = self.engine.config, self.engine.scheduler, record.plan
        tokens = plan.num_scheduled_tokens
        assert sum(tokens.values()) == plan.num_tokens <= config.max_num_batched_tokens
        assert max(tokens.values()) == plan.max_query_len
        assert list(dict.fromkeys(r.adapter for r in tokens if r.adapter)) == list(plan.adapters)
        assert len(plan.adapters) <= config.max_loras
        assert len(scheduler.running) <= config.max_num_seqs
        assert set(plan.adapters) <= set(self.engine.tiers.slots) <= self.engine.tiers.host_cache
        assert scheduler.kv.num_free_blocks >= 0
        held = sum(request.num_kv_blocks for request in scheduler.running)
        assert scheduler.kv.num_used_blocks <= held  # Shared blocks count once.
        assert config.enable_prefix_caching or scheduler.kv.num_used_blocks == held
        assert sum(record.gpu_idle) == record.gpu_start_ns - (self.steps[-2].gpu_end_ns if record.step else 0)


configs = st.builds(
    EngineConfig,
    max_loras=st.integers(1, 3),
    max_cpu_loras=st.integers(3, 5),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.sampled_from([6, 20, 64]),
    max_model_len=st.just(64),
    block_size=st.sampled_from([1, 4]),
    num_gpu_blocks=st.sampled_from([66, 90, 200]),
    async_scheduling=st.booleans(),
    scheduler_reserve_full_isl=st.booleans(),
    enable_prefix_caching=st.booleans(),
    scheduling_policy=st.sampled_from(["fcfs", "priority"]),
    long_prefill_token_threshold=st.sampled_from([0, 5]),
    fast_forward=st.just(False),
)
arrivals = st.lists(
    st.tuples(
        st.integers(0, 300),
        st.integers(1, 40),
        st.integers(1, 12),
        st.integers(0, 12),
        st.sampled_from([None, *"uvwxyz"]),
        st.integers(0, 2),
        st.integers(0, 10),
        st.one_of(st.none(), st.integers(0, 200)),
    ),
    max_size=25,
)


@given(configs, arrivals, st.booleans())
def test_everything_submitted_completes_or_is_aborted_and_gives_back_its_blocks(
    config: EngineConfig, drawn: Any, free: bool
) -> None:
    requests, aborts = [], {}
    for n, (at, prompt, output, more, adapter, priority, shared, patience) in enumerate(
        sorted(drawn, key=lambda d: d[0])
    ):
        hashes = tuple(range(min(shared, prompt // config.block_size)))
        requests.append(Request(str(n), at, prompt, output, output + more, adapter, priority, hashes))
        if patience is not None:
            aborts[str(n)] = at + patience + 1
    log = run(config, requests, Checked(), None if free else Costs(), aborts)
    completed = [r for r in requests if r.abort_ns is None]
    assert all(r.is_finished and r.num_output_tokens == r.output_length for r in completed)
    assert all(r.arrival_ns <= r.scheduled_ns < r.first_token_ns <= r.finish_ns for r in completed)
    given_up = [r for r in requests if r.abort_ns is not None]
    assert all(r.status is RequestStatus.FINISHED_ABORTED and r.finish_ns is None for r in given_up)
    assert all((r.last_token_ns or 0) <= r.abort_ns for r in given_up)
    assert len(log.of("token")) == sum(r.num_output_tokens for r in requests)
    assert log.engine is not None
    assert log.engine.scheduler.kv.num_used_blocks == 0
    assert not log.engine.scheduler.has_requests()
