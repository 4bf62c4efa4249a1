"""What is done for each path."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from sim.metrics import NS_PER_S
from sim.serve.answers import Answer, ChatAnswer, CompletionAnswer
from sim.serve.backend import Backend
from sim.serve.bodies import read_json
from sim.serve.calls import Call
from sim.serve.config import ALLOW_LORA_UPDATING
from sim.serve.errors import bad_request, not_found
from sim.serve.outputs import Generation, Output
from sim.serve.protocol import (
    Body,
    ChatBody,
    CompletionBody,
    GenerateBody,
    LoadAdapterBody,
    StreamOptions,
    UnloadAdapterBody,
    parse,
)
from sim.serve.streaming import EventStream, events
from sim.serve.words import words


class Endpoints:
    """The handlers of all paths, in front of one backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def completions(self, request: Request) -> Response:
        """``POST /v1/completions``."""
        return await self._generate(request, await self._read(request, CompletionBody), CompletionAnswer)

    async def chat_completions(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        return await self._generate(request, await self._read(request, ChatBody), ChatAnswer)

    async def models(self, request: Request) -> Response:
        """``GET /v1/models``."""
        return JSONResponse(self._backend.models.body())

    async def load_lora_adapter(self, request: Request) -> Response:
        """``POST /v1/load_lora_adapter``."""
        body = await self._read(request, LoadAdapterBody)
        said = self._backend.models.load(body.lora_name, body.lora_path, body.load_inplace)
        return PlainTextResponse(said)

    async def unload_lora_adapter(self, request: Request) -> Response:
        """``POST /v1/unload_lora_adapter``."""
        body = await self._read(request, UnloadAdapterBody)
        return PlainTextResponse(self._backend.models.unload(body.lora_name))

    async def no_lora_updating(self, request: Request) -> Response:
        """Either of the two, where they are switched off: 404."""
        raise not_found(
            f"{request.url.path} is switched off; serve.allow_runtime_lora_updating=true or "
            f"{ALLOW_LORA_UPDATING}=1 switches it on"
        )

    async def health(self, request: Request) -> Response:
        """``GET /health``: 200, or 503 where the simulation has failed; and what is served."""
        backend, config = self._backend, self._backend.config
        body = {
            "status": "ok" if backend.failure is None else f"failed: {backend.failure!r}",
            "model": config.model_name,
            "total_loras": len(backend.models.adapters),
            "gpu_loras": config.engine.max_loras,
            "cpu_loras": config.engine.host_cache_entries,
            "max_num_seqs": config.engine.max_num_seqs,
            "replicas": config.replicas,
            "profile": backend.replicas[0].profile.name,
            "speed": config.serve.speed,
            "outside_range": backend.outside_range(),
        }
        return JSONResponse(body, 200 if backend.failure is None else 503)

    async def metrics(self, request: Request) -> Response:
        """``GET /metrics``."""
        text = generate_latest(self._backend.metrics_now().registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def generate(self, request: Request) -> Response:
        """``POST /generate``: prompt and output in one text, and the simulated times, in seconds."""
        body = await self._read(request, GenerateBody)
        adapter, prompt = self._backend.models.adapter_number(body.model_id), body.only_prompt()
        call = Call([prompt], adapter, 1, body.max_tokens, body.min_tokens, body.ignore_eos)
        async with self._generation(call) as generation:
            await self._complete(request, generation)
            (output,) = generation.outputs
        ttft_ns, completion_ns = output.latencies_ns()
        return JSONResponse(
            {
                "text": [f"{prompt.text} {words(1, output.num_tokens)}".lstrip()],
                "model_id": body.model_id,
                "ttft": ttft_ns / NS_PER_S,
                "completion_time": completion_ns / NS_PER_S,
            }
        )

    async def swap_stats(self, request: Request) -> Response:
        """``GET /swap_stats``."""
        self._backend.catch_up()
        return JSONResponse(self._backend.swaps.body())

    async def reset_swap_stats(self, request: Request) -> Response:
        """``POST /reset_swap_stats``: answers with the counts after it."""
        self._backend.catch_up()
        self._backend.swaps.reset()
        return JSONResponse(self._backend.swaps.body())

    async def _read(self, request: Request, body: type[Body]) -> Body:
        return parse(body, await read_json(request, self._backend.config.serve.max_request_bytes))

    async def _generate(
        self, request: Request, body: CompletionBody | ChatBody, kind: type[Answer]
    ) -> Response:
        backend = self._backend
        body.check()
        call = body.call(body.prompts(), body.output_limit, backend.models.adapter_of(body.model))
        request_id = request.headers.get("x-request-id") or body.request_id or uuid4().hex
        answer = kind(request_id, call.adapter or backend.config.model_name)
        if body.stream:
            generation = backend.submit(call)
            parts = events(generation, answer, body.stream_options or StreamOptions(), self._note_lag)
            return EventStream(parts, lambda: backend.release(generation))
        async with self._generation(call) as generation:
            await self._complete(request, generation)
            return JSONResponse(answer.whole(generation.outputs, generation.num_prompt_tokens))

    @asynccontextmanager
    async def _generation(self, call: Call) -> AsyncIterator[Generation]:
        generation = self._backend.submit(call)
        try:
            yield generation
        finally:
            self._backend.release(generation)

    async def _complete(self, request: Request, generation: Generation) -> None:
        """Wait until all is known. Raises ApiError, also where the client goes away before."""
        listener = asyncio.create_task(_fail_without_client(request, generation))
        try:
            await generation.complete()
        finally:
            listener.cancel()
        for output in generation.outputs:
            self._note_lag(output)

    def _note_lag(self, output: Output) -> None:
        """Take note of how long after its instant a token is told."""
        if output.last_token_ns is not None:
            lag_s = -self._backend.clock.seconds_until(output.last_token_ns)
            self._backend.metrics[output.replica].observe_lag(lag_s)


async def _fail_without_client(request: Request, generation: Generation) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    generation.fail(bad_request("the client has gone"))
