"""What the JSON of an answer says: tokens, usage, text, the end."""

import json
from collections.abc import Mapping
from typing import Any

from calibrate.bench.record import RequestRecord

DONE = "[DONE]"
_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


class BadAnswer(Exception):
    """The server answered with what is no answer of the OpenAI API, or with an error in mid-stream."""


class Answer:
    """Takes an answer, whole or chunk by chunk, into a record."""

    def __init__(self, record: RequestRecord, keep_text: bool) -> None:
        self.record = record
        self.is_complete = False
        """Whether a reason to finish, or the end mark, has come."""
        self._keep_text = keep_text
        self._num_chunks = 0

    def take_event(self, data: str, now_s: float) -> None:
        """Take the data of one event of a stream. Raises BadAnswer."""
        if data.strip() == DONE:
            self.is_complete = True
            return
        content = parsed(data)
        choices = content.get("choices") or []
        if choices:
            self._take_choice(_mapping(choices[0]), now_s)
        self._take_usage(content.get("usage"))

    def take_whole(self, text: str, now_s: float) -> None:
        """Take an answer that was not streamed: no time of a first token. Raises BadAnswer."""
        content = parsed(text)
        choices = content.get("choices")
        if not choices or not isinstance(choices, list):
            raise BadAnswer(f"no choices in the answer: {text[:200]}")
        self._take_text(_mapping(choices[0]))
        self.record.finish_s, self.is_complete = now_s, True
        self._take_usage(content.get("usage"))

    def close(self) -> None:
        """Count chunks where the server has not counted tokens. Raises BadAnswer for an answer of none."""
        if self.record.tokens_from is None and self._num_chunks:
            self.record.num_generated_tokens, self.record.tokens_from = self._num_chunks, "chunks"
        if self.record.finish_s is None:
            raise BadAnswer("the stream had no choices in it")

    def _take_choice(self, choice: Mapping[str, Any], now_s: float) -> None:
        delta = _mapping(choice.get("delta") or {})
        has_text = self._take_text(choice) or bool(delta.get("tool_calls"))
        ends = choice.get("finish_reason") is not None
        # An empty text is a token that is half a character, but not at the end or at the beginning of a chat.
        if has_text or not (ends or "role" in delta):
            self._num_chunks += 1
            if self.record.first_token_s is None:
                self.record.first_token_s = now_s
        self.record.finish_s = now_s
        self.is_complete = self.is_complete or ends

    def _take_text(self, choice: Mapping[str, Any]) -> bool:
        message = choice.get("delta") or choice.get("message") or {}
        texts = [choice.get("text"), *(_mapping(message).get(name) for name in _TEXTS)]
        text = "".join(part for part in texts if isinstance(part, str))
        if self._keep_text:
            self.record.text += text + _functions(_mapping(message).get("tool_calls") or [])
        return bool(text)

    def _take_usage(self, usage: Any) -> None:
        if not isinstance(usage, Mapping):
            return
        completion, prompt = usage.get("completion_tokens"), usage.get("prompt_tokens")
        if isinstance(completion, int):
            self.record.num_generated_tokens, self.record.tokens_from = completion, "usage"
        if isinstance(prompt, int):
            self.record.input_length = prompt


def _functions(calls: list[Any]) -> str:
    """What tool calls call; their ids differ each time."""
    functions = [_mapping(call).get("function") for call in calls]
    return json.dumps(functions, sort_keys=True) if functions else ""


def parsed(text: str) -> Mapping[str, Any]:
    """Return a JSON object of the server's. Raises BadAnswer for what is none, and for an error in it."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise BadAnswer(f"not JSON: {text[:200]!r}") from error
    if content_error := _mapping(content).get("error"):
        raise BadAnswer(f"error in the answer: {json.dumps(content_error)[:200]}")
    return _mapping(content)


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadAnswer(f"expected a JSON object, found {json.dumps(value)[:200]}")
    return value
