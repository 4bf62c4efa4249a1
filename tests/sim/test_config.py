"""Settings are checked where they enter, and an error names the key as the user spells it."""

from copy import deepcopy
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from sim.config import NOT_OF_A_RUN, EngineConfig, ModelConfig, RunConfig, run_values
from sim.errors import UserError
from sim.fields import build

LLAMA: dict[str, Any] = {
    "name": "meta-llama/Llama-3.1-8B",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
QWEN = LLAMA | {
    "name": "Qwen/Qwen3-0.6B",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
RUN: dict[str, Any] = {
    "engine": {},
    "model": LLAMA,
    "workload": {
        "mode": "closed",
        "concurrency": 4,
        "duration_s": 10,
        "popularity": {"kind": "uniform"},
        "input_length": 100,
        "output_length": 20,
    },
    "profile": {"kind": "constant", "step_ms": 10},
    "admission": {"_target_": "policies.admission.FcfsSkip"},
    "eviction": {"_target_": "policies.eviction.Lru"},
    "record": {"steps": False},
    "seed": 0,
    "warmup_s": 0,
}


def run_config(changes: dict[str, Any]) -> RunConfig:
    """RUN with ``{"engine.max_loras": 4}`` put in."""
    values = deepcopy(RUN)
    for key, value in changes.items():
        *path, last = key.split(".")
        section = values
        for name in path:
            section = section[name]
        section[last] = value
    return RunConfig.from_mapping(values)


def test_engine_defaults_are_those_of_vllm() -> None:
    engine = EngineConfig()
    assert (engine.max_num_seqs, engine.max_num_batched_tokens, engine.max_lora_rank) == (256, 8192, 16)
    assert engine.async_scheduling
    assert engine.scheduler_reserve_full_isl
    assert engine.enable_prefix_caching
    assert engine.scheduling_policy == "fcfs"


def test_host_cache_has_as_many_entries_as_slots_unless_told() -> None:
    assert EngineConfig(max_loras=8).host_cache_entries == 8
    assert EngineConfig(max_loras=8, max_cpu_loras=100).host_cache_entries == 100


def test_sizes_of_llama_3_1_8b() -> None:
    model = build(ModelConfig, LLAMA, "model")
    assert model.weight_bytes() == 2 * 8_030_261_248
    assert model.kv_bytes_per_token() == 131_072
    assert model.lora_bytes(16) == 83_886_080
    assert model.lora_bytes(8) * 2 == model.lora_bytes(16)


def test_sizes_of_qwen3_0_6b() -> None:
    """Hugging Face counts 596,049,920 parameters, of which 28 * 2 * 128 are per-head norms."""
    model = build(ModelConfig, QWEN, "model")
    assert model.weight_bytes() == 2 * (596_049_920 - 28 * 2 * 128)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine.max_lora": 3}, "unknown key engine.max_lora; accepted: max_loras, max_cpu_loras"),
        ({"engine.max_loras": 0}, "engine.max_loras=0: must be greater than 0"),
        ({"engine.max_loras": "8"}, "engine.max_loras='8': expected int"),
        ({"engine.max_loras": 8.0}, "engine.max_loras=8.0: expected int"),
        ({"engine.max_loras": None}, "engine.max_loras=None: expected int"),
        ({"engine.async_scheduling": 1}, "engine.async_scheduling=1: expected bool"),
        ({"engine.max_cpu_loras": 16}, "engine.max_cpu_loras=16: must be at least engine.max_loras=32"),
        ({"engine.max_num_batched_tokens": 128}, "engine.max_num_batched_tokens=128: must be at least"),
        ({"engine.max_lora_rank": 12}, "engine.max_lora_rank=12: expected one of 1, 8, 16, 32"),
        ({"engine.gpu_memory_utilization": 1.5}, "engine.gpu_memory_utilization=1.5: must be at most 1"),
        ({"engine.long_prefill_token_threshold": -1}, "engine.long_prefill_token_threshold=-1: must be"),
        ({"engine.max_model_len": 200_000}, "engine.max_model_len=200000: must be at most model.max_pos"),
        ({"engine.scheduling_policy": "lifo"}, "engine.scheduling_policy='lifo': expected one of fcfs, prio"),
        ({"engine.initial_host_cache": "abc"}, "engine.initial_host_cache='abc': expected list"),
        ({"engine.initial_host_cache": ["a", 3]}, "engine.initial_host_cache[1]=3: expected str"),
        ({"engine.initial_host_cache": ["a", "a"]}, "engine.initial_host_cache=['a', 'a']: a is in it twice"),
        (
            {"engine.max_loras": 1, "engine.initial_host_cache": ["a", "b"]},
            "engine.initial_host_cache=['a', 'b']: 2 adapters, at most engine.max_cpu_loras=1",
        ),
        (
            {
                "engine.max_loras": 1,
                "engine.max_cpu_loras": 2,
                "engine.initial_host_cache": ["a", "b"],
                "engine.initial_slots": ["a", "b"],
            },
            "engine.initial_slots=['a', 'b']: 2 adapters, at most engine.max_loras=1",
        ),
        (
            {"engine.initial_slots": ["a"]},
            "engine.initial_slots=['a']: a is not in engine.initial_host_cache",
        ),
        ({"engine.initial_host_cache": -1}, "engine.initial_host_cache=-1: must not be negative"),
        (
            {"engine.initial_slots": 2},
            "engine.initial_slots=2: adapter-0000 is not in engine.initial_host_cache",
        ),
        (
            {"engine.initial_host_cache": 33},
            "engine.initial_host_cache=33: 33 adapters, at most engine",
        ),
        ({"workload.until_done": True}, "workload.until_done=true: a closed loop sends as long as it runs"),
        ({"model.hidden_size": -1}, "model.hidden_size=-1: must be greater than 0"),
        ({"model.dtype": "int8"}, "model.dtype='int8': expected one of bfloat16, float16, float32"),
        ({"workload.adapter_rank": 64}, "workload.adapter_rank=64: must be at most engine.max_lora_rank=16"),
        ({"workload.input_length": 9000}, "workload.input_length + workload.output_length = 9020: must be"),
        ({"workload": None}, "workload=None: expected a mapping of settings"),
        ({"warmup_s": 10}, "warmup_s=10.0: must be at least 0 and less than workload.duration_s=10.0"),
        ({"warmup_s": -1}, "warmup_s=-1.0: must be at least 0"),
        ({"seed": -1}, "seed=-1: must not be negative"),
        ({"seed": 0.5}, "seed=0.5: expected int"),
        ({"record.step": True}, "unknown key record.step; accepted: steps"),
        ({"sede": 1}, "unknown key sede; accepted: engine, model, profile"),
        ({"profile": "h100"}, "profile='h100': expected Mapping"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        run_config(changes)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match=r"^missing key model.name$"):
        build(ModelConfig, {key: value for key, value in LLAMA.items() if key != "name"}, "model")


def test_adapters_have_the_engines_rank_unless_told() -> None:
    assert run_config({"engine.max_lora_rank": 32}).adapter_rank == 32
    assert run_config({"engine.max_lora_rank": 32, "workload.adapter_rank": 8}).adapter_rank == 8


def test_a_warm_start_by_number_has_the_workloads_adapters_and_no_others() -> None:
    warm = {"engine.initial_host_cache": 32, "engine.initial_slots": 16, "workload.num_adapters": 3}
    engine = run_config(warm).engine
    assert engine.warm_host_cache == engine.warm_slots == ["adapter-0000", "adapter-0001", "adapter-0002"]
    engine = run_config(warm | {"workload.num_adapters": 20}).engine
    assert (len(engine.warm_host_cache), len(engine.warm_slots)) == (20, 16)


@pytest.mark.parametrize("with_hydra", [False, True])
def test_the_values_of_a_run_are_what_a_run_takes(with_hydra: bool) -> None:
    """What is there for the command alone stays behind, but may be referred to."""
    words = ["seed=7", "workload.request_rate=${sweep.processes}", "sweep.processes=3"]
    with initialize_config_module("conf", version_base="1.3"):
        composed = compose("config", words, return_hydra_config=with_hydra)
    values = run_values(composed)
    assert set(NOT_OF_A_RUN) <= set(composed)
    assert not {"hydra", *NOT_OF_A_RUN} & set(values)
    assert RunConfig.from_mapping(values).seed == 7
    assert values["workload"]["request_rate"] == 3
    assert set(run_values(composed, "slo", "record")) == set(values) - {"slo", "record"}


@pytest.mark.parametrize(("block_size", "warns"), [(16, False), (64, False), (4, True), (17, True)])
def test_blocks_that_vllm_would_refuse_are_simulated_with_a_warning(block_size: int, warns: bool) -> None:
    said = f"engine.block_size={block_size}: vLLM would not start; on a GPU it takes multiples of 16"
    assert EngineConfig(block_size=block_size).refused_by_vllm() == ([said] if warns else [])
