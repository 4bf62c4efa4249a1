"""What an engine step costs: the shape that a cost model is asked about, its answer, the constant model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

FS_PER_NS = 10**6
GRAPHS = ("full", "piecewise", "none")
"""How a step may be launched (vLLM's CUDAGraphMode)."""
Durations = tuple[Mapping[str, int], ...]
"""Of each duration of `StepCost`, in its order, the terms (sim.terms), and what one of them costs, in fs."""


@dataclass(slots=True)
class StepShape:
    """Everything about a step that its cost may depend on; all counts, so that a step's cost is a pure
    function of it.

    `attention_work` sums n * (context + n / 2) over the prefill chunks of n tokens, in tokens squared;
    `kv_tokens` sums the context length after the step over the requests that decode one token.
    """

    graph: str
    """How the step is launched: `full`, `piecewise` or `none` (vLLM's CUDAGraphMode)."""
    num_padded_tokens: int
    num_reqs: int
    num_tokens: int
    num_prefill_tokens: int
    num_prefill_reqs: int
    attention_work: int
    kv_tokens: int
    num_adapters: int
    num_lora_tokens: int
    num_waiting: int
    host_cache_entries: int
    max_loras: int
    max_lora_rank: int
    num_lora_programs: int = 0
    """How many thread blocks without work take as long as the LoRA kernels, where a profile counts them
    (sim.lora_grid).
    """
    num_passed_over: int = 0
    """Waiting requests that were looked at in vain, where the admission policy counts them (vLLM 0.8.5's)."""

    def with_kv_tokens(self, kv_tokens: int) -> "StepShape":
        """Return the shape of a step that is alike otherwise."""
        return StepShape(
            self.graph,
            self.num_padded_tokens,
            self.num_reqs,
            self.num_tokens,
            self.num_prefill_tokens,
            self.num_prefill_reqs,
            self.attention_work,
            kv_tokens,
            self.num_adapters,
            self.num_lora_tokens,
            self.num_waiting,
            self.host_cache_entries,
            self.max_loras,
            self.max_lora_rank,
            self.num_lora_programs,
            self.num_passed_over,
        )


class StepCost(NamedTuple):
    """Durations of a step's phases in ns, on two timelines: the engine's host thread and the GPU."""

    schedule_ns: int
    """Host: schedule, and prepare inputs up to the step's adapters, which are loaded and activated then."""
    prepare_ns: int
    """Host: from there to the first launch, when the batch's LoRA mapping is that of the step before."""
    remap_ns: int
    """Host: the same when the mapping is another one. vLLM writes it with blocking copies, so this begins
    only when the GPU has finished the step before.
    """
    launch_ns: int
    """Host: launch the step's kernels. The GPU works on what is launched already, but can not end before the
    launches do.
    """
    gpu_fs: int
    """GPU: the step's work when every kernel is there in time, in fs. The engine counts whole ns and carries
    the rest over to the next step, so that the times of many steps add up exactly.
    """
    update_ns: int
    """Host: take over the results, between the GPU's end and the tokens being known."""
    gpu_growth_fs: int = 0
    """By how much `gpu_fs` grows with each further step of the same requests that decode a token each: the
    only thing that changes then.
    """

    def with_gpu_fs(self, gpu_fs: int) -> "StepCost":
        """Return the cost of a step that is alike otherwise."""
        schedule_ns, prepare_ns, remap_ns, launch_ns, _, update_ns, gpu_growth_fs = self
        return StepCost(schedule_ns, prepare_ns, remap_ns, launch_ns, gpu_fs, update_ns, gpu_growth_fs)

    def slowed(self, host_factor: float) -> "StepCost":
        """Return the cost of the step where the host's phases take `host_factor` times as long."""
        return StepCost(
            round(self.schedule_ns * host_factor),
            round(self.prepare_ns * host_factor),
            round(self.remap_ns * host_factor),
            round(self.launch_ns * host_factor),
            self.gpu_fs,
            round(self.update_ns * host_factor),
            self.gpu_growth_fs,
        )


class CostModel(Protocol):
    """What the engine asks a profile."""

    def step(self, shape: StepShape) -> StepCost:
        """Cost of one engine step of this shape."""
        ...

    def load_ns(self, grows: bool, rank: int) -> int:
        """Host time of one load of an adapter of `rank` from disk to the host cache; drawn anew for each.

        `grows`: the host cache holds more adapters than ever before, so that pinned memory must be allocated;
        else the memory of an adapter that has left is used again.
        """
        ...

    def activate_ns(self, rank: int) -> int:
        """Host time of one activation of an adapter of `rank`, from the host cache to a GPU slot."""
        ...

    def copy_ns(self, rank: int) -> int:
        """GPU time of the copy that an activation starts, in line with the steps; 0: the host is slower."""
        ...

    def mean_load_ns(self, grows: bool, rank: int) -> int:
        """Mean of what `load_ns` draws."""
        ...

    def mean_activate_ns(self, rank: int) -> int:
        """Mean of what `activate_ns` draws."""
        ...


class ConstantCosts:
    """Every step lasts `step_ms` milliseconds on the GPU; swaps and all host work cost nothing."""

    def __init__(self, step_ms: float) -> None:
        gpu_fs = round(step_ms * 1e6) * FS_PER_NS
        self._cost = StepCost(0, 0, 0, 0, gpu_fs, update_ns=0)
        durations: Durations = ({}, {}, {}, {}, {"constant": gpu_fs}, {}, {})
        self.coefficients = dict.fromkeys(GRAPHS, durations)
        """As those of `sim.profile.FittedCosts`."""

    def step(self, shape: StepShape) -> StepCost:
        """Return the constant cost."""
        return self._cost

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

    def note_seen(self, seen: Mapping[str, tuple[int, int]]) -> None:
        """Nothing was measured that a step could be outside of."""
