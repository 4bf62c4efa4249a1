"""The client and the two loops against a server whose delays and failures are known."""

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from itertools import count, islice
from typing import Any

import pytest

from calibrate.bench.client import Connection, OpenAIClient, ServedModel
from calibrate.bench.load import LoadRun, Plan, PlannedRequest
from calibrate.bench.record import RequestRecord, Run
from sim.errors import UserError
from tests.calibrate.fake_openai import Behaviour, fake_openai, served

TTFT_S, TPOT_S, TOKENS = 0.08, 0.02, 5
# A machine that is busy with other tests is late, never early.
LATE_S = 1.0


@pytest.fixture(scope="module")
def told() -> Iterator[tuple[Behaviour, str]]:
    """Return a server's behaviour, to be changed, and its URL."""
    behaviour = Behaviour(models=served("a", "b"))
    with fake_openai(behaviour) as url:
        yield behaviour, url


@pytest.fixture
def server(told: tuple[Behaviour, str]) -> tuple[Behaviour, str]:
    """Return the server with its behaviour as new."""
    fresh = Behaviour(models=served("a", "b"), ttft_s=TTFT_S, tpot_s=TPOT_S)
    told[0].__dict__.update(fresh.__dict__)
    return told


def planned(number: int = 0, model: str = "a", arrival_s: float = 0.0, **extra: Any) -> PlannedRequest:
    body = {"model": model, "prompt": [1, 2, 3], "max_tokens": TOKENS}
    return PlannedRequest(f"request-{number}", model, body, arrival_s, **extra)


def play(
    connection: Connection,
    requests: Iterator[PlannedRequest] | list[PlannedRequest],
    concurrency: int | None = 1,
    *,
    keep_text: bool = False,
    meanwhile: Callable[[asyncio.Event], Coroutine[Any, Any, None]] | None = None,
    duration_s: float | None = None,
    **options: Any,
) -> Run:
    async def main() -> Run:
        stop = asyncio.Event()
        async with OpenAIClient(connection, keep_text) as client:
            plan = Plan("multi", iter(requests), concurrency, duration_s=duration_s)
            other = asyncio.create_task(meanwhile(stop)) if meanwhile else None
            run = await LoadRun(client, plan, stop, **options).run()
            if other:
                await other
            return run

    return asyncio.run(main())


def one(connection: Connection, model: str = "a", **extra: Any) -> RequestRecord:
    (record,) = play(connection, [planned(model=model, **extra)]).records
    return record


def test_times_are_the_servers(server: tuple[Behaviour, str]) -> None:
    record = one(Connection(server[1]))
    assert (record.status, record.num_generated_tokens, record.tokens_from) == ("completed", TOKENS, "usage")
    assert record.input_length == 3
    assert record.ttft_ms is not None and record.tpot_ms is not None and record.e2el_ms is not None
    assert TTFT_S <= record.ttft_ms / 1e3 <= TTFT_S + LATE_S
    # As much as the first token is late, the others seem to come sooner.
    soonest_s = TPOT_S - (record.ttft_ms / 1e3 - TTFT_S) / (TOKENS - 1)
    assert soonest_s <= record.tpot_ms / 1e3 <= TPOT_S + LATE_S
    total_s = TTFT_S + (TOKENS - 1) * TPOT_S
    assert total_s <= record.e2el_ms / 1e3 <= total_s + LATE_S


@pytest.mark.parametrize(("api", "stream"), [("chat", True), ("completions", False), ("chat", False)])
def test_other_kinds_of_answers(server: tuple[Behaviour, str], api: str, stream: bool) -> None:
    record = one(Connection(server[1] + "/v1/", api, stream=stream))
    assert (record.status, record.num_generated_tokens) == ("completed", TOKENS)
    assert (record.first_token_s is not None) == stream
    assert record.e2el_ms is not None and record.e2el_ms / 1e3 >= TTFT_S + (TOKENS - 1) * TPOT_S


def test_a_server_that_does_not_count_tokens(server: tuple[Behaviour, str]) -> None:
    server[0].usage = False
    record = one(Connection(server[1]))
    assert (record.status, record.num_generated_tokens, record.tokens_from) == ("completed", TOKENS, "chunks")


def test_a_server_that_refuses_stream_options_is_not_asked_again(server: tuple[Behaviour, str]) -> None:
    server[0].stream_options = False
    run = play(Connection(server[1]), [planned(0), planned(1)])
    assert [record.status for record in run.records] == ["completed", "completed"]
    assert [record.tokens_from for record in run.records] == ["chunks", "chunks"]
    assert ["stream_options" in body for body in server[0].seen] == [True, False, False]


@pytest.mark.parametrize(
    ("model", "status", "message"),
    [
        ("http_500", "http_500", "told to say 500"),
        ("http_429", "http_429", "told to say 429"),
        ("hang", "timeout", "TimeoutError"),
        ("disconnect", "disconnected", ""),
        ("truncate", "disconnected", "the stream ended before the answer did"),
        ("garbage", "bad_answer", "not JSON"),
        ("error", "bad_answer", "told to fail in mid-stream"),
    ],
)
def test_failures_are_told_apart(
    server: tuple[Behaviour, str], model: str, status: str, message: str
) -> None:
    record = one(Connection(server[1], timeout_s=0.5 if model == "hang" else 30), model)
    assert record.status == status
    assert message in record.message
    assert record.e2el_ms is None


def test_a_client_that_gives_up(server: tuple[Behaviour, str]) -> None:
    assert one(Connection(server[1]), "hang", abort_s=0.1).status == "aborted"
    assert one(Connection(server[1], timeout_s=0.2), "hang", abort_s=9.0).status == "timeout"


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def test_nobody_there() -> None:
    connection = Connection(f"http://127.0.0.1:{free_port()}")
    assert one(connection).status == "connection_error"

    async def models() -> None:
        async with OpenAIClient(connection) as client:
            await client.models()

    with pytest.raises(UserError, match="does not answer"):
        asyncio.run(models())


def test_what_is_no_endpoint() -> None:
    for url in ("127.0.0.1:8000", "ftp://host", "http://"):
        with pytest.raises(UserError, match="endpoint="):
            Connection(url)


def test_models(server: tuple[Behaviour, str]) -> None:
    async def models() -> list[ServedModel] | None:
        async with OpenAIClient(Connection(server[1])) as client:
            return await client.models()

    assert asyncio.run(models()) == [
        ServedModel("base", None),
        ServedModel("a", "base"),
        ServedModel("b", "base"),
    ]
    server[0].models = None
    assert asyncio.run(models()) is None


def test_a_closed_loop_keeps_its_places_busy(server: tuple[Behaviour, str]) -> None:
    run = play(Connection(server[1]), [planned(number) for number in range(20)], 4)
    assert len(run.records) == 20
    starts = sorted(record.arrival_s for record in run.records)
    ends = sorted(record.finish_s or 0 for record in run.records)
    for number, start in enumerate(starts):
        # Of those that were sent before it, all but three had ended.
        assert number < 4 or start >= ends[number - 4]
    assert server[0].most_in_flight == 4
    assert run.end == "done"
    assert run.duration_s >= max(ends)


def test_an_open_loop_waits_for_no_answer(server: tuple[Behaviour, str]) -> None:
    server[0].ttft_s = 1.5
    requests = [planned(number, arrival_s=0.02 * number) for number in range(25)]
    run = play(Connection(server[1]), requests, None)
    for number, record in enumerate(run.records):
        assert record.arrival_s == pytest.approx(0.02 * number)
        assert record.sent_s is not None and record.sent_s >= record.arrival_s
    # The last one was meant to be sent at 0.48 s, before the first was answered.
    assert server[0].most_in_flight == 25
    assert {record.status for record in run.records} == {"completed"}


def test_latency_counts_from_when_a_request_was_meant_to_be_sent(server: tuple[Behaviour, str]) -> None:
    def requests() -> Iterator[PlannedRequest]:
        yield planned(0)
        # The whole client stands still meanwhile.
        time.sleep(0.6)
        yield from (planned(number, arrival_s=0.2 + 0.01 * number) for number in range(1, 5))

    run = play(Connection(server[1]), requests(), None)
    for record in run.records[1:]:
        assert record.send_lag_ms is not None and record.e2el_ms is not None and record.sent_s is not None
        assert record.send_lag_ms > 300
        assert record.e2el_ms > record.send_lag_ms + 1e3 * (TTFT_S + (TOKENS - 1) * TPOT_S) - 1
    # A closed loop has no send lag that would show it.
    assert max(run.client_lags_ms) > 400


def test_nothing_is_sent_after_the_duration(server: tuple[Behaviour, str]) -> None:
    server[0].ttft_s, server[0].tpot_s = 0.0, 0.0
    late = play(
        Connection(server[1]), [planned(n, arrival_s=0.1 * n) for n in range(9)], None, duration_s=0.35
    )
    assert len(late.records) == 4
    closed = play(Connection(server[1]), (planned(n) for n in count()), 2, duration_s=0.3)
    assert closed.records and max(record.arrival_s for record in closed.records) < 0.3
    assert {record.status for record in closed.records} == {"completed"}


@pytest.mark.parametrize("concurrency", [3, None])
def test_an_interruption_keeps_what_was_measured(
    server: tuple[Behaviour, str], concurrency: int | None
) -> None:
    answered = 0

    def count_answers(record: RequestRecord) -> None:
        nonlocal answered
        answered += 1

    async def interrupt(stop: asyncio.Event) -> None:
        while answered < 5:
            await asyncio.sleep(0.01)
        stop.set()

    models = ("a", "hang") if concurrency is None else ("a",)
    requests = (planned(n, models[n % len(models)], 0.05 * n) for n in count())
    run = play(Connection(server[1]), requests, concurrency, meanwhile=interrupt, on_end=count_answers)
    assert run.end == "interrupted"
    statuses = {record.status for record in run.records}
    assert statuses == {"completed", "unfinished"}
    assert run.duration_s >= max(record.finish_s or 0 for record in run.records)


def test_failures_in_a_row_end_the_run(server: tuple[Behaviour, str]) -> None:
    models = ["a", *["http_500"] * 3, "a", *["http_500"] * 100]
    requests = [planned(number, model) for number, model in enumerate(models)]
    run = play(Connection(server[1]), requests, 1, stop_after_failures=5)
    assert run.end == "stopped after 5 failed requests in a row"
    assert [record.status for record in run.records[:10]] == [
        "completed",
        *["http_500"] * 3,
        "completed",
        *["http_500"] * 5,
    ]
    assert len(run.records) == 10


def test_a_bug_is_not_taken_for_a_failure(server: tuple[Behaviour, str]) -> None:
    def bug(record: RequestRecord) -> None:
        raise KeyError("a bug")

    with pytest.raises(ExceptionGroup) as raised:
        play(Connection(server[1]), islice((planned(n) for n in count()), 2), 1, on_end=bug)
    assert raised.group_contains(KeyError)
