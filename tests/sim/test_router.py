"""Routing policies on their own, and runs with several engines."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from policies.routing import AdapterAffinity, LeastLoaded, RoundRobin, Weighted
from sim import results
from sim.errors import UserError
from sim.request import Request
from sim.simulation import run, simulate
from tests.policies.parameter_conformance import assert_refuses_bad_parameters
from tests.sim.test_simulation import CLOSED, OPEN, config


@dataclass
class Replica:
    num_waiting: int = 0
    num_running: int = 0
    slots: set[str] = field(default_factory=set)
    host_cache: set[str] = field(default_factory=set)


def request(adapter: str | None = "x") -> Request:
    return Request("r", 0, 4, 1, adapter=adapter)


def routing(name: str) -> dict[str, Any]:
    return {"_target_": f"policies.routing.{name}"}


@pytest.mark.parametrize("make", [AdapterAffinity, LeastLoaded, RoundRobin])
def test_what_is_no_value_for_a_parameter_is_refused_by_name(make: Any) -> None:
    assert_refuses_bad_parameters(make)


def test_bad_weights_are_refused_by_name() -> None:
    assert_refuses_bad_parameters(Weighted, weights=[1, 1])


def test_round_robin_takes_turns() -> None:
    policy, replicas = RoundRobin(), [Replica(9, 9), Replica(), Replica()]
    assert [policy.route(request(), replicas) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_least_loaded_counts_waiting_and_running_and_takes_the_first_of_equals() -> None:
    policy = LeastLoaded()
    assert policy.route(request(), [Replica(2, 3), Replica(4, 0), Replica(0, 4)]) == 1
    assert policy.route(request(), [Replica(), Replica()]) == 0


def test_adapter_affinity_sends_an_adapter_home_unless_home_is_overloaded() -> None:
    policy, replicas = AdapterAffinity(max_lead=2), [Replica(), Replica(), Replica()]
    home = policy.route(request(), replicas)
    replicas[home].num_waiting = 2
    assert policy.route(request(), replicas) == home
    replicas[home].num_running = 1
    elsewhere = policy.route(request(), replicas)
    assert elsewhere != home
    assert elsewhere == LeastLoaded().route(request(), replicas)
    assert policy.route(request(None), replicas) == elsewhere


def test_homes_are_spread_evenly_and_few_move_when_a_replica_is_added() -> None:
    policy = AdapterAffinity()
    three, four = (
        [policy.route(request(f"adapter-{n}"), [Replica()] * replicas) for n in range(3000)]
        for replicas in (3, 4)
    )
    assert stats.chisquare(list(Counter(four).values())).pvalue > 0.01
    moved = [after for before, after in zip(three, four, strict=True) if before != after]
    assert set(moved) == {3}
    assert len(moved) == four.count(3)


@pytest.mark.parametrize("name", ["RoundRobin", "LeastLoaded", "AdapterAffinity"])
def test_one_replica_is_what_it_was_before_there_were_several(tmp_path: Path, name: str) -> None:
    plain = config(OPEN)
    run(plain, tmp_path / "plain")
    run(plain | {"replicas": 1, "routing": routing(name)}, tmp_path / "one")
    for file in ("requests.parquet", "steps.parquet"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    first, second = (results.read_summary(tmp_path / folder) for folder in ("plain", "one"))
    assert first | {"config": None} == second | {"config": None}
    assert "replicas" not in first
    assert "replica" not in results.read_steps(tmp_path / "one").schema.names


def test_two_replicas_by_hand() -> None:
    """Requests of 5 steps of 10 ms, one at a time in each engine."""
    closed = {"mode": "closed", "concurrency": 2, "num_requests": 4}
    result = simulate(config(closed, {"max_num_seqs": 1, "async_scheduling": False}, replicas=2))
    assert result.requests.column("replica").to_pylist() == [0, 1, 0, 1]
    assert result.requests.column("arrival_s").to_pylist() == [0, 0, 0.05, 0.05]
    summary = result.summary
    assert (summary["duration_s"], summary["engine_steps"], summary["completed"]) == (0.1, 20, 4)
    assert summary["output_throughput"] == pytest.approx(200)
    assert summary["time_share"]["compute"] == pytest.approx(1)
    each = summary["replicas"]
    assert [replica["output_throughput"] for replica in each] == pytest.approx([100, 100])
    assert [replica["counts"]["submitted"] for replica in each] == [2, 2]
    assert result.steps is not None
    rows = result.steps.to_pylist()
    assert [(row["replica"], row["step"]) for row in rows] == [
        (n, step) for n in (0, 1) for step in range(10)
    ]


def test_results_with_replicas_can_be_read(tmp_path: Path) -> None:
    run(config(OPEN, replicas=2), tmp_path)
    assert results.read_requests(tmp_path).schema.names[-1] == "replica"
    assert results.read_steps(tmp_path).schema.names[-1] == "replica"


def test_twice_the_engines_serve_twice_the_requests() -> None:
    one, two = (simulate(config(CLOSED | {"concurrency": 16 * n}, replicas=n)).summary for n in (1, 2))
    assert two["output_throughput"] == pytest.approx(2 * one["output_throughput"], rel=0.1)


def test_affinity_loads_each_adapter_once_where_round_robin_loads_it_everywhere() -> None:
    loads = {}
    for name in ("RoundRobin", "AdapterAffinity"):
        many = config(OPEN | {"duration_s": 20.0}, {"max_loras": 10}, replicas=3, routing=routing(name))
        loads[name] = simulate(many).summary["adapter_loads"]
    assert loads == {"RoundRobin": 30, "AdapterAffinity": 10}


def test_replicas_draw_their_own_chances(tmp_path: Path) -> None:
    """The order in which a step's adapters are applied differs between two processes of vLLM."""
    result = simulate(config(CLOSED | {"concurrency": 40, "duration_s": 5.0}, replicas=2))
    first, second = (replica["adapter_activations"] for replica in result.summary["replicas"])
    assert first != second


def test_a_rejected_request_has_no_replica() -> None:
    lengths = {"kind": "uniform", "min": 100, "max": 140}
    result = simulate(config(OPEN | {"input_length": lengths}, replicas=2))
    for row in result.requests.to_pylist():
        assert (row["replica"] is None) == (row["status"] == "rejected")


class Astray:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def route(self, request: Any, replicas: Any) -> Any:
        return self.answer


@pytest.mark.parametrize("answer", [2, -1, None, 0.0, True])
def test_a_policy_that_answers_nonsense_is_named(answer: Any) -> None:
    bad = {"_target_": "test_router.Astray", "answer": answer}
    with pytest.raises(
        UserError,
        match=r"routing policy Astray: sent request-000000 to replica .*; expected 0 to 1 \(step 0, 0, ",
    ):
        simulate(config(OPEN, replicas=2, routing=bad))


def test_no_replica_is_refused() -> None:
    with pytest.raises(UserError, match=r"^replicas=0: must be greater than 0"):
        simulate(config(OPEN, replicas=0))


def test_more_replicas_never_lose_the_order_of_arrival() -> None:
    arrivals = simulate(config(OPEN, replicas=3)).requests.column("arrival_s").to_pylist()
    assert all(before <= after for before, after in pairwise(arrivals))
    assert arrivals == simulate(config(OPEN)).requests.column("arrival_s").to_pylist()
