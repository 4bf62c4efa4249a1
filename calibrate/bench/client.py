"""Sends requests to a server of the OpenAI API and takes down what happens to each."""

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from calibrate.bench.answer import Answer, BadAnswer, parsed
from calibrate.bench.record import COMPLETED, RequestRecord
from calibrate.bench.sse import SseDecoder
from sim.errors import UserError

if TYPE_CHECKING:
    import aiohttp

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
# uvicorn, which vLLM's server runs in, closes a connection that was idle for 5 s: this client does so first.
KEEPALIVE_S = 4
MOST_MESSAGE = 300


@dataclass(frozen=True)
class Connection:
    """Where the server is and how to talk to it. Raises UserError for what is no such server.

    `endpoint` is a URL with or without `/v1`. `api_key` null is the environment's OPENAI_API_KEY.
    """

    endpoint: str
    api: str = "completions"
    api_key: str | None = None
    stream: bool = True
    timeout_s: float = 600
    connect_timeout_s: float = 10

    def __post_init__(self) -> None:
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"endpoint={self.endpoint}: expected a URL as http://127.0.0.1:8000")
        if self.api not in PATHS:
            raise UserError(f"api={self.api!r}: expected one of {', '.join(PATHS)}")
        for name in ("timeout_s", "connect_timeout_s"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name}={getattr(self, name)}: must be greater than 0")

    @property
    def root(self) -> str:
        """The URL without `/v1`."""
        return self.endpoint.rstrip("/").removesuffix("/v1")

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        key = self.api_key or os.environ.get("OPENAI_API_KEY")
        return {"Authorization": f"Bearer {key}"} if key else {}


@dataclass(frozen=True)
class ServedModel:
    """A model that the server lists; `parent` is an adapter's base model."""

    name: str
    parent: str | None


class OpenAIClient(AbstractAsyncContextManager["OpenAIClient"]):
    """A client whose requests wait for no other's. Use it in `async with`."""

    def __init__(self, connection: Connection, keep_text: bool = False) -> None:
        self.connection = connection
        self._keep_text = keep_text
        self._include_usage = connection.stream
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        aiohttp = require_aiohttp()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.connection.connect_timeout_s),
            headers=self.connection.headers,
            read_bufsize=2**18,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def models(self) -> list[ServedModel] | None:
        """Return what the server lists, None if it has no list. Raises UserError if it does not answer."""
        aiohttp = require_aiohttp()
        url = f"{self.connection.root}/v1/models"
        try:
            async with (
                asyncio.timeout(self.connection.timeout_s),
                self._session.get(url) as response,
            ):
                if response.status in (404, 405):
                    return None
                text = await response.text()
                if response.status != 200:
                    raise UserError(f"endpoint: {url} answered {response.status}: {text[:MOST_MESSAGE]}")
                entries = parsed(text).get("data") or []
                return [ServedModel(str(entry["id"]), entry.get("parent")) for entry in entries]
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise UserError(f"endpoint: {url} does not answer: {_said(error)}") from error
        except (BadAnswer, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"endpoint: {url} has no list of models: {_said(error)}") from error

    async def send(
        self,
        body: dict[str, Any],
        record: RequestRecord,
        now: Callable[[], float],
        abort_s: float | None = None,
    ) -> None:
        """Send a request and take down in `record` what happens to it; raises nothing but cancellation.

        `now` is the run's clock. The client gives up `abort_s` after the request was meant to be sent.
        """
        record.sent_s = now()
        limit_s = self.connection.timeout_s
        patience_s = limit_s if abort_s is None else record.arrival_s + abort_s - record.sent_s
        answer = Answer(record, self._keep_text)
        try:
            async with asyncio.timeout(min(limit_s, patience_s)):
                await self._exchange(body, answer, now)
        except _failures() as error:
            if not answer.is_complete:
                record.status, record.message = _kind(error, patience_s < limit_s), _said(error)
        if answer.is_complete:
            record.status = COMPLETED

    async def _exchange(self, body: dict[str, Any], answer: Answer, now: Callable[[], float]) -> None:
        stream = self.connection.stream
        sent = body | {"stream": stream}
        if self._include_usage:
            sent["stream_options"] = {"include_usage": True}
        url = self.connection.root + PATHS[self.connection.api]
        async with self._session.post(url, json=sent) as response:
            if response.status == 200:
                await (_read_stream if stream else _read_whole)(response, answer, now)
                return
            refusal = await response.text()
        if response.status in (400, 422) and self._include_usage and "stream_options" in refusal:
            # An older server: it gets no request with them any more, and chunks count as tokens.
            self._include_usage = False
            await self._exchange(body, answer, now)
            return
        raise _Refused(response.status, refusal)


class _Refused(Exception):
    """A status other than 200."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(_error_message(text))
        self.status = status


async def _read_stream(response: "aiohttp.ClientResponse", answer: Answer, now: Callable[[], float]) -> None:
    decoder = SseDecoder()
    async for piece in response.content.iter_any():
        arrived_s = now()
        for data in decoder.feed(piece):
            answer.take_event(data, arrived_s)
    answer.close()
    if not answer.is_complete:
        raise ConnectionResetError("the stream ended before the answer did")


async def _read_whole(response: "aiohttp.ClientResponse", answer: Answer, now: Callable[[], float]) -> None:
    text = await response.text()
    answer.take_whole(text, now())


def require_aiohttp() -> Any:
    """Return aiohttp; UserError where it is not installed."""
    try:
        import aiohttp
    except ImportError as error:
        raise UserError("aiohttp is not installed; pip install 'lorasim[bench]'") from error
    return aiohttp


def _failures() -> tuple[type[Exception], ...]:
    """The exceptions that are a server's or a network's doing, not a bug of this code."""
    return (_Refused, BadAnswer, TimeoutError, OSError, UnicodeError, require_aiohttp().ClientError)


def _kind(error: Exception, is_impatient: bool) -> str:
    """Return the status of a request that ended in `error`; see RequestRecord.status."""
    aiohttp = require_aiohttp()
    if isinstance(error, _Refused):
        return f"http_{error.status}"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "connect_timeout"
    if isinstance(error, TimeoutError):
        return "aborted" if is_impatient else "timeout"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "connection_error"
    if isinstance(error, aiohttp.ClientError | OSError):
        return "disconnected"
    return "bad_answer"


def _error_message(text: str) -> str:
    """Return what an error of the OpenAI API says, else the answer itself."""
    try:
        content = json.loads(text)
        error = content.get("error", content)
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, AttributeError, KeyError):
        return text


def _said(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:MOST_MESSAGE]
