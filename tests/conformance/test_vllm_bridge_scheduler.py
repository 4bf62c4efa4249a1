"""PolicyScheduler: with vLLM's own order against plain vLLM, with other policies against the simulator."""

import random
from collections import Counter
from typing import Any

import pytest

from tests.conformance.scheduling import RULES, Ours, draw_case, play
from tests.conformance.vllm_bridge import BridgedScheduler
from tests.conformance.vllm_scheduler import TheirScheduler, base_config

NUM_CASES = 40


@pytest.fixture(scope="session")
def vllm_config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return base_config(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("caching", [False, True], ids=["no_cache", "prefix_cache"])
@pytest.mark.parametrize("scheduling_policy", ["fcfs", "priority"])
@pytest.mark.parametrize("settings", [None, {}], ids=["off", "vllm_queue"])
def test_plain_vllm(vllm_config: Any, settings: Any, scheduling_policy: str, caching: bool) -> None:
    for seed in range(NUM_CASES):
        rng = random.Random(seed)
        case = draw_case(
            rng, async_scheduling=True, scheduling_policy=scheduling_policy, enable_prefix_caching=caching
        )
        v2_model_runner = rng.random() < 0.5
        plain = TheirScheduler(case.config, vllm_config, v2_model_runner)
        bridged = BridgedScheduler(case.config, vllm_config, settings, v2_model_runner)
        assert play(case, bridged) == play(case, plain), f"seed {seed}: {case.config}"
