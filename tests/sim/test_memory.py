"""KV blocks and host memory, by hand."""

from typing import Any

import pytest

from sim.config import EngineConfig, ModelConfig
from sim.errors import DoesNotFit
from sim.memory import GIB, MemoryProfile, check_host_memory, never_admitted, num_gpu_blocks, slot_bytes

TINY = ModelConfig(
    name="tiny",
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=1000,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
)
# Per layer q, o: 64 x 64; k, v: 64 x 32; gate, up, down: 64 x 128; two norms of 64. One final norm.
WEIGHTS = 2 * (2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 2 * 1000 * 64 + 64)
SLOT_RANK_8 = 2 * 8 * (2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128)) + 2 * (1000 + 64))
BLOCK = 16 * 2 * 2 * 2 * 2 * 16


def engine(**changes: Any) -> EngineConfig:
    settings: dict[str, Any] = {"max_loras": 4, "max_lora_rank": 8, "max_model_len": 160}
    return EngineConfig(**(settings | changes))


def test_kv_blocks_fill_what_weights_slots_and_overhead_leave() -> None:
    used = WEIGHTS + 4 * SLOT_RANK_8 + 1_000_000
    memory = MemoryProfile(
        gpu_memory_bytes=2 * (used + 50 * BLOCK + BLOCK // 2), non_kv_overhead_bytes=1_000_000
    )
    assert slot_bytes(TINY, 8) == SLOT_RANK_8
    assert num_gpu_blocks(engine(gpu_memory_utilization=0.5), TINY, memory) == 50


def test_slots_cost_kv_blocks() -> None:
    memory = MemoryProfile(gpu_memory_bytes=64 * 2**20)
    few, many = (num_gpu_blocks(engine(max_loras=slots), TINY, memory) for slots in (4, 40))
    assert few - many == pytest.approx(36 * SLOT_RANK_8 / BLOCK, abs=1)


def test_the_override_counts_first_then_the_profile() -> None:
    memory = MemoryProfile(gpu_memory_bytes=2**30, num_gpu_blocks=77)
    assert num_gpu_blocks(engine(num_gpu_blocks=33), TINY, memory) == 33
    assert num_gpu_blocks(engine(), TINY, memory) == 77


def test_a_profile_without_memory_limits_nothing() -> None:
    assert num_gpu_blocks(engine(max_num_seqs=8), TINY, MemoryProfile()) == 1 + 8 * 10


def test_a_model_that_does_not_fit_says_how_much_is_missing() -> None:
    memory = MemoryProfile(gpu_memory_bytes=10 * GIB, non_kv_overhead_bytes=12 * GIB)
    with pytest.raises(DoesNotFit, match=r"does not fit in GPU memory: 3\.0 GiB short$"):
        num_gpu_blocks(engine(), TINY, memory)


def test_one_request_of_the_longest_length_must_fit() -> None:
    """vLLM starts with ten blocks, of which nine are to be had; with nine it does not."""
    assert num_gpu_blocks(engine(num_gpu_blocks=11), TINY, MemoryProfile()) == 11
    assert never_admitted(engine(), 11) == []
    assert num_gpu_blocks(engine(num_gpu_blocks=10), TINY, MemoryProfile()) == 10
    (said,) = never_admitted(engine(), 10)
    assert said.startswith("10 KV blocks, of which vLLM keeps one: a request of more than 145 tokens")
    with pytest.raises(DoesNotFit, match=r"max_model_len=160 does not fit"):
        num_gpu_blocks(engine(num_gpu_blocks=9), TINY, MemoryProfile())


def test_host_memory_holds_the_cache_as_far_as_there_are_adapters() -> None:
    memory = MemoryProfile(host_memory_bytes=10 * TINY.lora_bytes(8))
    check_host_memory(engine(max_cpu_loras=1000), TINY, memory, ranks=[8] * 10)
    check_host_memory(engine(max_cpu_loras=10), TINY, memory, ranks=[8] * 1000)
    check_host_memory(engine(max_cpu_loras=1000), TINY, MemoryProfile(), ranks=[8] * 1000)
    with pytest.raises(
        DoesNotFit, match=r"^11 adapters of rank 8 .* do not fit in host memory: 0\.0 GiB short"
    ):
        check_host_memory(engine(max_cpu_loras=11), TINY, memory, ranks=[8] * 1000)
