"""What a client asks for, before there are requests."""

from collections.abc import Sequence
from dataclasses import dataclass

from sim.serve.errors import bad_request
from sim.serve.prompts import Prompt


@dataclass(frozen=True)
class Call:
    """``n`` outputs for each of the prompts. Lengths in tokens."""

    prompts: Sequence[Prompt]
    adapter: str | None = None
    n: int = 1
    max_tokens: int | None = None
    """None: as many as the model's context has room for."""
    min_tokens: int = 0
    ignore_eos: bool = False
    priority: int = 0
    cache_salt: str | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(prompt.num_tokens for prompt in self.prompts)

    @property
    def num_requests(self) -> int:
        """Requests to the engine."""
        return len(self.prompts) * self.n

    def most_tokens(self, prompt: Prompt, max_model_len: int) -> int:
        """Return how many tokens an output for ``prompt`` may have.

        Raises ApiError (400) for what vLLM refuses too (its sampling_params.py, renderers/params.py).
        """
        room = max_model_len - prompt.num_tokens
        if room < max(1, self.max_tokens or 0):
            raise bad_request(
                f"This model's maximum context length is {max_model_len} tokens. The prompt has "
                f"{prompt.num_tokens} tokens and {self.max_tokens or 'at least 1'} are asked for.",
                "prompt" if room < 1 else "max_tokens",
            )
        max_tokens = room if self.max_tokens is None else self.max_tokens
        if self.min_tokens > max_tokens:
            raise bad_request(
                f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {self.min_tokens}.",
                "min_tokens",
            )
        return max_tokens
