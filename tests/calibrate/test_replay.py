"""Replays of a workload on an engine double, by a clock that only the engine and sleeping move."""

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from calibrate import play as play_module
from calibrate.play import Replay, workload_of
from sim.errors import UserError
from sim.workload import WorkloadConfig, requests
from tests.calibrate.doubles import EngineDouble, ProbeDouble

STEP_S = 0.01
OVERSLEPT_S = 1e-5
SHAPE = {"popularity": {"kind": "uniform"}, "num_adapters": 10, "input_length": 20, "output_length": 5}


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds + OVERSLEPT_S


class TimedEngine(EngineDouble):
    """A step lasts STEP_S; notes when what is submitted, and how many are in flight before each step."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(8, ProbeDouble())
        self.clock = clock
        self.submitted_s: dict[str, float] = {}
        self.in_flight: list[int] = []

    def submit(self, request: Any) -> None:
        super().submit(request)
        self.submitted_s[request.request_id] = self.clock.now_s - 1000.0

    def step(self) -> list[Any]:
        self.in_flight.append(len(self.requests))
        self.clock.now_s += STEP_S
        return super().step()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> TimedEngine:
    clock = Clock()
    monkeypatch.setattr(
        play_module, "time", SimpleNamespace(perf_counter=clock.perf_counter, sleep=clock.sleep)
    )
    return TimedEngine(clock)


def play(engine: TimedEngine, **workload: Any) -> tuple[WorkloadConfig, pd.DataFrame]:
    config = WorkloadConfig.from_mapping(SHAPE | workload)
    return config, Replay(engine, config, seed=3).run()  # type: ignore[arg-type]


def test_the_open_loop_submits_at_arrival_times(engine: TimedEngine) -> None:
    config, rows = play(engine, mode="open", request_rate=20.0, duration_s=3.0)
    specs = list(requests(config, 3))
    assert rows.arrival_s.tolist() == [spec.arrival_ns / 1e9 for spec in specs]
    assert rows.adapter.tolist() == [spec.adapter for spec in specs]
    late = [engine.submitted_s[row.request_id] - row.arrival_s for row in rows.itertuples()]
    assert min(late) > -1e-9
    assert max(late) < STEP_S + 2 * OVERSLEPT_S
    assert sum(delay < 2 * OVERSLEPT_S for delay in late) > len(late) / 4


def test_times_and_tokens_of_requests(engine: TimedEngine) -> None:
    _, rows = play(engine, mode="closed", concurrency=1, duration_s=0.13)
    assert rows.first_token_s.tolist() == pytest.approx([0.01, 0.06, 0.11])
    assert rows.finish_s.tolist()[:2] == pytest.approx([0.05, 0.10])
    assert rows.arrival_s.tolist() == pytest.approx([0, 0.05, 0.10])
    assert rows.num_generated_tokens.tolist()[:2] == [5, 5]


@pytest.mark.parametrize("concurrency", [1, 7, 30])
def test_the_closed_loop_keeps_its_concurrency(engine: TimedEngine, concurrency: int) -> None:
    _, rows = play(engine, mode="closed", concurrency=concurrency, duration_s=2.0)
    assert set(engine.in_flight) == {concurrency}
    assert rows.request_id.is_unique
    assert rows.finish_s.isna().sum() == concurrency


def test_it_ends_at_its_duration_and_what_is_unfinished_has_no_end(engine: TimedEngine) -> None:
    _, rows = play(engine, mode="closed", concurrency=4, duration_s=0.995)
    assert engine.clock.now_s == pytest.approx(1001.0)
    assert rows.finish_s.max() < 0.995
    assert rows.finish_s.isna().sum() == 4
    # 99 steps ended in time, and the tokens of the hundredth do not count.
    assert rows.num_generated_tokens.sum() == 4 * 99
    assert not engine.has_requests()


def test_the_open_loop_waits_for_its_end_without_requests(engine: TimedEngine) -> None:
    _, rows = play(engine, mode="open", request_rate=0.5, duration_s=10.0)
    assert 0 < len(rows) < 15
    assert rows.finish_s.notna().all()
    assert engine.clock.now_s <= 1010.0 + STEP_S


def test_a_number_of_requests_ends_it_earlier(engine: TimedEngine) -> None:
    _, rows = play(engine, mode="open", request_rate=100.0, duration_s=10.0, num_requests=12)
    assert len(rows) == 12
    assert rows.finish_s.notna().all()
    assert engine.clock.now_s < 1005


def test_more_requests_than_are_prepared(engine: TimedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play_module, "PREPARED", 3)
    config, rows = play(engine, mode="open", request_rate=20.0, duration_s=2.0)
    assert rows.request_id.tolist() == [spec.request_id for spec in requests(config, 3)]


def test_a_workload_without_an_end_is_refused() -> None:
    endless = SHAPE | {"mode": "closed", "concurrency": 4, "num_requests": 10}
    with pytest.raises(UserError, match=r"^workload\.duration_s is null: the replay mine needs it$"):
        workload_of({"name": "mine", "workload": endless})
