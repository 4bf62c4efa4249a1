"""The measurement phases run through on an engine double that only counts tokens."""

import numpy as np
import pytest

from calibrate import phases
from calibrate.measure import mixed_cells, plan
from tests.calibrate.doubles import BUDGET, EngineDouble, ProbeDouble


@pytest.fixture
def bench() -> phases.Bench:
    probe = ProbeDouble()
    engine = EngineDouble(8, probe)
    return phases.Bench(engine, probe, 8, BUDGET, np.random.default_rng(0))  # type: ignore[arg-type]


def recorded(bench: phases.Bench, phase: str) -> list[tuple[int, int]]:
    return [(tokens, adapters) for name, tokens, adapters in bench.probe.steps if name == phase]  # type: ignore[misc, str-unpack]


def test_decode_covers_each_cell_with_full_batches(bench: phases.Bench) -> None:
    phases.decode(bench, 128, [4, 16], [0, 1, 8, 16], num_steps=2)
    assert sorted(recorded(bench, "decode")) == sorted(2 * [(16, 0), (16, 1), (16, 8), (4, 0), (4, 1)])
    assert not bench.engine.has_requests()


def test_mixed_steps_hold_prefill_and_decode_tokens(bench: phases.Bench) -> None:
    phases.mixed(bench, [(0, 600, 1, 1), (8, 600, 4, 4)], [0, 8], repeats=1)
    assert (600, 1) in recorded(bench, "mixed")
    assert (608, 4) in recorded(bench, "mixed")


def test_every_phase_ends_and_leaves_the_engine_empty(bench: phases.Bench) -> None:
    phases.warm_up(bench)
    phases.reference(bench)
    phases.backlog(bench, [(600, 8), (64, 0)], batch=4)
    phases.long_prompts(bench, [12000])
    phases.loads(bench, 3, 3, batch=0)
    phases.host_cache(bench, 20, [1, 8], batch=16, num_steps=2)
    phases.waiting(bench, 30, num_steps=2)
    assert not bench.engine.has_requests()
    assert {"reference", "backlog", "mixed", "load", "host_cache", "waiting"} <= {
        s[0] for s in bench.probe.steps
    }  # type: ignore[attr-defined]


def test_plan_repeats_every_engine() -> None:
    runs = plan([{"max_loras": 8, "max_lora_rank": 16}, {"max_loras": 32, "max_lora_rank": 16}], 2)  # type: ignore[arg-type]
    assert [name for name, _ in runs] == [
        "max_loras8-max_lora_rank16-run0",
        "max_loras32-max_lora_rank16-run0",
        "max_loras8-max_lora_rank16-run1",
        "max_loras32-max_lora_rank16-run1",
    ]


def test_mixed_cells_keep_within_the_token_budget() -> None:
    config = {"prefill_tokens": [64, 8000], "mixed_rounds": 20, "mixed_decoding": [0, 128]}
    cells = mixed_cells(np.random.default_rng(1), config, 32, BUDGET)
    assert {cell[1] for cell in cells} == {64, 8000}
    assert all(cell[0] + cell[1] <= BUDGET for cell in cells)
