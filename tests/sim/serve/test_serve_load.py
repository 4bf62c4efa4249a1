"""A thousand streams at once, and what is refused beyond the limits."""

import asyncio
import json
import time
from typing import Any

import pytest

from sim.serve.backend import Backend
from sim.serve.clock import Clock
from tests.sim.serve.serving import AsgiClient, VirtualLoop, running, serve_config, with_client
from tests.sim.test_simulation import OPEN, config

LARGE = {"max_num_seqs": 256, "max_num_batched_tokens": 2048, "num_gpu_blocks": 20_000}


class SlowAtFirst:
    """A source of time that goes a thousandth as fast as it should, until it is let go."""

    def __init__(self) -> None:
        self._start_ns = time.monotonic_ns()
        self._let_go_ns: int | None = None

    def __call__(self) -> int:
        now_ns = time.monotonic_ns()
        slow_until_ns = now_ns if self._let_go_ns is None else self._let_go_ns
        return (slow_until_ns - self._start_ns) // 1000 + now_ns - slow_until_ns

    def let_go(self) -> None:
        self._let_go_ns = time.monotonic_ns()


def test_a_thousand_streams_at_once() -> None:
    """All are in flight together before the first of them gets its second token."""
    source = SlowAtFirst()
    with running(serve_config(config(OPEN, LARGE)), Clock(time_ns=source)) as (address, backend):
        texts = asyncio.run(thousand(address, backend, source))
        while backend.num_calls:  # What is left of the last ones to end is not the clients' business.
            time.sleep(0.01)
    assert texts == ["w1 w2 w3 w4 w5 w6"] * 1000


async def thousand(address: str, backend: Backend, source: SlowAtFirst) -> list[str]:
    host, port = address.removeprefix("http://").split(":")
    tasks = [asyncio.create_task(one(host, int(port), number)) for number in range(1000)]
    while backend.num_calls < 1000:
        await asyncio.sleep(0.01)
    source.let_go()
    return await asyncio.gather(*tasks)


async def one(host: str, port: int, number: int) -> str:
    """The text of a stream, read off the wire."""
    body = {"model": f"adapter-{number % 10:04d}", "prompt": [number] * 3, "max_tokens": 6, "stream": True}
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    events = []
    while not (line := await reader.readline()).startswith(b"data: [DONE]"):
        assert line
        if line.startswith(b"data: "):
            events.append(json.loads(line.removeprefix(b"data: ")))
    writer.close()
    await writer.wait_closed()
    return "".join(event["choices"][0]["text"] for event in events)


def ask(**more: Any) -> dict[str, Any]:
    return {"model": "adapter-0000", "prompt": "a b c", "max_tokens": 5} | more


def test_requests_beyond_the_queue_are_429() -> None:
    """A batch of one, and two may wait. What is refused leaves no trace."""

    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> None:
        first = asyncio.create_task(client.post("/v1/completions", ask()))
        await loop.sleep_until(1_000)
        waiting = [asyncio.create_task(client.post("/v1/completions", ask())) for _ in range(2)]
        await loop.sleep_until(2_000)
        for stream in (False, True):
            refused = await client.post("/v1/completions", ask(stream=stream))
            assert (refused.status, refused.json["error"]["type"]) == (429, "RateLimitError")
            assert refused.headers["retry-after"] == "1"
        assert (await client.post("/generate", {"prompt": "a", "model_id": 1})).status == 429
        assert backend.num_calls == 3
        assert [answer.status for answer in await asyncio.gather(first, *waiting)] == [200] * 3
        assert (await client.post("/v1/completions", ask(n=2))).status == 200
        assert (await client.post("/v1/completions", ask(n=3))).status == 429
        assert (await client.post("/v1/completions", ask(prompt=["a", "b"], n=2))).status == 429

    with_client(serve_config(config(OPEN, {"max_num_seqs": 1}), max_queued_requests=2), task)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_aborted(stream: bool) -> None:
    """10 ms a step: the first token comes at 10 ms, and the time is over at 25."""

    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> None:
        answer = await client.post("/v1/completions", ask(stream=stream))
        assert loop.now_ns == 25_000_001
        if stream:
            *tokens, (_, error), (_, done) = answer.events
            assert (answer.status, len(tokens), done) == (200, 2, "[DONE]")
        else:
            error = answer.json
            assert answer.status == 504
        assert (error["error"]["code"], error["error"]["type"]) == (504, "TimeoutError")
        assert (backend.num_calls, backend.replicas[0].state.num_running) == (0, 0)
        await loop.sleep_until(100_000_000)
        quick = await client.post("/v1/completions", ask(max_tokens=2))
        assert quick.status == 200

    with_client(serve_config(config(OPEN), request_timeout_s=0.025), task)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_leaves_its_place_at_once(stream: bool) -> None:
    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> None:
        gone = asyncio.Event()
        call = asyncio.create_task(client.post("/v1/completions", ask(stream=stream), gone=gone))
        await loop.sleep_until(15_000_000)
        assert backend.num_calls == 1
        gone.set()
        await call
        assert (backend.num_calls, backend.replicas[0].state.num_running) == (0, 0)
        assert loop.now_ns == 15_000_000

    with_client(serve_config(config(OPEN)), task)


def test_where_the_simulation_fails_every_call_does_and_health_is_503() -> None:
    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> None:
        assert (await client.get("/health")).status == 200
        whole, stream = (
            asyncio.create_task(client.post("/v1/completions", ask(stream=stream)))
            for stream in (False, True)
        )
        await loop.sleep_until(15_000_000)
        backend.env.timeout(1).callbacks.append(fail)
        assert ((await whole).status, "broken" in (await whole).json["error"]["message"]) == (500, True)
        assert (await stream).events[-2][1]["error"]["code"] == 500
        assert (await client.post("/v1/completions", ask())).status == 500
        health = await client.get("/health")
        assert (health.status, "broken" in health.json["status"]) == (503, True)
        assert (await client.get("/metrics")).status == 200

    def fail(_: object) -> None:
        raise RuntimeError("broken")

    with_client(serve_config(config(OPEN)), task)
