"""Runs that play a trace: whole step tables by hand, and what becomes of each request."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import results
from sim.errors import UserError
from sim.simulation import run, simulate
from tests.sim.test_simulation import ENGINES, config

Config = dict[str, Any]
Rows = list[tuple[int, float, float, str, int]]
SIZES: Config = {
    "max_loras": 2,
    "max_cpu_loras": 8,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 16,
    "max_model_len": 64,
    "num_gpu_blocks": 100,
    "block_size": 4,
    "enable_prefix_caching": False,
}
TRACE: Config = {"mode": "open", "popularity": None, "input_length": None, "output_length": None}


@pytest.fixture
def trace(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: Config) -> Path:
        (tmp_path / "T.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path / "T.jsonl"

    return write


def line(timestamp: float, name: str, input_length: int, output_length: int, **more: Any) -> Config:
    lengths = {"input_length": input_length, "output_length": output_length}
    return {"timestamp": timestamp, "request_id": name, "adapter": None, **lengths} | more


def played(path: Path, engine: Config, workload: Config | None = None, **top: Any) -> results.Result:
    values = config({}, SIZES | engine, **top)
    return simulate(values | {"workload": TRACE | {"path": str(path)} | (workload or {})})


def steps(path: Path, engine: Config, workload: Config | None = None) -> Rows:
    table = played(path, engine, workload).steps
    assert table is not None
    return [tuple(row.values()) for row in table.to_pylist()]  # type: ignore[misc]


FOUR = [
    # Equal times are taken in the order of the file.
    line(0, "c", 6, 2, adapter="x"),
    line(0, "a", 4, 3, adapter="y"),
    # A third adapter waits for one of two slots; the base model needs none.
    line(0, "b", 3, 1, adapter="z"),
    line(10, "d", 20, 2),
]


def test_synchronous_steps_by_hand(trace: Callable[..., Path]) -> None:
    """`d` arrives at the instant of the second schedule, which sees it; the budget cuts its prompt."""
    assert steps(trace(*FOUR), {"async_scheduling": False}) == [
        (0, 0.0, 0.01, "c", 6),
        (0, 0.0, 0.01, "a", 4),
        (1, 0.01, 0.02, "c", 1),
        (1, 0.01, 0.02, "a", 1),
        (1, 0.01, 0.02, "d", 14),
        (2, 0.02, 0.03, "a", 1),
        (2, 0.02, 0.03, "d", 6),
        (2, 0.02, 0.03, "b", 3),
        (3, 0.03, 0.04, "d", 1),
    ]


def test_asynchronous_steps_by_hand(trace: Callable[..., Path]) -> None:
    """The second step is scheduled at 0, when the first has started, and the third at 0.01, which sees `d`.

    `c` has its last token scheduled in the second step, but its adapter's place is free in the third.
    """
    assert steps(trace(*FOUR), {"async_scheduling": True}) == [
        (0, 0.0, 0.01, "c", 6),
        (0, 0.0, 0.01, "a", 4),
        (1, 0.01, 0.02, "c", 1),
        (1, 0.01, 0.02, "a", 1),
        (2, 0.02, 0.03, "a", 1),
        (2, 0.02, 0.03, "b", 3),
        (2, 0.02, 0.03, "d", 12),
        (3, 0.03, 0.04, "d", 8),
        (4, 0.04, 0.05, "d", 1),
    ]


def test_an_empty_asynchronous_schedule_is_no_step(trace: Callable[..., Path]) -> None:
    lines = [line(0, "a", 4, 2), line(25, "b", 4, 1)]
    assert steps(trace(*lines), {"async_scheduling": True}) == [
        (0, 0.0, 0.01, "a", 4),
        (1, 0.01, 0.02, "a", 1),
        (2, 0.025, 0.035, "b", 4),
    ]


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_a_closed_loop_plays_the_file_in_order(trace: Callable[..., Path], async_scheduling: bool) -> None:
    lines = [
        line(9, "a", 4, 2),
        line(5, "b", 4, 1),
        line(1, "c", 4, 1),
        line(0, "too long", 60, 9),
        line(0, "d", 4, 1),
    ]
    closed = {"mode": "closed", "concurrency": 2}
    result = played(trace(*lines), {"async_scheduling": async_scheduling}, closed)
    found = [(r["request_id"], r["arrival_s"], r["status"]) for r in result.requests.to_pylist()]
    assert found == [
        ("a", 0.0, "completed"),
        ("b", 0.0, "completed"),
        ("c", 0.01, "completed"),
        ("too long", 0.02, "rejected"),
        ("d", 0.02, "completed"),
    ]


def test_a_client_that_gives_up_is_counted_as_aborted(trace: Callable[..., Path]) -> None:
    """At 25 ms two tokens are known. A request whose time is up at its completion is aborted as well."""
    lines = [
        line(0, "a", 4, 9, abort_ms=25),
        line(0, "b", 4, 2, abort_ms=20.001),
        line(0, "c", 4, 2, abort_ms=20),
    ]
    result = played(trace(*lines), {"async_scheduling": False})
    rows = {row["request_id"]: row for row in result.requests.to_pylist()}
    assert {name: (row["status"], row["num_generated_tokens"]) for name, row in rows.items()} == {
        "a": ("aborted", 2),
        "b": ("completed", 2),
        "c": ("aborted", 1),
    }
    counts = result.summary["counts"]
    assert counts == {"submitted": 3, "completed": 1, "running": 0, "waiting": 0, "rejected": 0, "aborted": 2}
    assert result.summary["total_output_tokens"] == 5


def test_an_aborted_request_makes_room_in_a_closed_loop(trace: Callable[..., Path]) -> None:
    lines = [line(0, "a", 4, 9, abort_ms=25), line(0, "b", 4, 1)]
    result = played(trace(*lines), {"async_scheduling": False}, {"mode": "closed", "concurrency": 1})
    assert result.requests.column("arrival_s").to_pylist() == [0.0, 0.025]


@pytest.mark.parametrize("mode", ["open", "closed"])
@pytest.mark.parametrize("async_scheduling", [False, True])
def test_who_gives_up_at_once_is_never_scheduled(
    trace: Callable[..., Path], mode: str, async_scheduling: bool
) -> None:
    gone = [line(10, f"gone {number}", 4, 1, abort_ms=0) for number in range(3)]
    path = trace(line(0, "a", 4, 1), *gone, line(10, "b", 4, 1))
    result = played(path, {"async_scheduling": async_scheduling}, {"mode": mode, "concurrency": 1})
    assert result.steps is not None
    assert result.steps.column("request_id").to_pylist() == ["a", "b"]
    assert result.requests.column("arrival_s").to_pylist() == [0.0, 0.01, 0.01, 0.01, 0.01]
    assert (result.summary["counts"]["completed"], result.summary["counts"]["aborted"]) == (2, 3)


def test_what_vllms_server_would_refuse_is_rejected(trace: Callable[..., Path]) -> None:
    path = trace(
        line(0, "fits", 60, 4),
        line(0, "long", 61, 4),
        line(0, "unknown", 4, 1, adapter="other"),
        line(0, "large", 4, 1, adapter="x", rank=64),
        line(0, "y", 4, 1, adapter="y", rank=8),
    )
    statuses = played(path, {}, {"adapters": ["x", "y"]}).requests.column("status").to_pylist()
    assert statuses == ["completed", "rejected", "rejected", "rejected", "completed"]
    assert played(path, {}).requests.column("status").to_pylist()[2] == "completed"


def test_who_has_no_room_beside_the_null_block_waits_for_ever(trace: Callable[..., Path]) -> None:
    """And those behind, in the order of arrival; 15 blocks of 4 tokens are to be had."""
    path = trace(line(0, "fits", 57, 4), line(0, "long", 61, 1), line(0, "behind", 4, 1))
    result = played(path, {"num_gpu_blocks": 16, "max_num_batched_tokens": 64})
    assert result.requests.column("status").to_pylist() == ["completed", "waiting", "waiting"]
    assert result.summary["warnings"][1:] == [
        "16 KV blocks, of which vLLM keeps one: a request of more than 61 tokens waits for ever, and those "
        "behind it, though engine.max_model_len=64"
    ]


def test_a_warm_start_with_an_adapter_that_nobody_asks_for_is_named(trace: Callable[..., Path]) -> None:
    path = trace(line(0, "a", 4, 1, adapter="x"))
    warm = {"block_size": 16, "initial_host_cache": ["x", "typo"], "initial_slots": ["x"]}
    result = played(path, warm)
    assert result.summary["warnings"] == ["engine.initial_host_cache: no request asks for typo"]
    assert result.summary["adapter_loads"] == 0


def test_a_run_says_what_it_played(tmp_path: Path, trace: Callable[..., Path]) -> None:
    path = trace(line(0, "a", 4, 1), line(0, "a", 4, 1), line(0, "b", 0, 1))
    summary = played(path, {}, {"on_bad_line": "skip"}).summary
    assert summary["counts"]["submitted"] == summary["trace"]["requests"] == 1
    assert summary["trace"]["skipped_lines"] == 2
    assert summary["trace"]["first_skipped_lines"] == [
        "line 2: request_id='a' occurs in line 1 already",
        "line 3: input_length=0: must be at least 1",
    ]
    assert "trace" not in simulate(config({"mode": "closed", "concurrency": 1, "num_requests": 1})).summary


def test_duration_ends_a_run_and_what_came_before_is_counted(trace: Callable[..., Path]) -> None:
    path = trace(*(line(10.0 * n, f"r{n}", 16, 4) for n in range(20)))
    summary = played(path, {"max_num_seqs": 2}, {"duration_s": 0.1}).summary
    assert summary["duration_s"] == 0.1
    counts = summary["counts"]
    assert counts["submitted"] == 10
    assert counts["running"] == 2
    assert counts["waiting"] > 0
    assert summary["trace"]["requests"] == 20


def test_a_trace_that_is_done_ends_the_run_before_its_duration(trace: Callable[..., Path]) -> None:
    assert played(trace(line(0, "a", 4, 3)), {}, {"duration_s": 9.0}).summary["duration_s"] == 0.03


def test_shared_prefixes_are_computed_once(trace: Callable[..., Path]) -> None:
    """Hash blocks of 8 tokens: 8 of 16 are shared by the same adapter, none by another one."""
    path = trace(
        line(0, "a", 16, 1, adapter="x", hash_ids=[1, 2]),
        line(100, "b", 16, 1, adapter="x", hash_ids=[1, 3]),
        line(200, "c", 16, 1, adapter="y", hash_ids=[1, 2]),
    )
    found = steps(path, {"enable_prefix_caching": True}, {"hash_block_size": 8})
    assert [(name, tokens) for *_, name, tokens in found] == [("a", 16), ("b", 8), ("c", 16)]


def test_priorities_reach_the_scheduler(trace: Callable[..., Path]) -> None:
    path = trace(line(0, "a", 4, 1), line(0, "b", 4, 1, priority=-1))
    admission = {"_target_": "policies.admission.Priority"}
    urgent = played(path, {"max_num_seqs": 1, "scheduling_policy": "priority"}, admission=admission)
    assert urgent.requests.column("first_token_s").to_pylist() == [0.02, 0.01]


def test_our_own_requests_play_again(tmp_path: Path) -> None:
    """Open loop, no policy differs: the second run is the first one."""
    first = run(config({"mode": "open", "request_rate": 20.0, "duration_s": 2.0}), tmp_path)
    again = played(tmp_path / "requests.parquet", {}, {"duration_s": 2.0})
    assert again.requests.select(["request_id", "adapter", "arrival_s"]) == first.requests.select(
        ["request_id", "adapter", "arrival_s"]
    )


def test_a_closed_loop_of_rejected_requests_does_not_go_on_for_ever() -> None:
    lengths = {"kind": "uniform", "min": 1, "max": 1000}
    closed = {"mode": "closed", "concurrency": 2, "duration_s": 0.5, "num_adapters": 3}
    served = config(closed | {"input_length": lengths, "output_length": 3, "popularity": {"kind": "uniform"}})
    counts = simulate(served).summary["counts"]
    assert counts["rejected"] > counts["completed"] > 0
    served["workload"]["adapters"] = ["none of them"]
    with pytest.raises(UserError, match=r"requests in a row were rejected; see engine\.max_model_len=128"):
        simulate(served)


LENGTHS = st.one_of(
    st.integers(1, 130),
    st.fixed_dictionaries({"kind": st.just("uniform"), "min": st.integers(1, 9), "max": st.integers(9, 200)}),
    st.fixed_dictionaries({"kind": st.just("lognormal"), "mean": st.floats(1, 90), "sigma": st.floats(0, 2)}),
    st.fixed_dictionaries(
        {"kind": st.just("per_adapter"), "across": st.integers(1, 90), "sigma": st.floats(0, 1)}
    ),
)
ARRIVALS = st.one_of(
    st.fixed_dictionaries({"kind": st.just("poisson")}),
    st.fixed_dictionaries({"kind": st.just("gamma"), "cv": st.floats(0.3, 4)}),
    st.fixed_dictionaries({"kind": st.just("mmpp"), "dwell_s": st.just([0.3, 0.1])}),
    st.fixed_dictionaries({"kind": st.just("diurnal"), "period_s": st.floats(0.1, 2)}),
)
POPULARITY = st.one_of(
    st.fixed_dictionaries({"kind": st.sampled_from(["uniform", "zipf"])}),
    st.fixed_dictionaries({"kind": st.just("hot_set"), "size": st.integers(1, 12)}),
    st.just({"kind": "rates", "rate_values": [3.0, 1.0], "rate_counts": [4, 6]}),
)
SYNTHETIC = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["open", "closed"]),
        "request_rate": st.floats(1, 200),
        "concurrency": st.integers(1, 20),
        "num_requests": st.integers(1, 60),
        "duration_s": st.one_of(st.none(), st.floats(0.01, 1.5)),
        "abort_ms": st.one_of(st.none(), st.floats(1, 500)),
        "arrivals": ARRIVALS,
        "popularity": POPULARITY,
        "input_length": LENGTHS,
        "output_length": LENGTHS,
        "drift": st.one_of(st.none(), st.just({"period_requests": 7, "shift": 3})),
        "adapter_rank": st.one_of(st.none(), st.just({"values": [8, 16], "weights": [1, 3]})),
    }
)
ROUTING = st.sampled_from(["RoundRobin", "LeastLoaded", "AdapterAffinity"])


def check_counts(values: Config) -> None:
    """Submitted is the sum of what became of the requests, in the summary and in the table."""
    try:
        result = simulate(values)
    except UserError as error:
        assert "must be at most engine.max_model_len" in str(error)
        return
    counts = dict(result.summary["counts"])
    submitted = counts.pop("submitted")
    statuses = result.requests.column("status").to_pylist()
    assert submitted == sum(counts.values()) == len(statuses)
    assert counts == {name: statuses.count(name) for name in counts}
    if values["workload"].get("duration_s") is None:
        assert counts["running"] == counts["waiting"] == 0
    generated = sum(result.requests.column("num_generated_tokens").to_pylist())
    assert result.summary["total_output_tokens"] == generated
    if values["replicas"] > 1:
        each = result.summary["replicas"]
        for name in ("total_output_tokens", "engine_steps", "adapter_loads", "completed"):
            assert sum(replica[name] for replica in each) == result.summary[name]
        assert sum(r["counts"]["submitted"] for r in each) == submitted - counts["rejected"]


@settings(deadline=None, max_examples=150)
@given(ENGINES, SYNTHETIC, st.integers(1, 3), ROUTING, st.integers(0, 3))
def test_nothing_is_lost_of_any_workload(
    engine: Config, workload: Config, replicas: int, routing: str, seed: int
) -> None:
    routing_ = {"_target_": f"policies.routing.{routing}"}
    check_counts(config(workload, engine, seed=seed, replicas=replicas, routing=routing_))


LINES = st.lists(
    st.fixed_dictionaries(
        {
            "timestamp": st.integers(0, 60),
            "input_length": st.integers(0, 90),
            "output_length": st.integers(0, 60),
        },
        optional={
            "adapter": st.sampled_from([None, *"uvwxyz"]),
            "priority": st.integers(-1, 1),
            "abort_ms": st.integers(0, 90),
            "rank": st.sampled_from([8, 16, 64]),
            "hash_ids": st.lists(st.integers(0, 2), max_size=3),
        },
    ),
    min_size=1,
    max_size=30,
)


PLAYED = st.fixed_dictionaries(
    {
        "closed": st.booleans(),
        "duration_s": st.one_of(st.none(), st.floats(0.01, 0.5)),
        "replicas": st.integers(1, 2),
        "ordered": st.booleans(),
    }
)


@settings(deadline=None, max_examples=150)
@given(ENGINES, LINES, PLAYED)
def test_nothing_is_lost_of_any_trace(
    tmp_path_factory: pytest.TempPathFactory, engine: Config, lines: list[Config], how: Config
) -> None:
    """Lines that are skipped are counted, every other one is submitted or beyond the end."""
    path = tmp_path_factory.mktemp("trace") / "T.jsonl"
    if how["ordered"]:
        lines = sorted(lines, key=lambda line: line["timestamp"])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    workload = {
        "path": str(path),
        "on_bad_line": "skip",
        "duration_s": how["duration_s"],
        "hash_block_size": 16,
    }
    workload |= {"mode": "closed", "concurrency": 3} if how["closed"] else {"mode": "open"}
    values = config({}, engine, replicas=how["replicas"])
    values["workload"] = TRACE | workload | {"popularity": {"kind": "uniform"}, "num_adapters": 9}
    try:
        summary = simulate(values).summary
    except UserError as error:
        assert "no requests in it" in str(error)
        return
    check_counts(values)
    report = summary["trace"]
    assert report["requests"] + report["skipped_lines"] == len(lines)
    if how["duration_s"] is None:
        assert summary["counts"]["submitted"] == report["requests"]
