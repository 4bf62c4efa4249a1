"""A server of the OpenAI API that does as it is told: known delays, answers, and every way to fail."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

Answer = Callable[[dict[str, Any], int], str]


@dataclass
class Behaviour:
    """How the server behaves. A model's name says how requests for it fail: `http_500`, `hang`, ..."""

    models: list[dict[str, Any]] | None = None
    ttft_s: float = 0.0
    tpot_s: float = 0.0
    usage: bool = True
    stream_options: bool = True
    answer: Answer = lambda body, number: "x" * int(body["max_tokens"])
    """The text of an answer, a character a token, from the request and how often it came before."""
    seen: list[dict[str, Any]] = field(default_factory=list)
    in_flight: int = 0
    """Streams that are open now."""
    most_in_flight: int = 0


class Fake:
    """The server's handlers."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.told = behaviour
        self.times: dict[str, int] = {}

    async def models(self, request: Request) -> Response:
        if self.told.models is None:
            return PlainTextResponse("no such page", status_code=404)
        return JSONResponse({"object": "list", "data": self.told.models})

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.told.seen.append(body)
        return await self._answer(body, "messages" in body)

    async def _answer(self, body: dict[str, Any], chat: bool) -> Response:
        model = str(body["model"])
        if model.startswith("http_"):
            status = int(model[5:8])
            return JSONResponse({"error": {"message": f"told to say {status}"}}, status_code=status)
        if "stream_options" in body and not self.told.stream_options:
            return JSONResponse({"error": {"message": "extra field stream_options"}}, status_code=400)
        key = json.dumps([model, body.get("prompt"), body.get("messages")])
        self.times[key] = self.times.get(key, 0) + 1
        text = self.told.answer(body, self.times[key])
        if model.startswith("hang"):
            await asyncio.sleep(30)
        if body.get("stream"):
            return StreamingResponse(self._counted(body, text, chat), media_type="text/event-stream")
        await asyncio.sleep(self.told.ttft_s + self.told.tpot_s * (len(text) - 1))
        choice = {"message": {"content": text}} if chat else {"text": text}
        usage = {"usage": usage_of(body, text)} if self.told.usage else {}
        return JSONResponse({"choices": [choice | {"finish_reason": "length"}], **usage})

    async def _counted(self, body: dict[str, Any], text: str, chat: bool) -> AsyncIterator[str]:
        self.told.in_flight += 1
        self.told.most_in_flight = max(self.told.in_flight, self.told.most_in_flight)
        try:
            async for part in self._stream(body, text, chat):
                yield part
        finally:
            self.told.in_flight -= 1

    async def _stream(self, body: dict[str, Any], text: str, chat: bool) -> AsyncIterator[str]:
        model = str(body["model"])
        if chat:
            yield event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        await asyncio.sleep(self.told.ttft_s)
        for number, token in enumerate(text):
            if number:
                await asyncio.sleep(self.told.tpot_s)
            if number == 1 and model.startswith("disconnect"):
                raise ConnectionResetError("told to")
            if number == 1 and model.startswith("truncate"):
                return
            if number == 1 and model.startswith("garbage"):
                yield "data: {not json\n\n"
            if number == 1 and model.startswith("error"):
                yield event({"error": {"message": "told to fail in mid-stream"}})
            ends = "length" if number == len(text) - 1 else None
            yield event({"choices": [choice_of(token, chat) | {"finish_reason": ends}]})
        if self.told.usage and body.get("stream_options", {}).get("include_usage"):
            yield event({"choices": [], "usage": usage_of(body, text)})
        yield "data: [DONE]\n\n"


def choice_of(token: str, chat: bool) -> dict[str, Any]:
    return {"delta": {"content": token}} if chat else {"text": token}


def usage_of(body: dict[str, Any], text: str) -> dict[str, int]:
    prompt = body.get("prompt")
    return {"prompt_tokens": len(prompt) if prompt else 7, "completion_tokens": len(text)}


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def served(*adapters: str, base: str = "base") -> list[dict[str, Any]]:
    """Return a list of models as vLLM's server has it."""
    return [{"id": base, "parent": None}, *({"id": name, "parent": base} for name in adapters)]


@contextlib.contextmanager
def fake_openai(behaviour: Behaviour) -> Iterator[str]:
    """Run the server in a thread; gives its URL."""
    fake = Fake(behaviour)
    app = Starlette(
        routes=[
            Route("/v1/models", fake.models),
            Route("/v1/completions", fake.complete, methods=["POST"]),
            Route("/v1/chat/completions", fake.complete, methods=["POST"]),
        ]
    )
    config = uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
