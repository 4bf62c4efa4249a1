"""Fast forward is step by step, event for event and to the nanosecond."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.config import EngineConfig
from sim.costs import FS_PER_NS, StepCost, StepShape
from sim.errors import UserError
from sim.fast_forward import DecodeRun
from sim.request import Request
from sim.simulation import simulate
from tests.sim.compiled_code import without_compiled_code
from tests.sim.test_engine import STEP, Log, arrivals, configs, request, run
from tests.sim.test_profile import SETTINGS, changed, terms
from tests.sim.test_simulation import config as run_config


class GrowingCosts:
    """GPU time grows with the context; every other phase takes what is given, some with the queue."""

    def __init__(
        self, host_ns: tuple[int, int, int, int, int], gpu_fs: int, kv_fs: int, waiting_ns: int
    ) -> None:
        self.host_ns = host_ns
        self.gpu_fs = gpu_fs
        self.kv_fs = kv_fs
        self.waiting_ns = waiting_ns
        self.num_asked = 0

    def step(self, shape: StepShape) -> StepCost:
        schedule, prepare, remap, launch, update = self.host_ns
        schedule += self.waiting_ns * shape.num_waiting + shape.host_cache_entries
        gpu_fs = self.gpu_fs + self.kv_fs * shape.kv_tokens + shape.num_prefill_tokens * FS_PER_NS
        self.num_asked += 1
        return StepCost(
            schedule, prepare, prepare + remap, launch, gpu_fs, update, self.kv_fs * shape.num_reqs
        )

    def load_ns(self, grows: bool, rank: int) -> int:
        return 50 if grows else 20

    def activate_ns(self, rank: int) -> int:
        return 7

    def copy_ns(self, rank: int) -> int:
        return 11


class Runs(Log):
    """Counts the steps that were simulated at once."""

    num_at_once = 0

    def on_run(self, run: DecodeRun) -> None:
        assert run.num_steps > 0
        self.num_at_once += run.num_steps
        super().on_run(run)


costs = st.builds(
    GrowingCosts,
    st.tuples(*[st.integers(0, 8)] * 5),
    st.one_of(st.integers(1, 40 * FS_PER_NS), st.integers(1, 40).map(lambda ns: ns * FS_PER_NS)),
    st.sampled_from([0, 0, 1, 37_123, 250_000, FS_PER_NS]),
    st.sampled_from([0, 0, 1]),
)
Answer = tuple[Any, ...]


def answer(config: EngineConfig, drawn: Any, costs: Any) -> tuple[Answer, int]:
    """All that can be seen of a run of the engine, and how many of its steps were simulated at once."""
    requests, aborts = [], {}
    for n, (at, prompt, output, more, adapter, priority, shared, patience) in enumerate(
        sorted(drawn, key=lambda d: d[0])
    ):
        hashes = tuple(range(min(shared, prompt // config.block_size)))
        requests.append(Request(str(n), at, prompt, output, output + more, adapter, priority, hashes))
        if patience is not None:
            aborts[str(n)] = at + patience + 1
    log = Runs()
    run(config, requests, log, costs, aborts)
    # A run is told of when it is over: at one instant, tokens come first, then the next step.
    kinds = {"step": 1, "preempt": 1}
    events = sorted(
        (event for event in log.events if event[1] != "step"),
        key=lambda event: (event[0], kinds.get(event[1], 0)),
    )
    assert log.engine is not None
    log.engine.settle()
    steps = [
        (
            *(
                s.step,
                s.schedule_ns,
                s.launch_end_ns,
                s.gpu_start_ns,
                s.gpu_end_ns,
                s.gpu_idle,
                s.cost,
                s.shape,
            ),
            *([(r.request_id, n) for r, n in s.plan.num_scheduled_tokens.items()], s.events),
        )
        for s in log.steps
    ]
    fields = [
        (r.status, r.scheduled_ns, r.first_token_ns, r.last_token_ns, r.finish_ns, r.abort_ns, r.num_tokens)
        for r in requests
    ]
    scheduler, tiers = log.engine.scheduler, log.engine.tiers
    state = (scheduler.kv.num_used_blocks, len(scheduler.admission), tiers.slots, log.engine.num_steps)
    lru = [list(policy._order) for policy in (tiers.slots_policy, tiers.host_policy)]  # type: ignore[attr-defined]
    return (events, steps, fields, state, lru), log.num_at_once


@settings(deadline=None, max_examples=300)
@given(configs, arrivals, costs, st.integers(1, 6))
def test_the_same_events_and_steps(
    config: EngineConfig, drawn: Any, costs: GrowingCosts, longer: int
) -> None:
    # Outputs of up to 50 tokens: most steps are like the one before.
    drawn = [(at, min(prompt, 14), longer * output, *more) for at, prompt, output, *more in drawn]
    fast = replace(config, fast_forward=True)
    try:
        expected, none = answer(config, drawn, costs)
    except UserError:
        with pytest.raises(UserError, match="take each other's KV blocks for ever"):
            answer(fast, drawn, costs)
        return
    found, _ = answer(fast, drawn, costs)
    assert none == 0
    for name, one, other in zip(
        ("events", "steps", "requests", "state", "lru"), found, expected, strict=True
    ):
        assert one == other, name


@pytest.mark.parametrize("async_scheduling", [False, True])
@pytest.mark.parametrize("host_ns", [0, 2, 9])
def test_a_long_decode_is_a_few_steps_and_a_run(async_scheduling: bool, host_ns: int) -> None:
    config = EngineConfig(
        max_model_len=4096, num_gpu_blocks=300, async_scheduling=async_scheduling, max_num_batched_tokens=4096
    )
    costs = GrowingCosts((host_ns, host_ns, host_ns, host_ns, host_ns), STEP * FS_PER_NS, 1, 0)
    log = Runs()
    run(config, [request("a", output=2000)], log, costs)
    assert len(log.steps) == 2000
    assert log.num_at_once > 1980
    assert costs.num_asked < 20


def test_an_arrival_at_the_instant_of_a_turn_is_seen_by_it() -> None:
    config = EngineConfig(
        max_model_len=64, num_gpu_blocks=300, async_scheduling=False, max_num_batched_tokens=256
    )
    log = run(config, [request("a", output=20), request("b", 100, output=1)])
    assert (100, "step", {"a": 1, "b": 4}) in log.events


PROFILES = st.fixed_dictionaries(
    {
        "steps.full.gpu_ms": st.builds(
            lambda a, b, c: terms(constant=a, kv_tokens=b, adapters=c),
            st.sampled_from([0.5, 6, 20]),
            st.sampled_from([0, 0.0123456, 0.1]),
            st.sampled_from([0, 0.3]),
        ),
        "steps.full.launch_ms": st.sampled_from([terms(constant=1), terms(constant=8)]),
        "host.schedule_ms": st.sampled_from(
            [terms(constant=0.1, waiting=0.01), terms(constant=5, waiting=1, cache_entries_adapters=0.01)]
        ),
    }
)
ENGINES = st.fixed_dictionaries(
    {
        "max_loras": st.integers(1, 6),
        "max_cpu_loras": st.integers(6, 12),
        "max_num_seqs": st.integers(1, 12),
        "max_num_batched_tokens": st.integers(12, 80),
        "num_gpu_blocks": st.integers(9, 40),
        "async_scheduling": st.booleans(),
        "enable_prefix_caching": st.booleans(),
        "enforce_eager": st.booleans(),
        "scheduling_policy": st.sampled_from(["fcfs", "priority"]),
        "scheduler_reserve_full_isl": st.booleans(),
        "long_prefill_token_threshold": st.sampled_from([0, 0, 0, 1, 7]),
        "initial_host_cache": st.sampled_from([0, 0, 6]),
    }
)
WORKLOADS = st.builds(
    lambda arrivals, end, lengths, abort, adapters: arrivals | end | lengths | abort | adapters,
    st.one_of(
        st.fixed_dictionaries({"mode": st.just("open"), "request_rate": st.floats(1, 100)}),
        st.fixed_dictionaries({"mode": st.just("closed"), "concurrency": st.integers(1, 20)}),
    ),
    st.fixed_dictionaries({"duration_s": st.floats(0.1, 2), "num_requests": st.integers(1, 40)}),
    st.fixed_dictionaries({"input_length": st.integers(1, 60), "output_length": st.integers(1, 60)}),
    st.sampled_from([{}, {}, {"abort_ms": 300}]),
    st.sampled_from([{}, {"adapter_rank": {"values": [8, 16, 64]}}, {"base_model_share": 0.3}]),
)
Settings = dict[str, Any]


@settings(deadline=None, max_examples=150)
@given(
    ENGINES,
    WORKLOADS,
    st.one_of(st.none(), PROFILES),
    st.fixed_dictionaries(
        {
            "replicas": st.integers(1, 3),
            "record": st.fixed_dictionaries({"steps": st.booleans()}),
            "warmup_s": st.sampled_from([0, 0.05]),
        }
    ),
)
def test_the_same_results(
    engine: Settings,
    workload: Settings,
    profile: Settings | None,
    more: Settings,
) -> None:
    costs: Settings = {"kind": "constant", "step_ms": 10}
    if profile is not None:
        costs = SETTINGS | {"model": "tiny"}
        for key, value in profile.items():
            costs = changed(key, value, base=costs)
    admission = {
        "_target_": "policies.admission.vllm_queue",
        "scheduling_policy": engine["scheduling_policy"],
    }
    more = more | {"profile": costs, "admission": admission}
    fast, slow = (run_config(workload, engine | {"fast_forward": fast}, **more) for fast in (True, False))
    expected = result(slow)
    assert result(fast) == expected
    with without_compiled_code():
        assert result(fast) == expected


@pytest.mark.parametrize("fast_forward", [False, True])
def test_a_gap_between_tokens_spans_the_time_of_a_preemption(fast_forward: bool) -> None:
    """Of two requests, one is preempted before its last token and computed again, a token a step."""
    workload = {"mode": "closed", "concurrency": 2, "num_requests": 2, "input_length": 3, "output_length": 3}
    engine = {
        "max_model_len": 12,
        "block_size": 4,
        "num_gpu_blocks": 4,
        "async_scheduling": False,
        "enable_prefix_caching": False,
        "long_prefill_token_threshold": 1,
        "fast_forward": fast_forward,
    }
    summary = simulate(run_config(workload, engine)).summary
    assert summary["num_preemptions"] == 1
    # Three gaps of a step; and one of a step without it and five to compute 3 + 2 tokens.
    assert summary["mean_itl_ms"] == (10 + 10 + 10 + 60) / 4


def result(cfg: Settings) -> Answer | str:
    """Everything that a run answers, or why it has no answer."""
    try:
        found = simulate(cfg)
    except UserError as error:
        return str(error)
    return found.summary | {"config": None}, found.requests, found.steps


def test_requests_that_preempt_each_other_for_ever_end_the_run() -> None:
    """As in vLLM: prompts come in chunks, nothing is reserved, and two of three do not fit together."""
    config = EngineConfig(
        max_loras=1,
        max_cpu_loras=3,
        max_num_seqs=6,
        max_num_batched_tokens=64,
        max_model_len=64,
        block_size=1,
        num_gpu_blocks=66,
        enable_prefix_caching=False,
        async_scheduling=False,
        scheduling_policy="priority",
        scheduler_reserve_full_isl=False,
        long_prefill_token_threshold=5,
    )
    drawn = [
        (112, 14, 36, 7, "y", 0, 0, None),
        (112, 14, 36, 10, "y", 0, 0, None),
        (148, 4, 15, 0, "y", 0, 0, None),
    ]
    for fast_forward in (True, False):
        with pytest.raises(UserError, match="take each other's KV blocks for ever"):
            answer(replace(config, fast_forward=fast_forward), drawn, GrowingCosts((0,) * 5, 1, 0, 0))
