"""PolicyWorkerLoRAManager: with LRU against plain vLLM, with other policies against the simulator."""

import logging
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from calibrate.bridge.settings import PolicySettings
from tests.conformance.odd_policies import AnyVictim
from tests.conformance.tiers import OurTiers, draw_case, play
from tests.conformance.vllm_bridge import BridgedTiers
from tests.conformance.vllm_scheduler import base_config
from tests.conformance.vllm_tiers import TheirTiers

NUM_CASES = 100
POLICIES = sorted({path.stem for path in Path("conf/eviction").glob("*.yaml")} - {"belady"})
"""All but the bound, which needs to know the future."""
ODD = "tests.conformance.odd_policies."


@pytest.fixture(scope="session")
def vllm_config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return base_config(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("settings", [None, {}], ids=["off", "lru"])
def test_plain_vllm(vllm_config: Any, settings: Any) -> None:
    for seed in range(NUM_CASES):
        case = draw_case(random.Random(seed))
        bridged = BridgedTiers(case, vllm_config, settings)
        assert play(case, bridged) == play(case, TheirTiers(case)), f"seed {seed}"


def test_a_policy_sees_and_decides_what_it_does_in_the_simulator(vllm_config: Any) -> None:
    for seed in range(NUM_CASES):
        case = draw_case(random.Random(seed))
        AnyVictim.logs.clear()
        settings = {"eviction": {"_target_": ODD + "AnyVictim", "seed": seed}}
        theirs = play(case, BridgedTiers(case, vllm_config, settings))
        ours = play(case, OurTiers(case, AnyVictim(seed), AnyVictim(seed)))
        assert theirs == ours, f"seed {seed}"
        assert AnyVictim.logs[:2] == AnyVictim.logs[2:], f"seed {seed}"


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_that_we_ship(vllm_config: Any, name: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"eviction": yaml.safe_load(Path(f"conf/eviction/{name}.yaml").read_text())}
    for seed in range(NUM_CASES // 2):
        case = draw_case(random.Random(seed))
        bridged = BridgedTiers(case, vllm_config, settings)
        session, policies = bridged.session, PolicySettings.from_mapping(settings)
        assert session is not None
        session.engine._clock = lambda: 0
        slots, host = policies.make_eviction({}), policies.make_host_eviction({})
        slots.bind(session.slots)
        host.bind(session.host)
        assert play(case, bridged) == play(case, OurTiers(case, slots, host)), f"seed {seed}"
    assert "policy failed" not in caplog.text


@pytest.mark.parametrize("kind", ["on_access", "on_remove", "victim", "absent", "used", "nonsense"])
def test_a_policy_that_fails_leaves_the_tier_to_lru(
    vllm_config: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    failures = 0
    for seed in range(60):
        caplog.clear()
        case = draw_case(random.Random(seed))
        section = {"_target_": ODD + "BadVictim", "kind": kind, "after": 1 + seed % 3}
        settings = {"eviction": section, "host_eviction": {"_target_": "policies.eviction.Lru"}}
        bridged = BridgedTiers(case, vllm_config, settings)
        with caplog.at_level(logging.ERROR, "vllm.lorasim"):
            answers = play(case, bridged)
        for step, answer in zip(case.steps, answers, strict=True):
            assert set(step) <= set(answer["slots"]), f"seed {seed}: what the step needs has a slot"
        said = [record for record in caplog.records if "GPU slots" in record.getMessage()]
        assert len(said) <= 1, "it is said once"
        failures += len(said)
    assert failures > 10
