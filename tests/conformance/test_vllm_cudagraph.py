"""Captured sizes, LoRA cases and graph choice against vLLM's own configuration and CudaGraphManager."""

import random
from collections import Counter

from tests.conformance.graphs import draw_case, our_answers
from tests.conformance.vllm_graphs import their_answers

NUM_CASES = 1000


def test_graph_choice() -> None:
    modes: Counter[str] = Counter()
    for seed in range(NUM_CASES):
        case = draw_case(random.Random(seed))
        answers = our_answers(case)
        assert answers == their_answers(case), f"seed {seed}: {case.config}"
        modes.update(mode for mode, *_ in answers["choices"])
    print(NUM_CASES, "cases,", sum(modes.values()), "choices:", dict(modes))
    assert min(modes.values()) > NUM_CASES
