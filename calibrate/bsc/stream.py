"""Measure what answers take through server and client beside the engine: `python -m calibrate.bsc.stream`.

The study's client takes the time to first token from before it connects until a line has come. Between lie
the connection, the request and its first line, whatever else is under way (`ms_per_request`); and after a
step the server sends a line for each request of the batch, one after another in the order of the batch, so
that the first of a new request, the last in it, waits for all others (`ms_per_token`). Server and client are
as vLLM 0.8.5's: uvicorn, Starlette and a pydantic model for each line (vllm/entrypoints/openai/protocol.py,
`CompletionStreamResponse`), a step's tokens in parts (vllm/v1/engine/async_llm.py, `output_handler`), and
aiohttp with a session for each request (benchmarks/backend_request_func.py). The tokenizer and the engine's
process are missing, so that it is the least that they can take. It depends on the CPU and on the versions.
"""

import asyncio
import json
import multiprocessing
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import uvicorn
from omegaconf import DictConfig
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from calibrate.bsc.front_end import MOST_MERGED
from calibrate.bsc.host_cost import write_cost
from sim.cli import hydra_entry

PROMPT = "word " * 223
START_S = 20.0
"""How long a server may take to begin to listen."""


class _Choice(BaseModel):
    index: int
    text: str
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    stop_reason: str | None = None


class _Line(BaseModel):
    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[_Choice]
    usage: dict[str, Any] | None = None


class _Streams:
    """The server: each step gives a token to all requests that are there."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._queues: dict[str, asyncio.Queue[float]] = {}

    async def completions(self, request: Request) -> StreamingResponse:
        """Answer one request, a line for each token, until the client leaves."""
        name = (await request.json())["model"]
        self._queues[name] = asyncio.Queue()
        return StreamingResponse(self._lines(name), media_type="text/event-stream")

    async def _lines(self, name: str) -> AsyncIterator[str]:
        try:
            while True:
                step_end_s = await self._queues[name].get()
                choices = [_Choice(index=0, text=repr(step_end_s))]
                line = _Line(id=name, created=1, model=name, choices=choices)
                yield f"data: {line.model_dump_json(exclude_unset=True)}\n\n"
        finally:
            del self._queues[name]

    async def run(self) -> None:
        """Take steps for ever; what a step is late does not move the next ones."""
        end_s = time.monotonic()
        while True:
            end_s = max(end_s + self._step_s, time.monotonic())
            await asyncio.sleep(end_s - time.monotonic())
            for number, queue in enumerate([*self._queues.values()], 1):
                queue.put_nowait(end_s)
                if number % MOST_MERGED == 0:
                    await asyncio.sleep(0)


def serve(port: int, step_s: float) -> None:
    """Serve until the process ends."""

    async def both() -> None:
        streams = _Streams(step_s)
        app = Starlette(routes=[Route("/v1/completions", streams.completions, methods=["POST"])])
        steps = asyncio.create_task(streams.run())
        await uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical")).serve()
        steps.cancel()

    asyncio.run(both())


async def _ask(port: int, name: str, first: list[tuple[float, float]]) -> None:
    """Read an answer for ever; note its first token's times: since the request was made, since its step."""
    begin_s = time.monotonic()
    url, payload = f"http://127.0.0.1:{port}/v1/completions", {"model": name, "prompt": PROMPT}
    async with aiohttp.ClientSession() as session, session.post(url, json=payload) as response:
        async for line in response.content:
            if text := line.strip().decode().removeprefix("data: "):
                step_end_s, now_s = float(json.loads(text)["choices"][0]["text"]), time.monotonic()
                if not first:
                    first.append((now_s - begin_s, now_s - step_end_s))


async def _delays(port: int, num_streams: int, num_probes: int, step_s: float) -> list[tuple[float, float]]:
    """Return both times of requests, one after another, that each are the last of `num_streams`."""
    others = [asyncio.create_task(_ask(port, f"other-{n}", [])) for n in range(num_streams - 1)]
    await asyncio.sleep(1 + num_streams / 200)
    found: list[tuple[float, float]] = []
    for number in range(num_probes):
        first: list[tuple[float, float]] = []
        probe = asyncio.create_task(_ask(port, f"probe-{number}", first))
        while not first:
            await asyncio.sleep(step_s)
        found += first
        await _cancel([probe])
    await _cancel(others)
    return found


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def measure(num_streams: int, num_probes: int, step_s: float) -> list[tuple[float, float]]:
    """Return `_delays` with a server in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(port, step_s), daemon=True)
    server.start()
    try:
        _await_server(port)
        return asyncio.run(_delays(port, num_streams, num_probes, step_s))
    finally:
        server.kill()
        server.join()


def _await_server(port: int) -> None:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise TimeoutError(f"no server on port {port} after {START_S:g} s")


def task(cfg: DictConfig) -> None:
    """Measure and write the results."""
    out = Path(cfg.out)
    alone = measure(1, cfg.num_probes, cfg.step_s_alone)
    among = measure(cfg.num_streams, cfg.num_probes, cfg.step_s)
    request_ms = 1e3 * median(total for total, _ in alone)
    token_ms = 1e3 * median(since for _, since in among) / cfg.num_streams
    conditions = {name: version(name) for name in ("uvicorn", "starlette", "pydantic", "aiohttp")}
    token = {"ms_per_token": float(f"{token_ms:.1g}"), "num_streams": cfg.num_streams}
    result = write_cost(out, "ms_per_request", request_ms, **token, **conditions)
    print(f"{result['ms_per_request']} ms for a request, {result['ms_per_token']} for a token: {out}")


def main() -> None:
    """Entry point."""
    hydra_entry(task, "bsc_stream", "calibrate.bsc.stream")


if __name__ == "__main__":
    main()
