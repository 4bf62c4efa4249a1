"""The compiled engine: which runs it plays, what it leaves, its costs, its answers to a router."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.compiled import choice
from sim.compiled.limits import LeavesCompiledError
from sim.compiled.programs import COUNTS
from sim.costs import GRAPHS, ConstantCosts, StepShape
from sim.profile import FittedCosts
from sim.simulation import simulate
from sim.terms import TERMS, Term
from tests.sim.compiled_code import without_compiled_code
from tests.sim.spy import Spy
from tests.sim.test_profile import SETTINGS, changed, load, terms
from tests.sim.test_simulation import config

pytest.importorskip("sim.compiled.engine", reason="there was no C++ compiler where lorasim was installed")
costs_module = pytest.importorskip("sim.compiled.costs")

OPEN = {"mode": "open", "request_rate": 50.0, "num_requests": 30}
CLOSED = {"mode": "closed", "concurrency": 6, "num_requests": 30}
FITTED = SETTINGS | {"model": "tiny"}
Config = dict[str, Any]


class Played:
    """Which engines played a run, and whether the compiled one left it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engines: list[str] = []
        for name in ("Engine", "CompiledEngine"):
            monkeypatch.setattr(choice, name, self._noting(name, getattr(choice, name)))

    def _noting(self, name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        def make(*pieces: Any) -> Any:
            self.engines.append(name)
            return made(*pieces)

        return make


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    return Played(monkeypatch)


@pytest.mark.parametrize("top", [{}, {"profile": FITTED}, {"replicas": 2}])
def test_vllms_own_policies_are_played_by_it(played: Played, top: Config) -> None:
    simulate(config(OPEN, {"async_scheduling": True}, **top))
    assert set(played.engines) == {"CompiledEngine"}


@pytest.mark.parametrize(
    ("engine", "top"),
    [
        ({"fast_forward": False}, {}),
        ({}, {"admission": {"_target_": "policies.admission.FcfsStrict"}}),
        ({}, {"eviction": {"_target_": "policies.eviction.Lru", "protect_batch": True}}),
        ({}, {"host_eviction": {"_target_": "policies.eviction.Lfu"}}),
        ({}, {"prefetch": {"_target_": "policies.prefetch.QueuePrefetch"}}),
        ({}, {"record": {"steps": True, "adapters": True}}),
        ({}, {"bound": "latency", "profile": FITTED}),
        ({}, {"profile": FITTED | {"lora_kernels": {}}}),
    ],
)
def test_all_else_is_not(played: Played, engine: Config, top: Config) -> None:
    simulate(config(OPEN, engine, **top))
    assert set(played.engines) == {"Engine"}


def test_a_run_that_preempts_is_played_again_from_the_start(played: Played) -> None:
    """Eight requests of 20 + 60 tokens do not fit in 19 blocks of 16."""
    preempting = config(CLOSED | {"output_length": 60}, {"num_gpu_blocks": 20})
    found = simulate(preempting)
    assert played.engines == ["CompiledEngine", "Engine"]
    assert found.summary["num_preemptions"] > 0
    with without_compiled_code():
        assert simulate(preempting).requests.equals(found.requests)


def test_shared_prefixes_are_left(played: Played, tmp_path: Any) -> None:
    trace = tmp_path / "trace.jsonl"
    line = '{"timestamp": 0, "input_length": 40, "output_length": 3, "adapter": "a", "hash_ids": [1, 2, 3]}\n'
    trace.write_text(2 * line)
    unsaid = dict.fromkeys(("input_length", "output_length", "popularity"))
    workload = {"mode": "open", "path": str(trace), "hash_block_size": 16} | unsaid
    for caching, engines in ((True, ["CompiledEngine", "Engine"]), (False, ["CompiledEngine"])):
        played.engines.clear()
        summary = simulate(config(workload, {"enable_prefix_caching": caching})).summary
        assert played.engines == engines
        assert summary["completed"] == 2


SHAPES = st.builds(StepShape, st.sampled_from(GRAPHS), *[st.integers(0, 10_000) for _ in COUNTS]).filter(
    lambda shape: shape.num_adapters <= shape.num_lora_tokens
)
COEFFICIENTS = st.dictionaries(st.sampled_from(sorted(TERMS)), st.integers(0, 10**9), max_size=6)


@given(shape=SHAPES, durations=st.tuples(*[COEFFICIENTS] * 4, COEFFICIENTS))
def test_every_term_counts_as_written_down(shape: StepShape, durations: tuple[dict[str, int], ...]) -> None:
    names = ("schedule_ms", "prepare_ms", "remap_ms", "update_ms")
    host = {
        name: terms(**{term: value / 1e12 for term, value in of_name.items() if term != "kv_tokens"})
        for name, of_name in zip(names, durations, strict=False)
    }
    gpu = terms(
        constant=1, **{term: value / 1e12 for term, value in durations[4].items() if term != "constant"}
    )
    settings = changed("host", host)
    for graph in GRAPHS:
        settings = changed(f"steps.{graph}.gpu_ms", gpu, base=settings)
    fitted = load(settings).costs
    assert isinstance(fitted, FittedCosts)
    compiled = costs_module.StepCosts(fitted.coefficients)
    assert compiled.step(shape) == fitted.step(shape)._replace(gpu_growth_fs=0)
    assert compiled.seen() == {name: (getattr(shape, name),) * 2 for name in COUNTS}


def test_a_constant_step_costs_the_same() -> None:
    costs = ConstantCosts(2.5)
    shape = StepShape("none", *[1] * len(COUNTS))
    assert costs_module.StepCosts(costs.coefficients).step(shape) == costs.step(shape)


@pytest.mark.parametrize(
    ("engine", "profile", "engines"),
    [
        ({"max_cpu_loras": 3_000_000_000}, FITTED, ["CompiledEngine"]),
        ({"num_gpu_blocks": 2**64}, FITTED, ["CompiledEngine", "Engine"]),
        ({"max_num_batched_tokens": 2**64}, FITTED, ["CompiledEngine", "Engine"]),
        ({}, {"kind": "constant", "step_ms": 9.3e6}, ["CompiledEngine", "Engine"]),
        ({}, changed("host_scale.steps", 1e9, base=FITTED), ["CompiledEngine", "Engine"]),
        ({}, changed("swaps.load_growing.constant_ms", 1e12, base=FITTED), ["CompiledEngine", "Engine"]),
    ],
)
def test_numbers_of_any_size(played: Played, engine: Config, profile: Config, engines: list[str]) -> None:
    huge = config(CLOSED | {"num_requests": 5}, engine, profile=profile)
    found = simulate(huge)
    assert played.engines == engines
    with without_compiled_code():
        expected = simulate(huge)
    assert found.requests.equals(expected.requests)
    assert found.summary == expected.summary


def test_a_term_that_no_instruction_can_count_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TERMS, "reqs", Term("a request", "(num_reqs < 3)"))  # type: ignore[arg-type]
    fitted = load(changed("host.update_ms", terms(reqs=1e-3))).costs
    assert isinstance(fitted, FittedCosts)
    with pytest.raises(LeavesCompiledError, match="no instruction"):
        costs_module.StepCosts(fitted.coefficients)


def test_what_takes_more_than_64_bits_is_left() -> None:
    costs = costs_module.StepCosts(load(changed("host.update_ms", terms(constant=5e6))).costs.coefficients)  # type: ignore[attr-defined]
    shape = StepShape("full", *[1] * len(COUNTS))
    with pytest.raises(LeavesCompiledError, match="more than an hour"):
        costs.step(shape)


@pytest.mark.parametrize(
    ("expression", "message"),
    [(" + ".join(["num_reqs"] * 40), None), ("(num_reqs + " * 20 + "num_reqs" + ")" * 20, "too deep")],
)
def test_long_terms_are_counted_and_deep_ones_left(
    monkeypatch: pytest.MonkeyPatch, expression: str, message: str | None
) -> None:
    monkeypatch.setitem(TERMS, "reqs", Term("a request", expression))  # type: ignore[arg-type]
    fitted = load(changed("host.update_ms", terms(reqs=1e-3))).costs
    assert isinstance(fitted, FittedCosts)
    shape = StepShape("full", *[3] * len(COUNTS))
    if message is None:
        assert costs_module.StepCosts(fitted.coefficients).step(shape).update_ns == 40 * 3 * 1_000
    else:
        with pytest.raises(LeavesCompiledError, match=message):
            costs_module.StepCosts(fitted.coefficients)


def test_ranges_that_were_left_are_told(played: Played) -> None:
    """36 requests at once where 4 were measured."""
    profile = changed("ranges.num_reqs", [1, 4], base=FITTED)
    crowded = config(CLOSED, profile=profile)
    said = simulate(crowded).summary["profile"]["outside_range"]
    assert "num_reqs=6 is outside the measured 1 to 4" in said
    assert played.engines == ["CompiledEngine"]
    with without_compiled_code():
        assert simulate(crowded).summary["profile"]["outside_range"] == said


def test_a_router_sees_the_same_engines() -> None:
    """At each of 200 arrivals, a third of which go to the second of two engines."""
    spread = config(
        OPEN | {"request_rate": 300.0, "num_requests": 200, "abort_ms": 900.0},
        {"max_loras": 2, "max_cpu_loras": 3},
        replicas=2,
        routing={"_target_": "tests.sim.spy.Spy"},
        profile=FITTED,
    )
    Spy.seen.clear()
    found, seen = simulate(spread), Spy.seen.copy()
    Spy.seen.clear()
    with without_compiled_code():
        expected = simulate(spread)
    assert seen == Spy.seen
    assert found.requests.equals(expected.requests)
    assert found.summary == expected.summary
    # Something waited, for its adapter too, and something ran, with adapters that came and went.
    waiting, deferred, running, slots, host_caches = zip(*(states[0] for states in seen), strict=True)
    assert min(max(waiting), max(deferred), max(running)) > 0
    assert min(len(set(slots)), len(set(host_caches))) > 2
