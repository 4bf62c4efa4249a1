"""Prompts without a tokenizer: how many tokens they have, and which prompts begin alike."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple


class Prompt(NamedTuple):
    """A prompt as a sequence of tokens: ids where the client sent ids, else the words of its text."""

    tokens: Sequence[int] | Sequence[str]
    text: str

    @property
    def num_tokens(self) -> int:
        """Every id is a token; in a text every word between white space, and one at least."""
        return len(self.tokens)


def from_text(text: str) -> Prompt:
    """Return the prompt of a text."""
    return Prompt(text.split() or [text], text)


def from_ids(ids: Sequence[int]) -> Prompt:
    """Return the prompt of token ids, whose text is not known."""
    return Prompt(ids, "")


def from_messages(messages: Sequence[tuple[str, str]]) -> Prompt:
    """Return the prompt of a chat, from (role, content) pairs.

    In place of the model's template each role is a word before its content, and the assistant's, whose turn
    it is, ends the prompt.
    """
    lines = [f"{role} {content}" for role, content in messages]
    return from_text("\n".join([*lines, "assistant"]))


def prefix_hashes(prompt: Prompt, block_size: int, salt: str | None = None) -> tuple[int, ...]:
    """Return what stands for the prompt up to the end of each of its full blocks of KV cache.

    A block's hash covers its tokens and the hash before it, as ``hash_block_tokens``
    (vllm/v1/core/kv_cache_utils.py); ``salt`` is the request's ``cache_salt``, which keeps prompts apart.
    """
    digest = (salt or "").encode()
    hashes = []
    for start in range(0, len(prompt.tokens) - block_size + 1, block_size):
        block = repr(prompt.tokens[start : start + block_size])
        digest = blake2b(digest + block.encode(), digest_size=8).digest()
        hashes.append(int.from_bytes(digest, "big"))
    return tuple(hashes)
