"""One process at a time: what exchanging it costs, what it waits for, and what is lost with it."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import UserError
from sim.simulation import simulate

MODEL: dict[str, Any] = {
    "name": "tiny",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 1000,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
RESTART = {"mechanism": "process_restart", "stop_s": 2.0, "start_s": 5.0}


def values(
    order: list[int], engine: dict[str, Any] | None = None, swap: Any = RESTART, **more: Any
) -> dict[str, Any]:
    slots = 1 if swap["mechanism"] != "slots" else 2
    return {
        "engine": {"max_loras": slots, "max_cpu_loras": slots, **(engine or {})},
        "model": MODEL,
        "profile": {"kind": "constant", "step_ms": 10},
        "workload": {
            "mode": "closed",
            "concurrency": 1,
            "num_requests": len(order),
            "num_adapters": max(order) + 1,
            "popularity": {"kind": "order", "order": order},
            "input_length": 20,
            "output_length": 3,
        },
        "admission": {"_target_": "policies.admission.FcfsSkip"},
        "eviction": {"_target_": "policies.eviction.Lru"},
        "swap": swap,
        "record": {"adapters": True, "steps": True},
    } | more


def moves(cfg: dict[str, Any]) -> list[tuple[float, str, str, float]]:
    table = simulate(cfg).adapters
    assert table is not None
    return [
        (row["time_s"], row["kind"], row["adapter"], row["duration_ms"] or 0)
        for row in table.to_pylist()
        if row["kind"] in ("activate", "evict_slot")
    ]


def test_a_switch_stops_one_process_and_starts_another() -> None:
    # A request takes three steps of 10 ms; the first process has none to stop before it.
    assert moves(values([0, 1, 1, 0])) == [
        (5.0, "activate", "adapter-0000", 5000),
        (5.03, "evict_slot", "adapter-0000", 0),
        (12.03, "activate", "adapter-0001", 7000),
        (12.09, "evict_slot", "adapter-0001", 0),
        (19.09, "activate", "adapter-0000", 7000),
    ]


def test_a_process_that_runs_at_the_start_is_not_started() -> None:
    warm = {"initial_host_cache": 1, "initial_slots": 1}
    assert moves(values([0, 0, 1], warm)) == [
        (0, "activate", "adapter-0000", 0),
        (0.06, "evict_slot", "adapter-0000", 0),
        (7.06, "activate", "adapter-0001", 7000),
    ]


@settings(max_examples=25, deadline=None)
@given(
    order=st.lists(st.integers(0, 2), min_size=2, max_size=14),
    concurrency=st.integers(1, 6),
    asynchronous=st.booleans(),
    fast=st.booleans(),
    policy=st.sampled_from(["FcfsSkip", "TimeSlice"]),
)
def test_an_exchange_waits_until_nothing_runs(
    order: list[int], concurrency: int, asynchronous: bool, fast: bool, policy: str
) -> None:
    cfg = values(order, {"async_scheduling": asynchronous, "fast_forward": fast, "max_num_seqs": 4})
    cfg["workload"] |= {"concurrency": concurrency, "output_length": {"kind": "uniform", "min": 1, "max": 9}}
    cfg["admission"] = {"_target_": f"policies.admission.{policy}"}
    rows = simulate(cfg).requests.to_pylist()
    assert all(row["status"] == "completed" for row in rows)
    in_order = sorted(rows, key=lambda row: row["first_token_s"])
    for before, after in pairwise(in_order):
        if before["adapter"] != after["adapter"]:
            together = [row for row in in_order if row["first_token_s"] <= before["first_token_s"]]
            last_s = max(row["finish_s"] for row in together)
            # Its answer is known before the process stops, and not after the next one has started.
            assert after["first_token_s"] >= last_s + 7.0 - 1e-9


@pytest.mark.parametrize(("mechanism", "tokens"), [("slots", [33, 33, 1]), ("process_restart", [33, 33, 33])])
def test_the_kv_cache_is_lost_with_the_process(tmp_path: Path, mechanism: str, tokens: list[int]) -> None:
    lines = [
        {
            "timestamp": 1000 * second,
            "input_length": 33,
            "output_length": 1,
            "adapter": adapter,
            "hash_ids": [7],
        }
        for second, adapter in ((0, "a"), (20, "b"), (40, "a"))
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    swap = RESTART if mechanism == "process_restart" else {"mechanism": "slots"}
    workload = {"mode": "open", "path": str(path), "popularity": None, "input_length": None}
    cfg = values([0], swap=swap, workload=workload | {"output_length": None, "hash_block_size": 33})
    steps = simulate(cfg).steps
    assert steps is not None
    assert steps.column("num_tokens").to_pylist() == tokens


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"engine": {"max_loras": 2, "max_cpu_loras": 2}},
            "engine.max_loras=2: swap.mechanism=process_restart",
        ),
        ({"engine": {"max_loras": 1, "max_cpu_loras": 4}}, "engine.max_cpu_loras=4: swap.mechanism"),
        (
            {"bound": "latency"},
            "bound='latency': swap.mechanism=process_restart serves one adapter at a time",
        ),
        (
            {"prefetch": {"_target_": "policies.prefetch.QueuePrefetch"}},
            "prefetch=QueuePrefetch: process_restart has no host cache to fill; expected none",
        ),
        (
            {"swap": {"mechanism": "sleep"}},
            "swap.mechanism='sleep': expected one of slots, process_restart, s",
        ),
        ({"swap": {"mechanism": "sleep_mode", "stop_s": -1}}, "swap.stop_s=-1.0: must not be negative"),
        ({"swap": {"mechanism": "slots", "start_s": 1}}, "swap.start_s=1.0: with swap.mechanism=slots"),
    ],
)
def test_what_one_process_does_not_have_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        simulate(values([0, 1]) | changes)
    assert str(raised.value).startswith(message)
