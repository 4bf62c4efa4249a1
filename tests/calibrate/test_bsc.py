"""The study of vLLM 0.8.5: the engine generation, microbenchmarks, settings, the client, the scores."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import simpy
import yaml

from calibrate.bsc.client import NUM_PORTS, Client, lengths
from calibrate.bsc.hour import simulate
from calibrate.bsc.microbenchmarks import Run, steps
from calibrate.bsc.score import bias_pct, regrets, smape_pct, summary
from calibrate.bsc.settings import Setting, setting
from sim.config import EngineConfig, ModelConfig
from sim.cudagraph import CudaGraphs
from sim.errors import UserError
from sim.lora_grid import LoraGrid, num_splits
from sim.memory import MemoryProfile, slot_bytes

ROOT = Path(__file__).resolve().parents[2]
LLAMA = ModelConfig(**yaml.safe_load((ROOT / "conf/model/llama_3_1_8b.yaml").read_text()))
QWEN = ModelConfig(**yaml.safe_load((ROOT / "conf/model/qwen2_5_7b.yaml").read_text()))
ENGINE = EngineConfig(
    **{
        **yaml.safe_load((ROOT / "conf/engine/vllm.yaml").read_text()),
        **{
            k: v
            for k, v in yaml.safe_load((ROOT / "conf/engine/vllm_0_8_5.yaml").read_text()).items()
            if k != "defaults"
        },
        "enable_prefix_caching": False,
    }
)
PROFILE = yaml.safe_load((ROOT / "conf/profile/bsc_llama31_8b.yaml").read_text())
ROW = {
    "model": "llama-3.1-8b-instruct",
    "max_loras": 8.0,
    "max_cpu_loras": 16.0,
    "max_lora_rank": 16.0,
    "max_num_seqs": 2048,
    "ranks": "8 16",
    "rate_values": "0.05 0.1",
    "rate_counts": "8 8",
    "total_time": 600.0,
    "completed": 10.0,
    "in_tokens": 2230.0,
    "out_tokens": 1920.0,
}


def test_slots_take_the_bytes_that_the_study_logged() -> None:
    """384 slots of rank 8 load 33.7605 GiB, 8 of them 15.3885; Qwen's 29.0155 and 14.5501."""
    llama, qwen = slot_bytes(LLAMA, 8, True, 256), slot_bytes(QWEN, 8, False)
    assert llama == pytest.approx((33.7605 - 15.3885) * 2**30 / 376, rel=0.005)
    assert qwen == pytest.approx((29.0155 - 14.5501) * 2**30 / 376, rel=0.03)


def test_all_graphs_are_piecewise() -> None:
    graphs = CudaGraphs(ENGINE)
    assert graphs.choose(3, 3, 1, 1)[:2] == ("piecewise", 4)
    assert graphs.choose(9, 505, 400, 1)[:2] == ("piecewise", 512)
    assert graphs.choose(9, 513, 400, 1)[:2] == ("none", 513)


def test_programs_by_hand() -> None:
    """One token in one slot: each kernel of a layer, twice for the slot without an adapter."""
    shrink, expand = 64 * (3 + 1 + 2 + 1), 3 * 32 + 32 + 2 * 112 + 32
    assert LoraGrid(LLAMA, 1, 16).num_programs(1) == 32 * 2 * (shrink + expand)
    assert LoraGrid(LLAMA, 1, 32).num_programs(1) == 32 * 2 * (2 * shrink + expand)
    assert LoraGrid(LLAMA, 1, 16, floor=10_000).num_programs(1) == 32 * 8 * 10_000
    assert LoraGrid(LLAMA, 8, 16).num_programs(128) == 32 * 9 * (7 * 8 * 4 + expand * 2)
    assert [num_splits(tokens) for tokens in (127, 128)] == [64, 8]


def test_steps_of_a_microbenchmark_hold_all_its_tokens() -> None:
    run = Run("x", "m", "overhead", 40, 5, 20, 16, 8, 4, 8, 8, 0.0, 0.0, 0.0, 0.0)
    shapes = steps(run, ENGINE, LLAMA, MemoryProfile(gpu_memory_bytes=64 * 2**30))
    assert (shapes.steps * shapes.num_tokens).sum() == 40 * (5 + 19)
    assert shapes.gaps.sum() == 40 * 19
    assert shapes.num_adapters.max() == 4


def test_settings_of_a_row() -> None:
    found = setting(ROW, (1, 1), "line 2")
    assert (found.max_loras, found.num_adapters, found.adapter_ranks[:3]) == (8, 16, (8, 16, 8))
    assert found.request_rate == pytest.approx(8 * 0.05 + 8 * 0.1)
    assert (found.mean_input_length, found.mean_output_length) == (223, 192)


def test_a_row_without_results_takes_other_lengths() -> None:
    found = setting({**ROW, "completed": math.nan}, (200, 100), "line 2")
    assert (found.mean_input_length, found.mean_output_length) == (200, 100)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rate_counts": "8 9"}, "line 2: rate_counts='8 9': expected as many as rate_values, 16 together"),
        ({"max_loras": math.nan}, "line 2: max_loras=nan: expected a number greater than 0"),
        ({"ranks": "eight"}, "line 2: ranks='eight': expected numbers greater than 0, separated by spaces"),
    ],
)
def test_bad_rows(changed: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        setting({**ROW, **changed}, (1, 1), "line 2")


@pytest.mark.parametrize(("mean", "sigma"), [(223.0, 1.3), (192.0, 1.1)])
def test_lengths_have_the_mean_of_the_row(mean: float, sigma: float) -> None:
    drawn = lengths(mean, sigma, 0, "x")
    sample = np.array([next(drawn) for _ in range(40_000)])
    assert sample.mean() == pytest.approx(mean, rel=0.02)
    assert sample.min() >= 4
    assert sample.max() <= 1024


class Sink:
    """An engine that answers nothing."""

    def __init__(self) -> None:
        self.requests: list[object] = []

    def submit(self, request: object) -> None:
        self.requests.append(request)


def test_no_more_requests_than_ports_are_under_way() -> None:
    one = replace(setting(ROW, (1, 1), ""), rates=(1000.0,) * 16)
    env, sink = simpy.Environment(), Sink()
    client = Client(env, one, 0)
    client.start(sink)  # type: ignore[arg-type]
    env.run(10_000_000_000)
    assert len(sink.requests) == NUM_PORTS
    assert client.sent_in(10) == pytest.approx(160_000, rel=0.02)


def hour(**changed: object) -> object:
    one: Setting = replace(setting(ROW, (1, 1), ""), **changed)  # type: ignore[arg-type]
    return simulate(one, ENGINE, LLAMA, PROFILE, 0)


def test_an_hour_is_the_same_each_time_and_completes_what_arrives() -> None:
    first = hour(duration_s=60.0)
    assert first == hour(duration_s=60.0)
    assert 0 < first.completed <= first.sent  # type: ignore[attr-defined]
    assert first.status == "ok"  # type: ignore[attr-defined]


def test_a_setting_that_does_not_fit_is_named() -> None:
    assert hour(max_loras=256, max_lora_rank=16).status == "oom"  # type: ignore[attr-defined]
    assert hour(max_loras=224, max_lora_rank=16, duration_s=1.0).status == "ok"  # type: ignore[attr-defined]


def test_scores_by_hand() -> None:
    assert smape_pct(np.array([1.0, 0.0]), np.array([3.0, 0.0])) == pytest.approx(50)
    assert bias_pct(np.array([2.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx(100)


def scored() -> pd.DataFrame:
    rows = [
        {**ROW, "max_loras": slots, "out_tok_s": measured, "sim_out_tok_s": predicted, "sim_status": "ok"}
        for slots, measured, predicted in ((8, 100.0, 90.0), (16, 90.0, 95.0), (32, 80.0, 70.0))
    ]
    rows.append({**ROW, "sim_status": "oom", "completed": math.nan})
    table = pd.DataFrame(rows)
    known = {"offered_req_s": 1.0, "duration_s": 600.0, "mean_ttft_ms": 50.0, "mean_itl_ms": 20.0}
    ours = {"sim_mean_ttft_ms": 50.0, "sim_mean_itl_ms": 22.0, "sim_completed": 10, "sim_num_preempted": 0}
    return table.assign(**known, **ours, num_preempted_last=0.0, sim_part="look")


def test_regret_is_what_the_chosen_setting_loses() -> None:
    (found,) = regrets(scored().iloc[:3], "sim_out_tok_s").to_dict("records")
    assert (found["chosen"], found["best"]) == (16, 8)
    assert found["regret_pct"] == pytest.approx(10)


def test_rows_without_results_are_counted_but_not_compared() -> None:
    found = summary(scored())
    assert (found["rows"], found["compared"], found["predicted_oom"]) == (4, 3, 1)
    assert found["measured_but_predicted_oom"] == 0
    itl = found["errors"]["all"][1]
    assert itl["bias_pct"] == pytest.approx(10)
    assert itl["twin_smape_pct"] is None
