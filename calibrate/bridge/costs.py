"""What policies in a real engine believe things to cost: the means of a profile."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sim.config import EngineConfig
from sim.costs import ConstantCosts, CostModel
from sim.errors import UserError
from sim.policy.expected import ExpectedCosts
from sim.profile import FittedCosts


@dataclass(frozen=True)
class AdapterSizes:
    """Ranks and sizes of adapters, in the form in which `sim.policy.expected` asks for them."""

    rank: Callable[[str], int]
    bytes_per_rank: float

    def get(self, adapter: str, default: int) -> int:
        """Rank of an adapter."""
        return self.rank(adapter)

    def lora_bytes(self, rank: int) -> int:
        """Bytes of an adapter of this rank."""
        return round(rank * self.bytes_per_rank)


def expected_costs(
    settings: Mapping[str, Any], engine: EngineConfig, sizes: AdapterSizes, host_cache: Collection[str]
) -> ExpectedCosts:
    """Return the simulator's `policies.view.Costs` of a profile; raises UserError for what is none."""
    return ExpectedCosts(engine, sizes, _cost_model(settings), sizes, host_cache)  # type: ignore[arg-type]


def _cost_model(settings: Mapping[str, Any]) -> CostModel:
    kind = settings.get("kind")
    if kind == "constant":
        return ConstantCosts(float(settings.get("step_ms", 1.0)))
    if kind == "fitted":
        return FittedCosts(settings, ranges={}, seed=0)
    raise UserError(f"profile: kind {kind!r}: expected constant or fitted")
