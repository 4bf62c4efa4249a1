"""The terms that a step's cost is a sum of: each a count that follows from the step's shape.

The same functions serve the fit, on columns of measured steps, and the simulator, on one step. A term either
stays the same while a batch decodes on, or grows by the same amount with each step (`kv_tokens`), so that k
steps of an unchanged batch add up in closed form.
"""

from collections.abc import Callable, Mapping
from typing import Any

from sim.lora_grid import EXPAND_TOKENS, SHRINK_RANKS, SHRINK_TOKENS, num_splits

TILE_TOKENS = 64
"""Rows of a matrix product's tile: the cost of a linear layer grows by whole tiles."""
BLOCK_TOKENS = 16
"""Rows that one program of vLLM's LoRA kernels takes (vllm/lora/ops/triton_ops), all of one adapter."""


def _lora(step: Any) -> Any:
    return step.num_adapters > 0


def _blocks(step: Any) -> Any:
    """Blocks of a step whose tokens are dealt out evenly to its adapters."""
    adapters = step.num_adapters
    rows = BLOCK_TOKENS * (adapters + (adapters == 0))
    return -(-step.num_lora_tokens // rows) * adapters


def _tiles(step: Any, size: int) -> Any:
    """Tiles of `size` tokens of one adapter: of decoding requests, dealt out evenly, and of prompts."""
    adapters = step.num_adapters
    decoding = step.num_reqs - step.num_prefill_reqs
    per_adapter = size * (adapters + (adapters == 0))
    return adapters * (-(-decoding // per_adapter) + (decoding == 0)) + (
        (adapters > 0) * (step.num_prefill_tokens // size)
    )


TERMS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "constant": ("a step", lambda step: step.num_reqs > 0),
    "reqs": ("a request", lambda step: step.num_reqs),
    "tokens": ("a token", lambda step: step.num_tokens),
    "padded_tokens": ("a token, padding included", lambda step: step.num_padded_tokens),
    "padded_tiles": (
        f"{TILE_TOKENS} tokens, padding included",
        lambda step: -(-step.num_padded_tokens // TILE_TOKENS),
    ),
    "prefill_reqs": ("a request in prefill", lambda step: step.num_prefill_reqs),
    "attention_work": ("a token of prefill times a token it attends to", lambda step: step.attention_work),
    "kv_tokens": ("a token of context of a decoding request", lambda step: step.kv_tokens),
    "passed_over": ("a waiting request looked at in vain", lambda step: step.num_passed_over),
    "lora_programs": (
        "a thread block that the LoRA kernels launch (sim/lora_grid.py)",
        lambda step: step.num_lora_programs,
    ),
    "expand_tiles": (
        f"{EXPAND_TOKENS} tokens of one adapter, rounded up",
        lambda step: _tiles(step, EXPAND_TOKENS),
    ),
    "shrink_programs": (
        f"{SHRINK_TOKENS} tokens of one adapter times the sum's parts times {SHRINK_RANKS} ranks, rounded up",
        lambda step: (
            _tiles(step, SHRINK_TOKENS)
            * num_splits(step.num_padded_tokens)
            * -(-step.max_lora_rank // SHRINK_RANKS)
        ),
    ),
    "waiting": ("a waiting request", lambda step: step.num_waiting),
    "lora": ("a step with any adapter", lambda step: _lora(step) * 1),
    "lora_padded_tokens": (
        "a token, padding included, with any adapter",
        lambda step: _lora(step) * step.num_padded_tokens,
    ),
    "lora_rank_tokens": (
        "a token, padding included, times max_lora_rank, with any adapter",
        lambda step: _lora(step) * step.num_padded_tokens * step.max_lora_rank,
    ),
    "adapters": ("a distinct adapter", lambda step: step.num_adapters),
    "adapters_rank": (
        "a distinct adapter times max_lora_rank",
        lambda step: step.num_adapters * step.max_lora_rank,
    ),
    "adapter_blocks": (
        f"{BLOCK_TOKENS} tokens of one adapter, its tokens rounded up",
        _blocks,
    ),
    "slots": ("a slot, with any adapter", lambda step: _lora(step) * step.max_loras),
    "slots_tokens": (
        "a slot times a token, padding included, with any adapter",
        lambda step: _lora(step) * step.max_loras * step.num_padded_tokens,
    ),
    "slots_rank": (
        "a slot times max_lora_rank, with any adapter",
        lambda step: _lora(step) * step.max_loras * step.max_lora_rank,
    ),
    "cache_entries_adapters": (
        "an entry of the host cache times a distinct adapter",
        lambda step: step.host_cache_entries * step.num_adapters,
    ),
}
"""Name -> (what one of it is, how many of it a step has)."""
