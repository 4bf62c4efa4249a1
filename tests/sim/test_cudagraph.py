"""Captured sizes and the choice among them, by hand; tests/conformance compares with vLLM."""

import pytest

from sim.config import EngineConfig
from sim.cudagraph import CudaGraphs, GraphChoice, capture_sizes, lora_cases


def test_capture_sizes_end_at_twice_max_num_seqs_512_or_the_token_budget() -> None:
    assert capture_sizes(10, 8192) == [1, 2, 4, 8, 16]
    assert capture_sizes(128, 8192)[-3:] == [240, 248, 256]
    assert capture_sizes(1024, 8192)[-2:] == [496, 512]
    assert capture_sizes(256, 300)[-3:] == [272, 288, 300]


def test_lora_cases() -> None:
    assert lora_cases(6, specialize_active_lora=False) == [0, 7]
    assert lora_cases(6, specialize_active_lora=True) == [0, 1, 2, 4, 7]
    assert lora_cases(8, specialize_active_lora=True) == [0, 1, 2, 4, 8, 9]


@pytest.mark.parametrize(
    ("num_reqs", "num_tokens", "max_query_len", "num_adapters", "expected"),
    [
        (5, 5, 1, 0, ("full", 8, 0)),
        (96, 96, 1, 3, ("full", 96, 5)),
        (97, 97, 1, 4, ("piecewise", 104, 5)),
        (3, 150, 148, 1, ("piecewise", 152, 5)),
        (3, 201, 199, 1, ("none", 201, 5)),
    ],
)
def test_choice(
    num_reqs: int, num_tokens: int, max_query_len: int, num_adapters: int, expected: GraphChoice
) -> None:
    graphs = CudaGraphs(EngineConfig(max_loras=4, max_num_seqs=100))
    assert graphs.choose(num_reqs, num_tokens, max_query_len, num_adapters) == expected


def test_eager_never_replays() -> None:
    assert CudaGraphs(EngineConfig(max_loras=4, enforce_eager=True)).choose(1, 1, 1, 0) == ("none", 1, 0)
