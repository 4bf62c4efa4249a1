"""Servers for tests: one whose time is virtual, with its client, and a real one on a free port."""

import asyncio
import json
import math
import selectors
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.applications import Starlette

from sim.serve.app import make_app
from sim.serve.backend import Backend
from sim.serve.clock import Clock
from sim.serve.config import ServeConfig, ServerConfig
from sim.serve.server import Server, listen, url
from tests.sim.test_simulation import OPEN
from tests.sim.test_simulation import config as run_config

T = TypeVar("T")
NOT_SERVED = ("workload", "record", "warmup_s")


def serve_values(run: dict[str, Any] | None = None, **serve: Any) -> dict[str, Any]:
    """The configuration of a server like the simulation `run`, with ten adapters and these settings."""
    run = run or run_config(OPEN)
    values = {name: value for name, value in run.items() if name not in NOT_SERVED}
    engine = values["engine"] | {"fast_forward": False}
    return values | {"engine": engine, "serve": {"adapters": 10, "port": 0, "shutdown_timeout_s": 5} | serve}


def serve_config(run: dict[str, Any] | None = None, **serve: Any) -> ServeConfig:
    return ServeConfig.from_mapping(serve_values(run, **serve))


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while there is something to do, and then leaps to the next timer."""

    def __init__(self) -> None:
        self.now_ns = 0
        super().__init__(_Leaping(self))
        self._clock_resolution = 1e-10

    def time(self) -> float:
        return self.now_ns / 1e9

    async def sleep_until(self, time_ns: int) -> None:
        await asyncio.sleep((time_ns - self.now_ns) / 1e9)
        assert self.now_ns == time_ns


class _Leaping(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout != 0:
            assert timeout is not None, "nothing will ever happen"
            self._loop.now_ns += math.ceil(timeout * 1e9 - 1e-3)
        return ready


def run_virtually(task: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        return runner.run(task(loop))


def virtual_backend(loop: VirtualLoop, config: ServeConfig) -> Backend:
    return Backend(config, Clock(config.serve.speed, lambda: loop.now_ns))


@dataclass
class Answer:
    """What came back, and when."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[tuple[int, bytes]] = field(default_factory=list)
    """When each part of the body came (ns), and the part."""

    @property
    def json(self) -> Any:
        return json.loads(b"".join(part for _, part in self.parts))

    @property
    def events(self) -> list[tuple[int, Any]]:
        """Of a stream: when each event came (ns), and its JSON; the last is `[DONE]`."""
        found = [(at, part.removeprefix(b"data: ").strip()) for at, part in self.parts if part]
        return [(at, text.decode() if text == b"[DONE]" else json.loads(text)) for at, text in found]


class AsgiClient:
    """Calls an application without a network, so that an answer takes no time."""

    def __init__(self, app: Starlette, now_ns: Callable[[], int]) -> None:
        self._app = app
        self._now_ns = now_ns

    async def post(
        self, path: str, body: Any, *, gone: asyncio.Event | None = None, **headers: str
    ) -> Answer:
        """`gone`: set when the client goes away."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self._send("POST", path, content, gone or asyncio.Event(), headers)

    async def get(self, path: str) -> Answer:
        return await self._send("GET", path, b"", asyncio.Event(), {})

    async def _send(
        self, method: str, path: str, content: bytes, gone: asyncio.Event, headers: dict[str, str]
    ) -> Answer:
        answer, request = Answer(), [{"type": "http.request", "body": content, "more_body": False}]

        async def receive() -> Any:
            if request:
                return request.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answer.parts.append((self._now_ns(), message["body"]))

        given = {"content-type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }
        await self._app(scope, receive, send)
        return answer


def with_client(
    config: ServeConfig, task: Callable[[AsgiClient, Backend, VirtualLoop], Coroutine[Any, Any, T]]
) -> T:
    """Run `task` with a client of a virtual server."""

    async def serve(loop: VirtualLoop) -> T:
        backend = virtual_backend(loop, config)
        app = make_app(backend)
        async with app.router.lifespan_context(app):
            return await task(AsgiClient(app, lambda: loop.now_ns), backend, loop)

    return run_virtually(serve)


@contextmanager
def running(config: ServeConfig, clock: Clock | None = None) -> Iterator[tuple[str, Backend]]:
    """Run a real server in a thread; gives its address."""
    backend = Backend(config, clock)
    server = Server(make_app(backend), backend)
    with listen(ServerConfig(port=0)) as listening:
        address = url(listening)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield address, backend
        finally:
            server.should_exit = True
            thread.join()
