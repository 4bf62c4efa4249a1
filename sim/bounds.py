"""References: what the policies reach on an engine to which adapters cost less than they do.

`throughput`: loads and activations are free, a step costs as if all its LoRA tokens were of one adapter, and
may hold any number of adapters; KV blocks have the room of all slots but one. `latency`: only loads and
activations are free. Each is one order of admission, that of the policy that it runs with, and another order
may do better in a window of finite length, or by goodput; what nothing exceeds is in sim.ceiling.
"""

from collections.abc import Collection
from dataclasses import replace

from sim.adapters import AdapterEvent, AdapterTiers
from sim.config import EngineConfig
from sim.costs import CostModel, StepCost, StepShape
from sim.lora_grid import LoraGrid


class FreeSwaps:
    """A cost model whose loads and activations take no time."""

    def __init__(self, costs: CostModel) -> None:
        self._costs = costs

    def step(self, shape: StepShape) -> StepCost:
        """As it is."""
        return self._costs.step(shape)

    def load_ns(self, grows: bool, rank: int) -> int:
        """Return 0."""
        return 0

    def activate_ns(self, rank: int) -> int:
        """Return 0."""
        return 0

    def copy_ns(self, rank: int) -> int:
        """Return 0."""
        return 0

    def mean_load_ns(self, grows: bool, rank: int) -> int:
        """Return 0."""
        return 0

    def mean_activate_ns(self, rank: int) -> int:
        """Return 0."""
        return 0


class OneAdapter(FreeSwaps):
    """A cost model to which a step's adapters, and the queue behind them, are one and none."""

    def step(self, shape: StepShape) -> StepCost:
        """What the step costs with one adapter, alone in the host cache, in one slot (`bounded_grid`)."""
        num_adapters = min(1, shape.num_adapters)
        return self._costs.step(
            replace(
                shape,
                num_adapters=num_adapters,
                num_waiting=0,
                num_passed_over=0,
                host_cache_entries=num_adapters,
                max_loras=1,
            )
        )


class NoTiers(AdapterTiers):
    """Every adapter is where it is needed."""

    def apply(self, adapters: Collection[str]) -> list[AdapterEvent]:
        """Nothing happens."""
        return []

    def repeat(self, adapters: Collection[str], num_steps: int, last_ns: int) -> None:
        """Nothing happens."""


def bounded_costs(bound: str | None, costs: CostModel) -> CostModel:
    """Return the cost model of a bound, or `costs` itself."""
    if bound is None:
        return costs
    return OneAdapter(costs) if bound == "throughput" else FreeSwaps(costs)


def bounded_grid(bound: str | None, grid: LoraGrid | None) -> LoraGrid | None:
    """Return the LoRA kernels' grid for a bound: to that of the throughput there is one slot."""
    return grid if grid is None or bound != "throughput" else replace(grid, max_loras=1)


def bounded_memory(bound: str | None, config: EngineConfig) -> EngineConfig:
    """Return the settings by which memory is dealt out for a bound: to that of the throughput, one slot."""
    if bound != "throughput":
        return config
    return replace(config, max_loras=1, initial_slots=[], initial_host_cache=[])


def bounded_config(bound: str | None, config: EngineConfig, num_adapters: int) -> EngineConfig:
    """Return the settings for a bound's scheduler: to that of the throughput, slots are no limit."""
    if bound != "throughput":
        return config
    slots = max(config.max_loras, num_adapters)
    return replace(config, max_loras=slots, max_cpu_loras=max(config.host_cache_entries, slots))
