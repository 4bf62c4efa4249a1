"""A user's prompts: JSON lines."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.errors import UserError


@dataclass(frozen=True)
class DatasetLine:
    """One prompt. `max_tokens` and `adapter` are None where the line does not say."""

    prompt: str | None
    messages: list[dict[str, Any]] | None
    adapter: str | None = None
    max_tokens: int | None = None


def read_dataset(path: str) -> list[DatasetLine]:
    """Read `{"prompt": "...", "adapter_name": "..."}` lines; `messages` (of a chat) in place of `prompt`.

    `adapter_name` and `max_tokens` are optional, other keys are passed over. Raises UserError, OSError.
    """
    lines = []
    with Path(path).open(encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            if text.strip():
                lines.append(_line(text, f"{path}, line {number}"))
    if not lines:
        raise UserError(f"{path}: no lines in it; expected {{'prompt': '...', 'adapter_name': '...'}}")
    return lines


def _line(text: str, where: str) -> DatasetLine:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: expected a JSON object with prompt or messages")
    prompt, messages = content.get("prompt"), content.get("messages")
    if (prompt is None) == (messages is None):
        raise UserError(f"{where}: expected one of prompt and messages")
    if prompt is not None and not isinstance(prompt, str):
        raise UserError(f"{where}: prompt={str(prompt)[:60]!r}: expected text")
    if messages is not None and not _are_messages(messages):
        raise UserError(f"{where}: messages: expected a list of objects with a role")
    adapter, max_tokens = content.get("adapter_name"), content.get("max_tokens")
    if adapter is not None and not (isinstance(adapter, str) and adapter):
        raise UserError(f"{where}: adapter_name={adapter!r}: expected a name")
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise UserError(f"{where}: max_tokens={max_tokens!r}: expected a number of 1 or more")
    return DatasetLine(prompt, messages, adapter, max_tokens)


def _are_messages(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in value)
