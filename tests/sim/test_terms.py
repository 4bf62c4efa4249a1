"""The terms of a step's cost: counts by hand, the same for a step and for a table, in closed form."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from sim.costs import StepShape
from sim.terms import TERMS

MIXED = StepShape(
    graph="piecewise",
    num_padded_tokens=136,
    num_reqs=9,
    num_tokens=131,
    num_prefill_tokens=123,
    num_prefill_reqs=1,
    attention_work=7564,
    kv_tokens=1024,
    num_adapters=3,
    num_lora_tokens=130,
    num_waiting=5,
    host_cache_entries=10,
    max_loras=8,
    max_lora_rank=16,
    num_lora_programs=700,
    num_passed_over=4,
)
BARE = replace(MIXED, num_adapters=0, num_lora_tokens=0, num_lora_programs=0)
COUNTS = {
    "constant": 1,
    "reqs": 9,
    "tokens": 131,
    "padded_tokens": 136,
    "padded_tiles": 3,
    "prefill_reqs": 1,
    "attention_work": 7564,
    "kv_tokens": 1024,
    "waiting": 5,
    "passed_over": 4,
    "lora_programs": 700,
    "lora": 1,
    "lora_padded_tokens": 136,
    "lora_rank_tokens": 136 * 16,
    "adapters": 3,
    "adapters_rank": 48,
    "adapter_blocks": 9,
    "slots": 8,
    "slots_tokens": 8 * 136,
    "slots_rank": 128,
    "cache_entries_adapters": 30,
    "lora_many": 1,
    "adapters_rank_few": 0,
    "shrink_blocks": 6,
    "shrink_blocks_few": 0,
    "expand_blocks": 3,
    "shrink_slots": 8 * 5,
    "shrink_slots_few": 0,
    "expand_slots": 8 * 3,
}
OF_LORA = ("lora", "adapter", "slots", "shrink", "expand")


@pytest.mark.parametrize("name", TERMS)
def test_count_by_hand(name: str) -> None:
    assert TERMS[name].count(MIXED) == COUNTS[name]


def test_few_tokens_are_below_128() -> None:
    few, many = replace(MIXED, num_padded_tokens=127), replace(MIXED, num_padded_tokens=128)
    for name in ("adapters_rank", "shrink_blocks", "shrink_slots"):
        of_few = TERMS[f"{name}_few"].count
        assert (of_few(few), of_few(many)) == (TERMS[name].count(few), 0)
    assert (TERMS["lora_many"].count(few), TERMS["lora_many"].count(many)) == (0, 1)


@pytest.mark.parametrize("name", TERMS)
def test_without_adapters_only_the_base_model_costs(name: str) -> None:
    of_lora = name.startswith(OF_LORA) or name.endswith("adapters")
    assert TERMS[name].count(BARE) == (0 if of_lora else TERMS[name].count(MIXED))


@pytest.mark.parametrize("name", TERMS)
def test_a_table_of_steps_has_the_counts_of_each_step(name: str) -> None:
    shapes = [MIXED, BARE, replace(MIXED, num_padded_tokens=64), replace(MIXED, num_padded_tokens=65)]
    count = TERMS[name].count
    column = count(pd.DataFrame([asdict(shape) for shape in shapes]))
    np.testing.assert_array_equal(np.asarray(column, dtype=float), [float(count(shape)) for shape in shapes])


@pytest.mark.parametrize("name", TERMS)
def test_a_batch_that_decodes_on_grows_by_the_same_amount_each_step(name: str) -> None:
    """So that k steps have a closed form."""
    shapes = [replace(MIXED, kv_tokens=1024 + 8 * step) for step in range(6)]
    counts = [float(TERMS[name].count(shape)) for shape in shapes]
    assert len(set(np.diff(counts))) == 1
