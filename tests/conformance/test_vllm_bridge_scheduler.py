"""PolicyScheduler: with vLLM's own order against plain vLLM, with other policies against the simulator."""

import logging
import random
from itertools import count
from typing import Any

import pytest

from calibrate.bridge.waiting_queue import PolicyQueue
from tests.conformance.odd_policies import OneAdapterAtATime, Shuffled
from tests.conformance.scheduling import Case, Ours, draw_case, play
from tests.conformance.vllm_bridge import BridgedScheduler
from tests.conformance.vllm_scheduler import TheirScheduler, base_config

NUM_CASES = 40
ODD = "tests.conformance.odd_policies."


@pytest.fixture(scope="session")
def vllm_config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return base_config(tmp_path_factory.mktemp("model"))


def draw(seed: int, **fixed: Any) -> tuple[Case, bool]:
    rng = random.Random(seed)
    return draw_case(rng, async_scheduling=True, **fixed), rng.random() < 0.5


def draw_ending(seed: int, vllm_config: Any) -> tuple[Case, bool]:
    """A case in which vLLM finishes every request: all fit in the KV cache, and in the loop of `play`."""
    for attempt in count(seed, 1000):
        case, v2 = draw(attempt)
        last = play(case, TheirScheduler(case.config, vllm_config, v2))[-1]
        if not last["running"] and not last["waiting"]:
            return case, v2
    raise AssertionError


@pytest.mark.parametrize("caching", [False, True], ids=["no_cache", "prefix_cache"])
@pytest.mark.parametrize("scheduling_policy", ["fcfs", "priority"])
@pytest.mark.parametrize("settings", [None, {}], ids=["off", "vllm_queue"])
def test_plain_vllm(vllm_config: Any, settings: Any, scheduling_policy: str, caching: bool) -> None:
    for seed in range(NUM_CASES):
        case, v2 = draw(seed, scheduling_policy=scheduling_policy, enable_prefix_caching=caching)
        plain = TheirScheduler(case.config, vllm_config, v2)
        bridged = BridgedScheduler(case.config, vllm_config, settings, v2)
        assert isinstance(bridged.scheduler.waiting, PolicyQueue) == (settings is not None)
        assert play(case, bridged) == play(case, plain), f"seed {seed}: {case.config}"


@pytest.mark.parametrize("hold_back", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("scheduling_policy", ["fcfs", "priority"])
def test_a_policy_that_reorders_and_holds_back(
    vllm_config: Any, scheduling_policy: str, hold_back: float
) -> None:
    for seed in range(NUM_CASES):
        case, v2 = draw(seed, scheduling_policy=scheduling_policy)
        settings = {"admission": {"_target_": ODD + "Shuffled", "seed": seed, "hold_back": hold_back}}
        ours = Ours(case.config, admission=Shuffled(seed, hold_back))
        theirs = BridgedScheduler(case.config, vllm_config, settings, v2)
        assert play(case, theirs) == play(case, ours), f"seed {seed}: {case.config}"


def test_a_policy_that_serves_one_adapter_at_a_time(vllm_config: Any) -> None:
    for seed in range(NUM_CASES):
        case, v2 = draw(seed)
        settings = {"admission": {"_target_": ODD + "OneAdapterAtATime"}}
        ours = Ours(case.config, admission=OneAdapterAtATime())
        theirs = BridgedScheduler(case.config, vllm_config, settings, v2)
        assert play(case, theirs) == play(case, ours), f"seed {seed}: {case.config}"


def test_the_policies_counts_are_those_of_the_engine(vllm_config: Any) -> None:
    for seed in range(NUM_CASES):
        case, v2 = draw_ending(seed, vllm_config)
        bridged = BridgedScheduler(case.config, vllm_config, {}, v2)
        play(case, bridged)
        engine = bridged.scheduler._session.engine
        assert not engine.running and not engine._num_running and not engine._num_waiting, f"seed {seed}"


KINDS = ("bind", "add", "requeue", "remove", "admit", "on_finish", "candidates")
BAD_ANSWERS = ("mid_step", "again", "gone", "nonsense")


@pytest.mark.parametrize("kind", [*KINDS, *BAD_ANSWERS])
def test_a_policy_that_fails_costs_no_request(
    vllm_config: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    failures = 0
    for seed in range(NUM_CASES):
        caplog.clear()
        case, v2 = draw_ending(seed, vllm_config)
        settings = {"admission": {"_target_": ODD + "TooFull", "kind": kind, "after": 1 + seed % 5}}
        finished: list[str] = []
        bridged = BridgedScheduler(case.config, vllm_config, settings, v2)
        with caplog.at_level(logging.ERROR, "vllm.lorasim"):
            for answer in play(case, bridged):
                finished += answer.get("finished", [])
        said = [record for record in caplog.records if "default takes its place" in record.getMessage()]
        assert len(said) <= 1, "it is said once"
        failures += len(said)
        left = {arrival["request_id"] for _, arrival in case.arrivals} - set(finished)
        assert left <= {request_id for _, _, request_id in case.aborts}, f"seed {seed}"
    assert failures > NUM_CASES / 10


def test_a_policy_that_offers_nobody_and_says_never_fails(vllm_config: Any) -> None:
    case, v2 = draw_ending(0, vllm_config)
    bridged = BridgedScheduler(case.config, vllm_config, {"admission": {"_target_": ODD + "Silent"}}, v2)
    assert not play(case, bridged)[-1]["waiting"]
