"""The schedulers that count decoding requests together decide what the plain ones do, call by call."""

import random

import pytest

from sim.request import Request
from tests.conformance.scheduling import Ours, draw_case, play


def state(request: Request) -> tuple[int, ...]:
    blocks = request.num_kv_blocks, request.num_cached_blocks
    return request.num_tokens, request.num_computed_tokens, request.num_output_placeholders, *blocks


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_same_answers(first: int) -> None:
    for seed in range(first, first + 50):
        case = draw_case(random.Random(seed))
        plain, fast = Ours(case.config), Ours(case.config, fast_forward=True)
        for number, (answer, expected) in enumerate(zip(play(case, fast), play(case, plain), strict=True)):
            assert answer == expected, f"seed {seed}, call {number}: {case.config}"
        for scheduler in (plain.scheduler, fast.scheduler):
            assert scheduler.num_waiting == len(scheduler.admission), f"seed {seed}"
        fast.scheduler.settle()
        for request_id, request in plain.requests.items():
            assert state(fast.requests[request_id]) == state(request), f"seed {seed}"
