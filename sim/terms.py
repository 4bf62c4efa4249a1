"""The terms that a step's cost is a sum of: each a count that follows from the step's shape.

Each is written down once, as an expression of a step's counts (`sim.costs.StepShape`). The fit evaluates it
on columns of measured steps, and the simulator, many expressions in one function, on one step. A term either
stays the same while a batch decodes on, or grows by the same amount with each step (`kv_tokens`), so that k
steps of an unchanged batch add up in closed form.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

TILE_TOKENS = 64
"""Rows of a matrix product's tile: the cost of a linear layer grows by whole tiles."""
BLOCK_TOKENS = 16
"""Rows of a matrix product's smallest tile."""
SHRINK_TOKENS, EXPAND_TOKENS = 32, 64
"""Rows of one adapter that a block of vLLM's LoRA kernels takes (vllm/lora/ops/triton_ops/utils.py,
`get_lora_op_configs`)."""
FEW_TOKENS = 128
"""In steps with fewer tokens the shrink kernel deals out each sum to 64 blocks, in others to 8."""

LORA = "(num_adapters > 0)"
TILES = f"-(-num_padded_tokens // {TILE_TOKENS})"
FEW, MANY = f"({FEW_TOKENS} > num_padded_tokens)", f"(num_padded_tokens > {FEW_TOKENS - 1})"


def _blocks(num_tokens: int) -> str:
    """Blocks of so many tokens, in a step whose tokens are dealt out evenly to its adapters."""
    return f"-(-num_lora_tokens // ({num_tokens} * (num_adapters + (num_adapters == 0)))) * num_adapters"


def _slot_blocks(num_tokens: int) -> str:
    """Blocks of so many tokens that are launched for all slots."""
    return f"{LORA} * max_loras * -(-num_padded_tokens // {num_tokens})"


@dataclass(frozen=True)
class Term:
    """One term of a cost."""

    unit: str
    """What one of it is."""
    expression: str
    """How many of it a step has, in the names of `StepShape`."""

    @cached_property
    def count(self) -> Callable[[Any], Any]:
        """The function that evaluates the expression for a step, or for a table of steps."""
        return _function(f"1 * ({self.expression})", {})


TERMS: Mapping[str, Term] = {
    "constant": Term("a step", "(num_reqs > 0)"),
    "reqs": Term("a request", "num_reqs"),
    "tokens": Term("a token", "num_tokens"),
    "padded_tokens": Term("a token, padding included", "num_padded_tokens"),
    "padded_tiles": Term(f"{TILE_TOKENS} tokens, padding included", TILES),
    "prefill_reqs": Term("a request in prefill", "num_prefill_reqs"),
    "attention_work": Term("a token of prefill times a token it attends to", "attention_work"),
    "kv_tokens": Term("a token of context of a decoding request", "kv_tokens"),
    "waiting": Term("a waiting request", "num_waiting"),
    "passed_over": Term("a waiting request looked at in vain", "num_passed_over"),
    "lora": Term("a step with any adapter", LORA),
    "lora_padded_tokens": Term("a token, padding included, with any adapter", f"{LORA} * num_padded_tokens"),
    "lora_rank_tokens": Term(
        "a token, padding included, times max_lora_rank, with any adapter",
        f"{LORA} * num_padded_tokens * max_lora_rank",
    ),
    "adapters": Term("a distinct adapter", "num_adapters"),
    "adapters_rank": Term("a distinct adapter times max_lora_rank", "num_adapters * max_lora_rank"),
    "adapter_blocks": Term(
        f"{BLOCK_TOKENS} tokens of one adapter, its tokens rounded up", _blocks(BLOCK_TOKENS)
    ),
    "slots": Term("a slot, with any adapter", f"{LORA} * max_loras"),
    "slots_tokens": Term(
        "a slot times a token, padding included, with any adapter", f"{LORA} * max_loras * num_padded_tokens"
    ),
    "slots_rank": Term("a slot times max_lora_rank, with any adapter", f"{LORA} * max_loras * max_lora_rank"),
    "lora_many": Term(f"a step of {FEW_TOKENS} or more tokens with any adapter", f"{MANY} * {LORA}"),
    "adapters_rank_few": Term(
        f"a distinct adapter times max_lora_rank, below {FEW_TOKENS} tokens",
        f"{FEW} * num_adapters * max_lora_rank",
    ),
    "shrink_blocks": Term(f"{SHRINK_TOKENS} tokens of one adapter, rounded up", _blocks(SHRINK_TOKENS)),
    "shrink_blocks_few": Term(f"the same, below {FEW_TOKENS} tokens", f"{FEW} * ({_blocks(SHRINK_TOKENS)})"),
    "expand_blocks": Term(f"{EXPAND_TOKENS} tokens of one adapter, rounded up", _blocks(EXPAND_TOKENS)),
    "shrink_slots": Term(
        f"a slot times {SHRINK_TOKENS} tokens, rounded up, with any adapter", _slot_blocks(SHRINK_TOKENS)
    ),
    "shrink_slots_few": Term(
        f"a slot times {SHRINK_TOKENS} tokens, rounded up, with any adapter, below {FEW_TOKENS} tokens",
        f"{FEW} * {_slot_blocks(SHRINK_TOKENS)}",
    ),
    "expand_slots": Term(
        f"a slot times {EXPAND_TOKENS} tokens, rounded up, with any adapter", _slot_blocks(EXPAND_TOKENS)
    ),
    "lora_programs": Term(
        "a thread block of the LoRA kernels without work, or its time (sim/lora_grid.py)", "num_lora_programs"
    ),
    "cache_entries_adapters": Term(
        "an entry of the host cache times a distinct adapter", "host_cache_entries * num_adapters"
    ),
}


def sums(of_terms: Sequence[Mapping[str, int]], units: Sequence[int]) -> Callable[[Any], tuple[int, ...]]:
    """Return the function that, for a step, evaluates several sums: coefficient times term, in each, rounded
    to multiples of the sum's unit and counted in it.

    One compiled function, because the simulator calls it for every step; a term that several sums have is
    evaluated once.
    """
    used = {term: None for coefficients in of_terms for term, value in coefficients.items() if value}
    terms = {f"{term}_": TERMS[term].expression for term in used}
    expressions = []
    for coefficients, unit in zip(of_terms, units, strict=True):
        products = [f"{value} * {term}_" for term, value in coefficients.items() if value]
        total = " + ".join(products) or "0"
        expressions.append(total if unit == 1 else f"({total} + {unit // 2}) // {unit}")
    return _function(f"({', '.join(expressions)},)", terms)


def within(ranges: Mapping[str, tuple[float, float]]) -> Callable[[Any], bool]:
    """Return the function that says whether all these counts of a step are in their ranges, ends included."""
    return _function(
        " and ".join(f"{low!r} <= {name} <= {high!r}" for name, (low, high) in ranges.items()) or "True", {}
    )


def _function(result: str, parts: Mapping[str, str]) -> Callable[[Any], Any]:
    """Return the function of a step that evaluates `result` from named `parts`, each count read once."""
    expressions = [*parts.values(), result]
    nodes = (node for expression in expressions for node in ast.walk(ast.parse(expression)))
    names = {node.id for node in nodes if isinstance(node, ast.Name)} - set(parts)
    lines = [f"{name} = step.{name}" for name in sorted(names)]
    lines += [f"{name} = {expression}" for name, expression in parts.items()]
    source = "\n    ".join(["def function(step):", *lines, f"return {result}"])
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    function: Callable[[Any], Any] = namespace["function"]
    return function
