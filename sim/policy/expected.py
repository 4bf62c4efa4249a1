"""What things are expected to take, for policies: the means of a profile."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sim.config import EngineConfig, ModelConfig
from sim.costs import FS_PER_NS, CostModel, StepShape
from sim.cudagraph import CudaGraphs
from sim.lora_grid import LoraGrid, Step, num_lora_programs


@dataclass(eq=False)
class ExpectedCosts:
    """`policies.view.Costs` of one engine, from the cost model that the engine itself draws from."""

    engine: EngineConfig
    model: ModelConfig
    costs: CostModel
    ranks: Mapping[str, int]
    """Of the adapters whose rank is not `max_lora_rank`."""
    host_cache: Collection[str]
    """The adapters that are in the host cache at the time."""
    lora_grid: LoraGrid | None = None

    def __post_init__(self) -> None:
        self._graphs = CudaGraphs(self.engine)
        self._steps: dict[tuple[int, int, int], int] = {}

    def load_ns(self, adapter: str) -> int:
        """Mean time of a load; as long as the host cache is not full it grows, which takes longer."""
        grows = len(self.host_cache) < self.engine.host_cache_entries
        return self.costs.mean_load_ns(grows, self._rank(adapter))

    def activate_ns(self, adapter: str) -> int:
        """Mean time of an activation."""
        return self.costs.mean_activate_ns(self._rank(adapter))

    def step_ns(self, num_reqs: int, num_adapters: int, num_prefill_tokens: int = 0) -> int:
        """Time of a step whose batch has changed, so that host and GPU work one after the other.

        One of the requests has all the prompt tokens; their contexts cost nothing here.
        """
        key = num_reqs, num_adapters, num_prefill_tokens
        if key not in self._steps:
            cost = self.costs.step(self._shape(*key))
            host_ns = cost.remap_ns + cost.update_ns
            self._steps[key] = host_ns + max(cost.launch_ns, cost.gpu_fs // FS_PER_NS)
        return self._steps[key]

    def size_bytes(self, adapter: str) -> int:
        """Bytes of the adapter's weights."""
        return self.model.lora_bytes(self._rank(adapter))

    def _rank(self, adapter: str) -> int:
        return self.ranks.get(adapter, self.engine.max_lora_rank)

    def _shape(self, num_reqs: int, num_adapters: int, num_prefill_tokens: int) -> StepShape:
        num_prefill_reqs = min(num_prefill_tokens, 1)
        num_tokens = num_reqs - num_prefill_reqs + num_prefill_tokens
        longest = max(num_prefill_tokens, 1)
        graph = self._graphs.choose(num_reqs, num_tokens, longest, num_adapters)
        return StepShape(
            graph=graph.mode,
            num_padded_tokens=graph.num_padded_tokens,
            num_reqs=num_reqs,
            num_tokens=num_tokens,
            num_prefill_tokens=num_prefill_tokens,
            num_prefill_reqs=num_prefill_reqs,
            attention_work=num_prefill_tokens * num_prefill_tokens // 2,
            kv_tokens=0,
            num_adapters=num_adapters,
            num_lora_tokens=num_tokens if num_adapters else 0,
            num_waiting=0,
            host_cache_entries=len(self.host_cache),
            max_loras=self.engine.max_loras,
            max_lora_rank=self.engine.max_lora_rank,
            num_lora_programs=num_lora_programs(
                self.lora_grid,
                Step(
                    graph.num_padded_tokens,
                    num_adapters,
                    num_reqs - num_prefill_reqs,
                    num_prefill_tokens,
                ),
            ),
            num_passed_over=0,
        )
