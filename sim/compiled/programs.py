"""The terms of a cost (`sim.terms`) as programs for a machine with a stack."""

import ast
from collections.abc import Sequence
from enum import IntEnum, auto
from itertools import accumulate

from sim.compiled.limits import LeavesCompiledError
from sim.terms import TERMS

COUNTS = (
    *("num_padded_tokens", "num_reqs", "num_tokens", "num_prefill_tokens", "num_prefill_reqs"),
    *("attention_work", "kv_tokens", "num_adapters", "num_lora_tokens", "num_waiting"),
    *("host_cache_entries", "max_loras", "max_lora_rank", "num_lora_programs", "num_passed_over"),
)
"""The counts of `sim.costs.StepShape`, in its order."""


class Op(IntEnum):
    """What an instruction does with its operand and the values on the stack, the latest first."""

    COUNT = 0
    """Push the operand's place in COUNTS."""
    CONSTANT = auto()
    """Push the operand."""
    NEGATE = auto()
    ADD = auto()
    SUBTRACT = auto()
    MULTIPLY = auto()
    DIVIDE = auto()
    """Rounded down."""
    GREATER = auto()
    EQUAL = auto()


OPERATIONS: dict[type[ast.AST], Op] = {
    ast.USub: Op.NEGATE,
    ast.Add: Op.ADD,
    ast.Sub: Op.SUBTRACT,
    ast.Mult: Op.MULTIPLY,
    ast.FloorDiv: Op.DIVIDE,
    ast.Gt: Op.GREATER,
    ast.Eq: Op.EQUAL,
}
Instruction = tuple[Op, int]


def program(term: str) -> list[Instruction]:
    """Return the instructions that leave the count of a term on the stack. Raises LeavesCompiledError."""
    return _instructions(ast.parse(TERMS[term].expression, mode="eval").body)


def depth(instructions: Sequence[Instruction]) -> int:
    """Return how many values are on the stack at most."""
    pushes = {Op.COUNT: 1, Op.CONSTANT: 1, Op.NEGATE: 0}
    return max(accumulate(pushes.get(op, -1) for op, _ in instructions))


def _instructions(node: ast.expr) -> list[Instruction]:
    match node:
        case ast.Name(name):
            return [(Op.COUNT, COUNTS.index(name))]
        case ast.Constant(int(value)):
            return [(Op.CONSTANT, value)]
        case ast.UnaryOp(operator, operand) if type(operator) in OPERATIONS:
            return [*_instructions(operand), (OPERATIONS[type(operator)], 0)]
        case ast.BinOp(left, operator, right) | ast.Compare(left, [operator], [right]) if (
            type(operator) in OPERATIONS
        ):
            return [*_instructions(left), *_instructions(right), (OPERATIONS[type(operator)], 0)]
    raise LeavesCompiledError(f"no instruction for {ast.unparse(node)}")
