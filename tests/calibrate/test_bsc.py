"""The study of vLLM 0.8.5: the engine generation, microbenchmarks, settings, the client, the scores."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import simpy
import yaml
from hydra import compose, initialize_config_dir

from calibrate.bsc import stream
from calibrate.bsc.__main__ import task as predict_task
from calibrate.bsc.client import BLOCK, NUM_PORTS, Client, lengths
from calibrate.bsc.equations import Kernels
from calibrate.bsc.front_end import Combinations, FrontEnd, FrontEndCosts
from calibrate.bsc.hour import Hour, Server, simulate
from calibrate.bsc.lattice import descend
from calibrate.bsc.microbenchmarks import Run, steps
from calibrate.bsc.predictions import columns, settings_of
from calibrate.bsc.score import bias_pct, regret_of_spread, regrets, smape_pct, summary, with_numbers
from calibrate.bsc.settings import Setting, adapter_name, setting
from reports.bsc import task as report_task
from reports.bsc_misses import misses
from sim.config import EngineConfig, ModelConfig
from sim.cudagraph import CudaGraphs
from sim.errors import UserError
from sim.lora_grid import CACHE_BYTES, Blocks, BlockTimes, LoraGrid, Step
from sim.memory import MemoryProfile, slot_bytes
from sim.request import Request
from sim.scheduler import StepPlan

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
FRONT_END = FrontEndCosts(line_ms=0.02, request_ms=2, token_ms=0.09)
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


def test_blocks_by_hand() -> None:
    """One token: 4096 inputs fill 16 parts of 64; query, key and value have 48 column blocks of 96."""
    kernels = LoraGrid(LLAMA, 1, 16).kernels(Step(1, 1, 1, 0))
    shrink, expand = 3 * 64, 3 * 32
    assert kernels[0] == Blocks(2 * shrink - 48, 48, 48)
    assert kernels[4] == Blocks(2 * expand - 48, 48, 48)
    assert [sum(of_kind) for of_kind in zip(*kernels, strict=True)][1] == 16 * 6 + 56 + 48 + 32 + 224 + 32
    wider = LoraGrid(LLAMA, 1, 32).kernels(Step(1, 1, 1, 0))
    assert (wider[0].working, wider[0].iterations) == (2 * 48, 48)
    assert (wider[4].working, wider[4].iterations) == (48, 96)


def test_larger_steps_split_the_sums_less_finely() -> None:
    """128 tokens of 8 adapters: 4096 inputs are 8 parts of 16 iterations, 14336 of 56."""
    kernels = LoraGrid(LLAMA, 8, 16).kernels(Step(128, 8, 128, 0))
    assert kernels[0] == Blocks(9 * 3 * 8 * 4 - 8 * 3 * 8, 8 * 3 * 8, 16 * 8 * 3 * 8)
    assert kernels[3].iterations == 56 * 8 * 8


def test_a_kernel_takes_its_latency_or_its_work_and_half_of_it() -> None:
    grid = LoraGrid(LLAMA, 1, 16, BlockTimes(latency=10_000))
    assert grid.num_programs(Step(1, 1, 1, 0)) == 32 * 8 * 10_000
    work = sum(
        blocks.idle + blocks.working for blocks in LoraGrid(LLAMA, 1, 16).kernels(Step(512, 1, 512, 0))
    )
    assert LoraGrid(LLAMA, 1, 16, BlockTimes(latency=10)).num_programs(Step(512, 1, 512, 0)) == 32 * (
        40 + work
    )


def test_outputs_beyond_the_cache_take_longer() -> None:
    """Of Llama's modules, gate and up have 57,344 bytes for each token, the others at most 12,288."""
    grid = LoraGrid(LLAMA, 1, 16, BlockTimes(spilled=2.0))
    assert grid.spilled_kb(CACHE_BYTES // 57_344) == 0
    assert grid.spilled_kb(2048) == pytest.approx((2048 * 57_344 - CACHE_BYTES) / 1e3)
    step = Step(2048, 1, 0, 2048)
    within = LoraGrid(LLAMA, 1, 16).num_programs(step)
    assert grid.num_programs(step) - within == pytest.approx(32 * 2 * grid.spilled_kb(2048), abs=1)


def test_the_fit_counts_the_programs_that_the_simulator_does() -> None:
    times = BlockTimes(latency=3000, working=20, iteration=3, spilled=15)
    shapes = pd.DataFrame(
        [[64, 3, 60, 0, 8, 32], [700, 5, 300, 400, 8, 32], [2000, 0, 8, 0, 8, 32]],
        columns=[
            *("num_padded_tokens", "num_adapters", "num_reqs", "num_prefill_tokens"),
            *("max_loras", "max_lora_rank"),
        ],
    ).assign(num_prefill_reqs=[0, 2, 0])
    grid = LoraGrid(QWEN, 8, 32, times)
    expected = [grid.num_programs(Step(64, 3, 60, 0)), grid.num_programs(Step(700, 5, 298, 400)), 0]
    assert Kernels(shapes, QWEN).programs(times) == pytest.approx(expected, abs=1)


def test_a_pattern_search_finds_the_lowest_point_and_stays_above_zero() -> None:
    best, tried = descend(lambda point: (point[0] - 13) ** 2 + (point[1] + 4) ** 2, (40, 20))
    assert best == (13, 0)
    assert tried[best] == min(tried.values())


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
        (
            {"rate_counts": "8 9"},
            "line 2: rate_counts='8 9': expected as many whole numbers as rate_values, 16",
        ),
        ({"rate_counts": "8.5 7.5"}, "line 2: rate_counts='8.5 7.5': expected as many whole numbers"),
        ({"max_loras": 8.5}, "line 2: max_loras=8.5: expected a whole number"),
        ({"max_loras": "many"}, "line 2: max_loras=many: expected a number greater than 0"),
        ({"max_loras": math.nan}, "line 2: max_loras=nan: expected a number greater than 0"),
        ({"ranks": "eight"}, "line 2: ranks='eight': expected numbers greater than 0, separated by spaces"),
        ({"ranks": "8 64"}, "line 2: ranks='8 64': expected none above max_lora_rank, 16"),
        ({"max_num_seqs": math.inf}, "line 2: max_num_seqs=inf: expected a number greater than 0"),
        ({"rate_values": "0.05 inf"}, "line 2: rate_values='0.05 inf': expected numbers greater than 0"),
    ],
)
def test_bad_rows(changed: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        setting({**ROW, **changed}, (1, 1), "line 2")


@pytest.mark.parametrize(
    "spelling", ["8 8", " 8  8 ", "8,8", "[8, 8]", "8.0 8.0", "8;8", "8|8", "('8', '8')"]
)
def test_spellings_of_a_list(spelling: str) -> None:
    assert setting({**ROW, "rate_counts": spelling}, (1, 1), "") == setting(ROW, (1, 1), "")


def test_more_slots_than_adapters() -> None:
    found = setting({**ROW, "max_loras": 32}, (1, 1), "").engine(ENGINE, LLAMA)
    assert (found.max_loras, found.host_cache_entries) == (32, 32)


CONFIG = {
    "runs": "x.csv",
    "names": {"llama-3.1-8b-instruct": "llama"},
    "mean_input_length": 7,
    "mean_output_length": 5,
}


def test_rows_in_another_order_have_the_same_settings() -> None:
    rows = [{**ROW, "max_loras": slots} for slots in (8, 16)]
    rows.append({**ROW, "max_loras": 64, "completed": math.nan})
    table = pd.DataFrame(rows)
    found = settings_of(table, CONFIG)
    assert settings_of(table.iloc[::-1], CONFIG) == found[::-1]
    assert found[2].mean_input_length == 223


def test_a_file_without_results() -> None:
    (found,) = settings_of(pd.DataFrame([ROW]).drop(columns=["completed", "in_tokens"]), CONFIG)
    assert (found.mean_input_length, found.mean_output_length) == (7, 5)


def test_an_unknown_model_is_named_with_those_that_are_known() -> None:
    table = pd.DataFrame([ROW, {**ROW, "model": "gpt-2"}])
    message = "runs=x.csv, line 3: model gpt-2: expected one of llama-3.1-8b-instruct"
    with pytest.raises(UserError, match=message):
        settings_of(table, CONFIG)


@pytest.mark.parametrize(("mean", "sigma"), [(223.0, 1.3), (192.0, 1.1)])
def test_each_block_of_lengths_has_the_mean_of_the_row(mean: float, sigma: float) -> None:
    drawn = lengths(mean, sigma, 0, "x")
    blocks = [[next(drawn) for _ in range(BLOCK)] for _ in range(2)]
    assert np.mean(blocks, axis=1) == pytest.approx([mean, mean], rel=0.005)
    assert sorted(blocks[0]) == sorted(blocks[1])
    assert blocks[0] != blocks[1]
    assert (min(blocks[0]), max(blocks[0])) >= (4, 900)
    assert max(blocks[0]) <= 1024


def test_combinations_are_those_of_adapters_that_wait_and_run() -> None:
    seen = Combinations(["a", "b"], 0)
    seen.note()
    for adapter in ("a", "a", "b"):
        seen.wait(adapter, 1)
        seen.note()
    assert len(seen) == 3  # None, a, a and b.
    seen.wait("a", -1)
    seen.run("b", 1)
    seen.note()
    assert len(seen) == 4
    seen.run("b", -1)
    seen.note()
    assert len(seen) == 4  # a and b wait, again.


def standing_still(num_reqs: int) -> FrontEnd:
    """A front end with one line that takes a second, and steps at 1.9, 2.0, ... 3.1 s."""
    front_end = FrontEnd(["a"], replace(FRONT_END, line_ms=1000), 0)
    front_end.on_step()
    plan = StepPlan()
    plan.num_reqs = num_reqs
    for tenth in range(19, 32):
        front_end.on_tokens(plan, tenth * 100_000_000)
    return front_end


def test_tokens_while_the_front_end_stands_still_are_sent_at_its_end() -> None:
    """It stands still from 2 s to 3 s: ten tokens of each request are one."""
    front_end = standing_still(3)
    assert (front_end.num_gaps, front_end.num_merged) == (39, 27)
    assert front_end.passes_ns(2_500_000_000) == 3_000_000_000
    assert front_end.passes_ns(1_900_000_000) == 1_900_000_000
    assert front_end.longest_ms == 1000


def test_large_steps_are_taken_over_in_parts_and_merge_nothing() -> None:
    assert standing_still(129).num_merged == 0


class Sink:
    """An engine that answers nothing."""

    def __init__(self) -> None:
        self.requests: list[object] = []

    def submit(self, request: object) -> None:
        self.requests.append(request)


def test_no_more_requests_than_ports_are_under_way() -> None:
    one = replace(setting(ROW, (1, 1), ""), rates=(1000.0,) * 16)
    env, sink = simpy.Environment(), Sink()
    client = Client(env, one, FrontEnd([adapter_name(index) for index in range(16)], FRONT_END, 0), 0)
    client.start(sink)  # type: ignore[arg-type]
    env.run(10_000_000_000)
    assert len(sink.requests) == NUM_PORTS
    assert client.sent_in(10) == pytest.approx(160_000, rel=0.02)


def test_a_first_token_waits_for_those_of_the_rest_of_its_batch() -> None:
    """A request of 101: 2 ms, and 100 times 0.09 ms. That it runs again later changes nothing."""
    front_end, plan, request = FrontEnd(["a"], FRONT_END, 0), StepPlan(), Request("0", 0, 5, 5, adapter="a")
    plan.admitted.append(request)
    for num_reqs in (101, 7):
        plan.num_reqs = num_reqs
        front_end.on_tokens(plan, 1)
    assert front_end.transit_ns(request) == 11_000_000


def test_the_front_end_costs_what_was_measured() -> None:
    costs = yaml.safe_load((ROOT / "conf/bsc.yaml").read_text())["front_end"]
    scrape, stream = (
        json.loads((ROOT / f"calibrate/fits/bsc/{name}.json").read_text()) for name in ("scrape", "stream")
    )
    assert FrontEndCosts(**costs) == FRONT_END
    assert FRONT_END.line_ms == scrape["ms_per_line"]
    assert (FRONT_END.request_ms, FRONT_END.token_ms) == (stream["ms_per_request"], stream["ms_per_token"])


def test_first_tokens_are_timed_over_real_connections() -> None:
    """Of two requests one after another, each beside another one."""
    found = stream.measure(num_streams=2, num_probes=2, step_s=0.01)
    assert len(found) == 2
    assert all(0 < since_step < total for total, since_step in found)


def test_several_seeds_add_their_range() -> None:
    hours = [Hour("ok", out_tok_s=value, mean_itl_ms=1.0, mean_ttft_ms=2.0) for value in (5.0, 3.0, 10.0)]
    assert "sim_out_tok_s_low" not in columns(hours[:1])
    found = columns(hours)
    assert [found[f"sim_out_tok_s{end}"] for end in ("", "_low", "_mean", "_high")] == [5, 3, 6, 10]


def hour(**changed: object) -> object:
    one: Setting = replace(setting(ROW, (1, 1), ""), **changed)  # type: ignore[arg-type]
    return simulate(one, Server(ENGINE, LLAMA, PROFILE, FRONT_END), 0)


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


def test_groups_are_the_same_however_their_lists_are_spaced() -> None:
    rows = scored().iloc[:3]
    rows = rows.assign(rate_values=["0.05 0.1", "0.05  0.1  ", " 0.05 0.1"])
    assert len(regrets(rows, "sim_out_tok_s")) == 1


def test_the_regret_of_measuring_again_grows_with_the_spread() -> None:
    rows = scored().iloc[:3]
    assert regret_of_spread(rows, 0.01) == 0
    assert 0 < regret_of_spread(rows, 5) < regret_of_spread(rows, 20)


def test_a_file_of_settings_alone_is_scored_as_nothing() -> None:
    columns = ["completed", "out_tok_s", "mean_ttft_ms", "mean_itl_ms", "duration_s", "num_preempted_last"]
    found = summary(scored().drop(columns=columns))
    assert (found["compared"], found["measured_but_predicted_oom"], found["errors"]) == (0, 0, {})


def test_words_in_place_of_results_are_no_results() -> None:
    table = scored().astype({"completed": object, "mean_ttft_ms": object})
    table.loc[0, "completed"], table.loc[1, "mean_ttft_ms"] = "OOM", "-"
    assert summary(with_numbers(table))["compared"] == 1


def test_a_file_that_was_predicted_before_is_predicted_anew(tmp_path: Path) -> None:
    """Columns come in any order, with others and with spaces; a page needs no group of rows."""
    first = {**ROW, "total_time": 5.0, "note": "x", "offered_req_s": 1.2, "duration_s": 5.0}
    first |= {"out_tok_s": 50.0, "mean_ttft_ms": 50.0, "mean_itl_ms": 20.0, "sim_status": "?"}
    pd.DataFrame([{f" {name}": first[name] for name in sorted(first)}]).to_csv(
        tmp_path / "in.csv", index=False
    )
    out = tmp_path / "out"
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        predict = compose("bsc", [f"runs={tmp_path / 'in.csv'}", f"out={out}", "processes=1"])
        draw = compose("bsc_report", [f"dir={out}", f"out={out}"])
    predict_task(predict)
    assert pd.read_csv(out / "runs.csv").sim_status.tolist() == ["ok"]
    report_task(draw)
    assert "throughput-over-max_loras" not in (out / "README.md").read_text()


def test_the_page_names_the_targets_that_are_missed_and_their_rows() -> None:
    rows = scored().iloc[:3].assign(regime="stable", ttft_all_ms=50.0, sim_ttft_all_ms=[50.0, 50.0, 90.0])
    text = "\n".join(misses(rows, summary(scored())))
    assert "output throughput: the SMAPE is 9.76 % (target 4 %)" in text
    assert "One row alone carries it; without, it is 0 %:" in text
    assert (
        "llama, 16 adapters of ranks 8 16 at up to 0.1/s in 32 slots: measured 50.0, predicted 90.0 ms"
        in text
    )
    assert "Regret: 10.0 % on average" in text


def test_rows_without_results_are_counted_but_not_compared() -> None:
    found = summary(scored())
    assert (found["rows"], found["compared"], found["predicted_oom"]) == (4, 3, 1)
    assert found["measured_but_predicted_oom"] == 0
    itl = found["errors"]["all"][1]
    assert itl["bias_pct"] == pytest.approx(10)
    assert itl["twin_smape_pct"] is None
