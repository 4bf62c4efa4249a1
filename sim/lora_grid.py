"""How many thread blocks the LoRA kernels of vLLM 0.8.5 launch in a step, and how long they take together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from sim.config import EngineConfig, ModelConfig
from sim.fields import as_mapping, build, require_positive
from sim.terms import EXPAND_TOKENS, FEW_TOKENS, SHRINK_TOKENS

SHRINK_RANKS = 16
"""Ranks of a block of the shrink kernel (vllm/lora/ops/triton_ops/lora_shrink.py, `BLOCK_N`)."""
EXPAND_COLUMNS, EXPAND_RANKS = 128, 16
"""Output columns of a block of the expand kernel, and the ranks that it sums over in one iteration
(lora_expand.py)."""


class Split(NamedTuple):
    """How the shrink kernel deals out its sum over the inputs."""

    parts: int
    """Blocks that share a sum (`SPLIT_K`); those beyond the inputs load nothing."""
    inputs: int
    """That a block takes in one iteration (`BLOCK_K`)."""


SPLIT_OF_FEW, SPLIT = Split(64, 256), Split(8, 32)
"""Of steps with fewer tokens than FEW_TOKENS, and of the others."""
CACHE_BYTES = 50_000_000
"""L2 cache of an H100 (NVIDIA H100 Tensor Core GPU Architecture, 2022)."""
OUTPUT_BYTES = 2
"""Of a number in bfloat16."""


def split(num_padded_tokens: int) -> Split:
    """Return how the shrink kernels of a step deal out their sums."""
    return SPLIT_OF_FEW if num_padded_tokens < FEW_TOKENS else SPLIT


class Blocks(NamedTuple):
    """The thread blocks of one kernel, by what they find to do."""

    idle: int
    """Their slot has no adapter in this step, or no tokens or columns for them."""
    working: int
    iterations: int
    """Of the working ones' loops, all together. Blocks of the shrink kernel that differ only in their ranks
    load the same inputs side by side, and count once."""


@dataclass(frozen=True)
class BlockTimes:
    """How long thread blocks take, each in the time of an idle one (`Blocks`).

    Blocks run side by side, so that a kernel with few takes the latency of one, and not the sum; one with
    many takes the sum, and half a latency more in which the GPU empties. A working block looks up its tokens
    and weights, and writes its part of the result, however many iterations it has.
    """

    latency: float = 0.0
    """What a kernel takes at least."""
    working: float = 1.0
    iteration: float = 0.0
    spilled: float = 0.0
    """For each KB by which a module's outputs exceed the GPU's L2 cache (CACHE_BYTES). The expand kernel adds
    to what the base layer has written; what no longer is in the cache comes from memory, and goes there."""

    def __post_init__(self) -> None:
        require_positive("profile.lora_kernels", self, "working")


class Step(NamedTuple):
    """What the grids of a step depend on. Its decoding requests are dealt out evenly to its adapters."""

    num_padded_tokens: int
    num_adapters: int
    num_decodes: int
    num_prefill_tokens: int

    def num_tiles(self, size: int) -> int:
        """Return the tiles of `size` tokens of one adapter: decoding requests', and full ones of prompts."""
        of_decodes = max(1, -(-self.num_decodes // (size * self.num_adapters)))
        return self.num_adapters * of_decodes + self.num_prefill_tokens // size


class Grid(NamedTuple):
    """One kernel's blocks, for each tile."""

    launched: int
    """Of a slot."""
    working: int
    """Of a tile that has tokens."""
    iterations: int
    """Of these, all together."""

    def blocks(self, num_slots: int, num_tiles: int, num_used: int) -> Blocks:
        """Return the blocks of a step with so many tiles for each slot, and so many with tokens."""
        working = self.working * num_used
        return Blocks(num_slots * self.launched * num_tiles - working, working, self.iterations * num_used)

    def extra(self, times: BlockTimes) -> float:
        """Return by how much a tile that has tokens takes longer than an idle one."""
        return (times.working - 1) * self.working + times.iteration * self.iterations


class Module(NamedTuple):
    """A merged linear module of a layer."""

    num_slices: int
    num_inputs: int
    widest: int
    """Blocks of EXPAND_COLUMNS of its widest slice; the kernel launches as many for each."""
    columns: int
    """Blocks of EXPAND_COLUMNS of all its slices."""
    token_bytes: int
    """All its outputs for a token."""


@dataclass(frozen=True)
class LoraGrid:
    """The grids of a step's LoRA kernels: blocks for every slot, also where there is nothing to do.

    Each layer launches a shrink and an expand kernel for each of its (merged) linear modules. A block whose
    slot has no tokens leaves at once, but it takes its turn, and that is most of what slots cost: vLLM's own
    comment in `lora_shrink.py` calls it wasteful.
    """

    model: ModelConfig
    max_loras: int
    max_lora_rank: int
    times: BlockTimes = BlockTimes()
    _counted: dict[Step, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def num_programs(self, step: Step) -> int:
        """Return how many idle blocks take as long as all LoRA kernels of a step."""
        counted = self._counted.get(step)
        if counted is None:
            latency = self.times.latency
            total = self.times.spilled * self.spilled_kb(step.num_padded_tokens)
            for costs, (tiles, used) in zip(
                self._costs[split(step.num_padded_tokens)], self._tiles(step), strict=True
            ):
                for of_tile, of_used in costs:
                    total += max(latency, latency / 2 + of_tile * tiles + of_used * used)
            counted = self._counted[step] = round(self.model.num_hidden_layers * total)
        return counted

    def spilled_kb(self, num_padded_tokens: int) -> float:
        """Return the KB of a layer's outputs that are beyond the cache, each module by itself."""
        outputs = (num_padded_tokens * token_bytes for token_bytes in self._token_bytes)
        return sum(max(size - CACHE_BYTES, 0) for size in outputs) / 1e3

    def kernels(self, step: Step) -> list[Blocks]:
        """Return the blocks of a layer's kernels: shrink of each module, then expand of each."""
        return [
            grid.blocks(self.max_loras + 1, tiles, used)
            for grids, (tiles, used) in zip(
                self._grids[split(step.num_padded_tokens)], self._tiles(step), strict=True
            )
            for grid in grids
        ]

    def _tiles(self, step: Step) -> list[tuple[int, int]]:
        """Return for shrink and expand the tiles of a slot's grid, and those with tokens in all slots."""
        step = step._replace(num_adapters=min(step.num_adapters, self.max_loras))
        found = []
        for size in (SHRINK_TOKENS, EXPAND_TOKENS):
            tiles = -(-step.num_padded_tokens // size)
            found.append((tiles, min(step.num_tiles(size), (self.max_loras + 1) * tiles)))
        return found

    @cached_property
    def _token_bytes(self) -> list[int]:
        """A token's outputs of each module."""
        return [module.token_bytes for module in modules(self.model)]

    @cached_property
    def _grids(self) -> dict[Split, tuple[list[Grid], list[Grid]]]:
        """The kernels of a layer, shrink and expand."""
        expand_iterations = -(-self.max_lora_rank // EXPAND_RANKS)
        found = {}
        for of_sum in (SPLIT_OF_FEW, SPLIT):
            shrink, expand = [], []
            for module in modules(self.model):
                sums = module.num_slices * -(-self.max_lora_rank // SHRINK_RANKS)
                iterations = -(-module.num_inputs // of_sum.inputs)
                working = sums * min(of_sum.parts, iterations)
                shrink.append(Grid(sums * of_sum.parts, working, module.num_slices * iterations))
                launched = module.num_slices * module.widest
                expand.append(Grid(launched, module.columns, module.columns * expand_iterations))
            found[of_sum] = shrink, expand
        return found

    @cached_property
    def _costs(self) -> dict[Split, list[list[tuple[float, float]]]]:
        """What a tile of a slot's grid and one with tokens take, of each kernel."""
        slots, times = self.max_loras + 1, self.times
        return {
            of_sum: [[(slots * grid.launched, grid.extra(times)) for grid in grids] for grids in of_kinds]
            for of_sum, of_kinds in self._grids.items()
        }


def num_lora_programs(grid: LoraGrid | None, step: Step) -> int:
    """Return `LoraGrid.num_programs`; 0 without adapters, and for a profile that does not count them."""
    return 0 if grid is None or not step.num_adapters else grid.num_programs(step)


def modules(model: ModelConfig) -> list[Module]:
    """Return a layer's merged linear modules."""
    query, key, value, output, gate, up, down = model.linear_shapes()
    found = []
    for slices in ((query, key, value), (output,), (gate, up), (down,)):
        blocks = [-(-outputs // EXPAND_COLUMNS) for _, outputs in slices]
        token_bytes = OUTPUT_BYTES * sum(outputs for _, outputs in slices)
        found.append(Module(len(slices), slices[0][0], max(blocks), sum(blocks), token_bytes))
    return found


def lora_grid(profile: Mapping[str, Any], model: ModelConfig, engine: EngineConfig) -> LoraGrid | None:
    """Return the grid for a profile that says how long blocks take (`lora_kernels`). Raises UserError."""
    settings = profile.get("lora_kernels")
    if settings is None:
        return None
    times = build(BlockTimes, as_mapping(settings, "profile.lora_kernels"), "profile.lora_kernels")
    return LoraGrid(model, engine.max_loras, engine.max_lora_rank, times)
