"""How many thread blocks the LoRA kernels of vLLM 0.8.5 launch in a step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sim.config import EngineConfig, ModelConfig

SHRINK_TOKENS, SHRINK_RANKS = 32, 16
"""Rows and columns of a program of the shrink kernel (vllm/lora/ops/triton_ops/lora_shrink.py, `BLOCK_M`)."""
EXPAND_TOKENS, EXPAND_COLUMNS = 64, 128
"""The same of the expand kernel (lora_expand.py)."""
FEW_TOKENS = 128
"""Steps with fewer tokens split the sum over the hidden size into more parts."""
SPLITS_OF_FEW, SPLITS = 64, 8


def num_splits(num_padded_tokens: Any) -> Any:
    """Return the shrink kernel's `SPLIT_K`, for one step or a column of them."""
    few = num_padded_tokens < FEW_TOKENS
    return SPLITS + (SPLITS_OF_FEW - SPLITS) * few


@dataclass(frozen=True)
class LoraGrid:
    """The grids of a step's LoRA kernels: a program for every slot, also where it holds nothing to do.

    Each layer launches a shrink and an expand kernel for each of its (merged) linear modules. A program whose
    slot has no tokens leaves at once, but it takes its turn, and that is most of what slots cost: vLLM's own
    comment in `lora_shrink.py` calls it wasteful. A kernel takes as long as `floor` programs at least.
    """

    model: ModelConfig
    max_loras: int
    max_lora_rank: int
    floor: int = 0
    _counted: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def num_programs(self, num_padded_tokens: int) -> int:
        """Return the programs of all kernels of a step."""
        counted = self._counted.get(num_padded_tokens)
        if counted is None:
            per_layer = sum(max(self.floor, programs) for programs in self._kernels(num_padded_tokens))
            counted = self._counted[num_padded_tokens] = self.model.num_hidden_layers * per_layer
        return counted

    def _kernels(self, num_padded_tokens: int) -> list[int]:
        slots = self.max_loras + 1  # One stands for tokens without an adapter.
        shrink = -(-num_padded_tokens // SHRINK_TOKENS) * num_splits(num_padded_tokens)
        shrink *= -(-self.max_lora_rank // SHRINK_RANKS)
        expand = -(-num_padded_tokens // EXPAND_TOKENS)
        of_shrink = [slots * num_slices * shrink for num_slices, _ in modules(self.model)]
        of_expand = [slots * num_slices * columns * expand for num_slices, columns in modules(self.model)]
        return of_shrink + of_expand


def num_lora_programs(grid: LoraGrid | None, num_padded_tokens: int, num_adapters: int) -> int:
    """Return the programs of a step; 0 without adapters, and for a profile that does not count them."""
    return 0 if grid is None or not num_adapters else grid.num_programs(num_padded_tokens)


def modules(model: ModelConfig) -> list[tuple[int, int]]:
    """Return slices, and blocks of output columns of the widest, of a layer's merged linear modules."""
    query, key, value, output, gate, up, down = (outputs for _, outputs in model.linear_shapes())
    merged = ((query, key, value), (output,), (gate, up), (down,))
    return [(len(slices), -(-max(slices) // EXPAND_COLUMNS)) for slices in merged]


def lora_grid(profile: Mapping[str, Any], model: ModelConfig, engine: EngineConfig) -> LoraGrid | None:
    """Return the grid for a profile that says how many programs a kernel takes the time of at least."""
    floor = profile.get("lora_kernel_floor")
    return None if floor is None else LoraGrid(model, engine.max_loras, engine.max_lora_rank, int(floor))
