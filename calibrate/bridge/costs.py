"""What policies in a real engine believe things to cost: the means of a profile."""

from collections.abc import Callable, Mapping
from typing import Any

from sim.config import EngineConfig
from sim.costs import FS_PER_NS, ConstantCosts, CostModel, StepShape
from sim.cudagraph import CudaGraphs
from sim.errors import UserError
from sim.fields import as_mapping
from sim.profile import NS_PER_MS, FittedCosts

AdapterSize = Callable[[str], int]


class ProfileCosts:
    """A `policies.view.Costs`: means of the profile's swaps, and the time of a step of a given shape.

    `rank` and `size_bytes` answer for an adapter by its key. A load is taken to use memory again that an
    adapter has left, as it does once the host cache has been full.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        engine: EngineConfig,
        rank: AdapterSize,
        size_bytes: AdapterSize,
    ) -> None:
        self._model, self._swaps = _read(settings)
        self._engine, self._graphs = engine, CudaGraphs(engine)
        self._rank, self._size_bytes = rank, size_bytes

    def load_ns(self, adapter: str) -> int:
        """Mean time of one load."""
        return self._swap_ns("load_recycled", adapter)

    def activate_ns(self, adapter: str) -> int:
        """Mean time of one activation."""
        return self._swap_ns("activate", adapter)

    def step_ns(self, num_reqs: int, num_adapters: int, num_prefill_tokens: int = 0) -> int:
        """Time of a step; the context of its requests, which nobody has told us, is left out.

        With asynchronous scheduling the host's share hides behind the GPU's, or the other way round.
        """
        cost = self._model.step(self._shape(num_reqs, num_adapters, num_prefill_tokens))
        host_ns = cost.schedule_ns + cost.prepare_ns + cost.launch_ns + cost.update_ns
        gpu_ns = cost.gpu_fs // FS_PER_NS
        return max(host_ns, gpu_ns) if self._engine.async_scheduling else host_ns + gpu_ns

    def size_bytes(self, adapter: str) -> int:
        """What the adapter takes of the host cache."""
        return self._size_bytes(adapter)

    def _swap_ns(self, kind: str, adapter: str) -> int:
        constant_ns, rank_ns = self._swaps[kind]
        return round(constant_ns + rank_ns * self._rank(adapter))

    def _shape(self, num_reqs: int, num_adapters: int, num_prefill_tokens: int) -> StepShape:
        num_prefill_reqs = min(num_reqs, 1 if num_prefill_tokens else 0)
        num_tokens = num_reqs - num_prefill_reqs + num_prefill_tokens
        most = max(1, num_prefill_tokens)
        num_adapters = min(num_adapters, self._engine.max_loras)
        graph = self._graphs.choose(num_reqs, num_tokens, most, num_adapters)
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
            host_cache_entries=self._engine.host_cache_entries,
            max_loras=self._engine.max_loras,
            max_lora_rank=self._engine.max_lora_rank,
        )


def _read(settings: Mapping[str, Any]) -> tuple[CostModel, dict[str, tuple[float, float]]]:
    """Return the model of steps, and of each kind of swap the mean in ns: a constant, and for each rank."""
    kind = settings.get("kind")
    if kind == "constant":
        nothing = dict.fromkeys(("load_recycled", "activate"), (0.0, 0.0))
        return ConstantCosts(float(settings.get("step_ms", 1.0))), nothing
    if kind != "fitted":
        raise UserError(f"profile: kind {kind!r}: expected constant or fitted")
    model = FittedCosts(settings, ranges={}, seed=0)  # Which checks the settings too.
    swaps, scales = as_mapping(settings["swaps"], "swaps"), as_mapping(settings["host_scale"], "host_scale")
    factors = {"load_recycled": scales["load"], "activate": scales["activate"]}
    return model, {
        name: (
            swaps[name]["constant_ms"] * NS_PER_MS * factor,
            swaps[name]["rank_ms"] * NS_PER_MS * factor,
        )
        for name, factor in factors.items()
    }
