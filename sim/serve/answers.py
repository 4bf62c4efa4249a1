"""The JSON of answers to completions and to chat completions, whole and in parts."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from sim.serve.outputs import Output
from sim.serve.words import words

Json = dict[str, Any]


def usage(num_prompt_tokens: int, num_output_tokens: int) -> Json:
    """Return the ``usage`` of an answer."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "total_tokens": num_prompt_tokens + num_output_tokens,
        "completion_tokens": num_output_tokens,
    }


class Answer(ABC):
    """An answer to one call; a subclass has the names of its kind and the shape of a choice."""

    prefix: ClassVar[str]
    """Of the id."""
    whole_object: ClassVar[str]
    part_object: ClassVar[str]

    def __init__(self, request_id: str, model: str) -> None:
        self.id = f"{self.prefix}-{request_id}"
        self._model = model
        self._created = int(time.time())

    def whole(self, outputs: Sequence[Output], num_prompt_tokens: int) -> Json:
        """Return the body of an answer that does not stream."""
        choices = [
            self._choice(index, words(1, output.num_tokens), output.finish_reason)
            for index, output in enumerate(outputs)
        ]
        num_output_tokens = sum(output.num_tokens for output in outputs)
        return self._body(self.whole_object, choices) | {"usage": usage(num_prompt_tokens, num_output_tokens)}

    def part(self, index: int, first: int, output: Output) -> Json:
        """Return a chunk with a choice's tokens from ``first`` on, counted from 1."""
        text = words(first, output.num_tokens)
        return self._body(self.part_object, [self._delta(index, text, output.finish_reason)])

    def opening(self, index: int) -> Json | None:
        """Return the chunk that comes before a choice's first token, if any."""
        return None

    def closing(self, num_prompt_tokens: int, num_output_tokens: int) -> Json:
        """Return the last chunk of a stream that tells its usage."""
        return self._body(self.part_object, []) | {"usage": usage(num_prompt_tokens, num_output_tokens)}

    @abstractmethod
    def _choice(self, index: int, text: str, finish_reason: str | None) -> Json:
        """Return a choice of a whole answer."""

    @abstractmethod
    def _delta(self, index: int, text: str, finish_reason: str | None) -> Json:
        """Return a choice of a chunk."""

    def _body(self, name: str, choices: list[Json]) -> Json:
        return {
            "id": self.id,
            "object": name,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }


class CompletionAnswer(Answer):
    """Of ``/v1/completions``."""

    prefix = "cmpl"
    whole_object = part_object = "text_completion"

    def _choice(self, index: int, text: str, finish_reason: str | None) -> Json:
        return {
            "index": index,
            "text": text,
            "logprobs": None,
            "finish_reason": finish_reason,
            "stop_reason": None,
        }

    _delta = _choice


class ChatAnswer(Answer):
    """Of ``/v1/chat/completions``."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    part_object = "chat.completion.chunk"

    def opening(self, index: int) -> Json:
        """Return the chunk with the role."""
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return self._body(self.part_object, [choice])

    def _choice(self, index: int, text: str, finish_reason: str | None) -> Json:
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "tool_calls": []},
            "logprobs": None,
            "finish_reason": finish_reason,
            "stop_reason": None,
        }

    def _delta(self, index: int, text: str, finish_reason: str | None) -> Json:
        return {
            "index": index,
            "delta": {"content": text},
            "logprobs": None,
            "finish_reason": finish_reason,
        }
