"""A lost replica and a fallback: by hand, and nobody's request is lost or answered twice."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import results
from sim.errors import UserError
from sim.simulation import run, simulate
from tests.sim.test_simulation import CLOSED, OPEN, config

HOSTED = {
    "ttft_ms": 25,
    "tpot_ms": 5,
    "usd_per_request": 0.5,
    "usd_per_million_input_tokens": 1000,
    "usd_per_million_output_tokens": 2000,
}
"""A request of 20 and 5 tokens takes 45 ms and costs 0.53 dollars."""
Config = dict[str, Any]


def two_at_once(**top: Any) -> Config:
    """Four requests of 5 steps of 10 ms, two at a time, a replica for each."""
    closed = {"mode": "closed", "concurrency": 2, "num_requests": 4}
    return config(closed, {"max_num_seqs": 1, "async_scheduling": False}, **({"replicas": 2} | top))


def timeline(values: Config) -> list[tuple[Any, ...]]:
    """Arrival, end and first token of each request in ms, where it went, and what became of it."""
    rows = simulate(values).requests.to_pylist()
    times = [tuple(None if row[name] is None else round(1e3 * row[name]) for name in _TIMES) for row in rows]
    return [(*time, row.get("replica"), row["status"]) for time, row in zip(times, rows, strict=True)]


_TIMES = ("arrival_s", "first_token_s", "finish_s")


def test_a_request_of_a_lost_replica_begins_again_at_the_other_one() -> None:
    assert timeline(two_at_once(failover={"at_s": 0.02, "replica": 1})) == [
        (0, 10, 50, 0, "completed"),
        (0, 60, 100, 0, "completed"),
        (50, 110, 150, 0, "completed"),
        (100, 160, 200, 0, "completed"),
    ]
    summary = simulate(two_at_once(failover={"at_s": 0.025, "replica": 1})).summary
    assert summary["gateway"]["resent"] == 1
    assert summary["gateway"]["lost_output_tokens"] == 2
    assert summary["total_output_tokens"] == 4 * 5 + 2
    assert [replica["counts"]["submitted"] for replica in summary["replicas"]] == [4, 0]


def test_nobody_answers_until_the_loss_is_noticed() -> None:
    assert timeline(two_at_once(failover={"at_s": 0.02, "replica": 1, "detect_s": 0.05})) == [
        (0, 10, 50, 0, "completed"),
        # Sent again at 70, behind the one that came at 50.
        (0, 110, 150, 0, "completed"),
        (50, 60, 100, 0, "completed"),
        (100, 160, 200, 0, "completed"),
    ]


@pytest.mark.parametrize("resend", ["replicas", "fallback"])
def test_the_fallback_answers_at_its_own_pace_and_price(resend: str) -> None:
    """With one replica the fallback is all that is left; of two, where it is told so."""
    replicas = 1 if resend == "replicas" else 2
    failover = {"at_s": 0.02, "replica": replicas - 1, "resend": resend}
    values = two_at_once(replicas=replicas, failover=failover, fallback=HOSTED)
    result = simulate(values)
    rows = result.requests.to_pylist()
    degraded = [row for row in rows if row["status"] == "degraded"]
    assert degraded
    first = degraded[0]
    assert (first["first_token_s"], first["finish_s"]) == pytest.approx((0.045, 0.065))
    assert first["num_generated_tokens"] == 5
    found = result.summary["gateway"]
    assert found["fallback_usd"] == pytest.approx(0.53 * len(degraded))
    assert found["median_degraded_e2el_ms"] >= 45
    assert result.summary["counts"]["degraded"] == len(degraded) == 4 - result.summary["counts"]["completed"]
    # Neither throughput nor goodput has them.
    assert result.summary["completed"] == 4 - len(degraded)


def test_without_anybody_left_requests_end_with_an_error() -> None:
    values = config(OPEN, failover={"at_s": 1.0})
    rows = simulate(values).requests.to_pylist()
    for row in rows:
        assert (row["status"] == "failed") == (row["finish_s"] is None)
        assert row["finish_s"] is None or row["finish_s"] < 1.0
    assert rows[-1]["status"] == "failed"
    assert simulate(values).summary["counts"]["failed"] == sum(row["status"] == "failed" for row in rows)


def test_the_fallback_gets_what_a_full_replica_would_let_wait() -> None:
    crowd = {"mode": "closed", "concurrency": 5, "num_requests": 5}
    fallback = HOSTED | {"max_in_flight": 3}
    result = simulate(config(crowd, fallback=fallback))
    assert result.requests.column("status").to_pylist() == ["completed"] * 3 + ["degraded"] * 2


def test_a_client_gives_up_wherever_its_request_is() -> None:
    shape = {"mode": "open", "request_rate": 50.0, "duration_s": 0.2, "abort_ms": 30}
    slow = HOSTED | {"ttft_ms": 1000}
    failover = {"at_s": 0.05, "detect_s": 0.1}
    summary = simulate(config(shape, replicas=2, failover=failover, fallback=slow)).summary
    counts = summary["counts"]
    assert counts["aborted"] == counts["submitted"] - counts["running"] - counts["waiting"] > 0
    assert summary["gateway"]["degraded_output_tokens"] == 0


def test_what_is_off_leaves_everything_as_it_was(tmp_path: Path) -> None:
    run(config(OPEN, replicas=2), tmp_path / "plain")
    off = {"failover": {"at_s": None, "replica": 1}, "fallback": {}}
    run(config(OPEN, replicas=2, **off), tmp_path / "off")
    for file in ("requests.parquet", "steps.parquet"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "off" / file).read_bytes()
    first, second = (results.read_summary(tmp_path / folder) for folder in ("plain", "off"))
    assert first | {"config": None} == second | {"config": None}
    assert "gateway" not in first
    assert "degraded" not in first["counts"]


def test_until_the_loss_nothing_is_different() -> None:
    plain, lost = (
        simulate(config(OPEN, replicas=2, failover={"at_s": at_s})).requests.to_pylist()
        for at_s in (None, 1.0)
    )
    pairs = zip(plain, lost, strict=True)
    early = [(row, other) for row, other in pairs if row["finish_s"] is not None and row["finish_s"] < 1.0]
    assert len(early) > 5
    assert all(row == other for row, other in early)


LOSSES = st.fixed_dictionaries(
    {
        "at_s": st.floats(0, 2.5),
        "replica": st.integers(0, 1),
        "detect_s": st.sampled_from([0.0, 0.05, 0.7]),
        "resend": st.sampled_from(["replicas", "fallback", "none"]),
    }
)


CASES = st.fixed_dictionaries(
    {
        "failover": LOSSES,
        "max_in_flight": st.sampled_from([None, 1, 6]),
        "workload": st.sampled_from([OPEN | {"request_rate": 60.0}, CLOSED, CLOSED | {"num_requests": 40}]),
        "abort_ms": st.sampled_from([None, 120]),
        "routing": st.sampled_from(["RoundRobin", "LeastLoaded", "AdapterAffinity"]),
        "engine": st.sampled_from([{}, {"async_scheduling": False}, {"max_loras": 2}]),
        "seed": st.integers(0, 5),
    }
)


@settings(max_examples=40, deadline=None)
@given(case=CASES)
def test_every_request_has_one_end(case: Config) -> None:
    top = {name: case[name] for name in ("failover", "seed")} | {"replicas": 2}
    top["fallback"] = HOSTED | {"max_in_flight": case["max_in_flight"]}
    top["routing"] = {"_target_": f"policies.routing.{case['routing']}"}
    workload = case["workload"] | {"abort_ms": case["abort_ms"]}
    step_by_step, fast = (
        simulate(config(workload, case["engine"] | {"fast_forward": is_fast}, **top))
        for is_fast in (False, True)
    )
    assert step_by_step.requests.equals(fast.requests)
    check(fast.summary, fast.requests.to_pylist(), case["failover"])


def check(summary: Config, rows: list[Config], failover: Config) -> None:
    counts = summary["counts"]
    assert counts["submitted"] == len(rows) == len({row["request_id"] for row in rows})
    assert counts["submitted"] == sum(count for status, count in counts.items() if status != "submitted")
    noticed_s = failover["at_s"] + failover["detect_s"]
    for row in rows:
        is_done = row["status"] in ("completed", "degraded")
        assert is_done == (row["finish_s"] is not None)
        if is_done:
            assert row["num_generated_tokens"] == row["output_length"]
            assert row["arrival_s"] < row["first_token_s"] <= row["finish_s"]
        if row["status"] in ("degraded", "failed"):
            assert row["replica"] is None
        if row["status"] == "failed":
            assert failover["resend"] == "none"
        if row["replica"] == failover["replica"] and is_done:
            assert row["finish_s"] <= failover["at_s"]
        if row["replica"] == failover["replica"] and row["status"] in ("running", "waiting"):
            assert summary["duration_s"] <= noticed_s
    each = [replica["counts"] for replica in summary["replicas"]]
    assert sum(replica["completed"] for replica in each) == counts["completed"]
    generated = sum(row["num_generated_tokens"] for row in rows)
    of_fallback = summary["gateway"]["degraded_output_tokens"]
    engines = summary["total_output_tokens"] - summary["gateway"]["lost_output_tokens"]
    assert generated == engines + of_fallback


@pytest.mark.parametrize(
    ("top", "message"),
    [
        ({"failover": {"at_s": -1}}, r"^failover.at_s=-1.0: must not be negative"),
        ({"failover": {"at_s": 1, "replica": 2}}, r"^failover.replica=2: expected 0 to 1; see replicas=2"),
        ({"failover": {"resend": "later"}}, r"^failover.resend='later': expected one of replicas, fallback"),
        ({"failover": {"resend": "fallback"}}, r"^failover.resend=fallback: there is none"),
        ({"failover": {"at_s": 1}, "replicas": 1}, r"^failover.at_s=1.0: nobody is left .* closed loop"),
        ({"failover": {"when": 1}}, r"^unknown key failover.when; accepted: at_s"),
        ({"fallback": {"ttft_ms": 1}}, r"^missing key fallback.tpot_ms"),
        ({"fallback": HOSTED | {"tpot_ms": -1}}, r"^fallback.tpot_ms=-1.0: must not be negative"),
        ({"fallback": HOSTED | {"max_in_flight": 0}}, r"^fallback.max_in_flight=0: must be greater than 0"),
        ({"fallback": 3}, r"^fallback=3: expected a mapping"),
    ],
)
def test_impossible_settings_are_refused(top: Config, message: str) -> None:
    with pytest.raises(UserError, match=message):
        simulate(config(CLOSED, **({"replicas": 2} | top)))


def test_a_lost_replica_prefetches_nothing() -> None:
    """A prefetch that would go on for ever ends with its replica."""
    wants_all = {"_target_": "test_failover.WantsAll"}
    values = config(OPEN, {"max_loras": 2, "max_cpu_loras": 2}, replicas=2, record={"adapters": True})
    values |= {"prefetch": wants_all, "profile": values["profile"], "failover": {"at_s": 0.5, "replica": 0}}
    moves = simulate(values).adapters
    assert moves is not None
    loads = [row for row in moves.to_pylist() if row["replica"] == 0 and row["kind"] == "load"]
    assert loads
    assert max(row["time_s"] for row in loads) <= 0.5


class WantsAll:
    """Wants another adapter every 50 ms, and what waits in any case."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.asked_ns = -1

    def bind(self, engine: Any) -> None:
        self.engine = engine

    def on_arrival(self, request: Any) -> None:
        self.waiting.append(request.adapter)

    def on_departure(self, request: Any) -> None:
        self.waiting.remove(request.adapter)

    def wanted(self) -> list[str]:
        now_ns = int(self.engine.now_ns)
        is_time, self.asked_ns = now_ns >= self.asked_ns + 50_000_000, now_ns
        return [*self.waiting, *([f"adapter-{now_ns % 7:04d}"] if is_time else [])]

    def next_change_ns(self) -> int:
        return int(self.engine.now_ns) + 50_000_000
