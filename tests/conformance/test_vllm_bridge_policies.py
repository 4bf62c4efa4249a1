"""Every admission policy that we ship, in vLLM's scheduler and in the simulator's: the same step plans."""

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from calibrate.bridge.costs import AdapterSizes, expected_costs
from calibrate.bridge.settings import PolicySettings
from sim.policy.view import LiveEngine
from tests.conformance.scheduling import Case, Ours, play
from tests.conformance.test_vllm_bridge_scheduler import draw
from tests.conformance.vllm_bridge import BridgedScheduler
from tests.conformance.vllm_scheduler import base_config

NUM_CASES = 40
STEP_NS = 20_000_000
"""On the clock of both, which goes on with each schedule."""
CONSTANT = {"kind": "constant", "step_ms": 20.0}
POLICIES = sorted(path.stem for path in Path("conf/admission").glob("*.yaml"))


@pytest.fixture(scope="session")
def vllm_config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return base_config(tmp_path_factory.mktemp("model"))


def costs(case: Case) -> Any:
    return expected_costs(CONSTANT, case.config, AdapterSizes(lambda key: 16, 1.0), ())


class OurEngine(Ours):
    """The simulator's scheduler, in whose view the policy is at home."""

    def __init__(self, case: Case, settings: PolicySettings) -> None:
        super().__init__(case.config, admission=settings.make_admission(asdict(case.config)))
        self.env = SimpleNamespace(now=0)
        tiers = SimpleNamespace(slots={}, host_cache=set())
        future = SimpleNamespace(next_arrival_ns=lambda adapter, now_ns: float("inf"))
        engine = LiveEngine(self.env, case.config, self.scheduler, tiers, costs(case), future)  # type: ignore[arg-type]
        self.scheduler.admission.bind(engine)

    def schedule(self) -> Any:
        self.env.now += STEP_NS
        return super().schedule()


class TheirEngine(BridgedScheduler):
    """vLLM's, with the clock and the costs of ours."""

    def __init__(self, case: Case, vllm_config: Any, settings: Any, v2_model_runner: bool) -> None:
        super().__init__(case.config, vllm_config, settings, v2_model_runner)
        session, self.now_ns = self.scheduler._session, 0
        session.engine._clock = lambda: self.now_ns
        session.engine._costs = costs(case)
        describe = session.describe
        session.describe = lambda request: replace(describe(request), arrival_ns=int(request.arrival_time))

    def schedule(self) -> Any:
        self.now_ns += STEP_NS
        return super().schedule()


@pytest.mark.parametrize("name", POLICIES)
def test_step_plans(vllm_config: Any, name: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"admission": yaml.safe_load(Path(f"conf/admission/{name}.yaml").read_text())}
    for seed in range(NUM_CASES):
        case, v2 = draw(seed)
        theirs = TheirEngine(case, vllm_config, settings, v2)
        ours = OurEngine(case, PolicySettings.from_mapping(settings))
        assert play(case, theirs) == play(case, ours), f"seed {seed}: {case.config}"
    assert "policy failed" not in caplog.text
