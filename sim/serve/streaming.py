"""Answers that stream: server-sent events, each token as soon as it is known."""

import json
from collections.abc import AsyncIterator, Callable, Iterator

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sim.serve.answers import Answer, Json, usage
from sim.serve.errors import ApiError
from sim.serve.outputs import Generation, Output
from sim.serve.protocol import StreamOptions

DONE = b"data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """Sends ``events``; calls ``on_end`` when the last one is sent, or when the client has gone."""

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def events(
    generation: Generation, answer: Answer, options: StreamOptions, on_send: Callable[[Output], None]
) -> AsyncIterator[bytes]:
    """Yield the events of a stream.

    A chunk has all tokens of a choice that have become known since its last one: one, unless the client or
    the server is slow, as in vLLM (`RequestOutputCollector`). ``on_send`` is told of each.
    """
    num_told = [0] * len(generation.outputs)
    try:
        while not generation.is_complete or num_told != [output.num_tokens for output in generation.outputs]:
            await generation.more()
            if not any(num_told):
                for opening in map(answer.opening, range(len(num_told))):
                    if opening is not None:
                        yield _event(opening)
            for chunk, output in _news(generation, answer, options, num_told):
                on_send(output)
                yield _event(chunk)
        if options.include_usage:
            yield _event(answer.closing(generation.num_prompt_tokens, sum(num_told)))
    except ApiError as error:
        yield _event(error.body())
    yield DONE


def _news(
    generation: Generation, answer: Answer, options: StreamOptions, num_told: list[int]
) -> Iterator[tuple[Json, Output]]:
    """Yield a chunk for each choice that has new tokens, and count them as told."""
    for index, output in enumerate(generation.outputs):
        if output.num_tokens > num_told[index]:
            chunk = answer.part(index, num_told[index] + 1, output)
            num_told[index] = output.num_tokens
            if options.continuous_usage_stats:
                chunk["usage"] = usage(output.request.num_prompt_tokens, output.num_tokens)
            yield chunk, output


def _event(body: Json) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"
