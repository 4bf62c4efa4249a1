"""Step plans against vLLM's own Scheduler and AsyncScheduler, on random workloads: exact equality."""

import random
from collections import Counter
from typing import Any

import pytest

from tests.conformance.scheduling import RULES, Ours, draw_case, play
from tests.conformance.vllm_scheduler import TheirScheduler, base_config

NUM_CASES = 1500


@pytest.fixture(scope="session")
def vllm_config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return base_config(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("scheduling_policy", ["fcfs", "priority"])
@pytest.mark.parametrize("caching", [False, True], ids=["no_cache", "prefix_cache"])
def test_step_plans(vllm_config: Any, async_scheduling: bool, scheduling_policy: str, caching: bool) -> None:
    seen: Counter[str] = Counter()
    num_answers = 0
    for seed in range(NUM_CASES):
        rng = random.Random(seed)
        case = draw_case(
            rng,
            async_scheduling=async_scheduling,
            scheduling_policy=scheduling_policy,
            enable_prefix_caching=caching,
        )
        ours = Ours(case.config)
        theirs = TheirScheduler(case.config, vllm_config, v2_model_runner=rng.random() < 0.5)
        for number, (answer, expected) in enumerate(zip(play(case, ours), play(case, theirs), strict=True)):
            assert answer == expected, f"seed {seed}, call {number}: {case.config}"
        num_answers += number + 1
        seen.update(rule for rule, count in ours.seen.items() if count)
    print(NUM_CASES, "cases,", num_answers, "answers, cases that show", dict(seen))
    absent = ["few" if scheduling_policy == "priority" else "priority"]
    absent += [] if caching else ["prefix"]
    absent += [] if async_scheduling else ["async"]
    assert min(seen[rule] for rule in RULES if not rule.startswith(tuple(absent))) > NUM_CASES / 100
