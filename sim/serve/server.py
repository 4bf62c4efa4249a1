"""The HTTP server: its socket, and how it stops."""

import asyncio
import resource
import signal
import socket
import sys
from contextlib import ExitStack
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from sim.errors import UserError
from sim.serve.backend import Backend
from sim.serve.config import ServerConfig

BACKLOG = 4096
"""Connections that wait to be accepted: a thousand clients may come at once."""
MOST_FILES = 65_535
"""Open connections, if the system lets us: as `set_ulimit` of vllm/utils/system_utils.py."""
SLOW_CLIENTS_S = 5
"""How long after the last request clients may take to read what they have asked for."""


class Server(uvicorn.Server):
    """Stops gracefully: no new connections; what is in flight has ``serve.shutdown_timeout_s`` to end.

    A second Ctrl-C ends that time, a third one the server.
    """

    def __init__(self, app: Starlette, backend: Backend) -> None:
        settings = backend.config.serve
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                loop="asyncio",
                ws="none",
                lifespan="on",
                log_level="info" if settings.access_log else "warning",
                access_log=settings.access_log,
                backlog=BACKLOG,
                timeout_graceful_shutdown=round(settings.shutdown_timeout_s) + SLOW_CLIENTS_S,
            )
        )
        self._backend = backend
        self._loop: asyncio.AbstractEventLoop | None = None
        self._num_signals = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop."""
        assert self._loop is not None
        if num_calls := self._backend.num_calls:
            print(f"lorasim-serve: {num_calls} requests in flight; Ctrl-C ends them now", file=sys.stderr)
        deadline = self._loop.call_later(self._backend.config.serve.shutdown_timeout_s, self._end_all)
        await super().shutdown(sockets)
        deadline.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop, then to stop sooner."""
        self._num_signals += 1
        if self._num_signals == 2 and sig == signal.SIGINT and self._loop is not None:
            self._loop.call_soon_threadsafe(self._end_all)
        else:
            super().handle_exit(sig, frame)

    def _end_all(self) -> None:
        self._backend.stop("the server is shutting down")


def listen(settings: ServerConfig) -> socket.socket:
    """Return a socket that listens at ``serve.host`` and ``serve.port``. Raises UserError."""
    with ExitStack() as on_error:
        try:
            family, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
            # Unless TCP is named, asyncio leaves Nagle's algorithm on, which holds tokens back for 40 ms.
            listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            on_error.enter_context(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
        except OSError as error:
            where = f"serve.host={settings.host} serve.port={settings.port}"
            raise UserError(f"{where}: {error.strerror or error}") from error
        on_error.pop_all()
    return listening


def allow_many_connections() -> None:
    """Raise this process's limit of open files as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def url(listening: socket.socket) -> str:
    """Return the address of a listening socket, as a client spells it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
