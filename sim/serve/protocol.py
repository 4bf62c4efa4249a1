"""The JSON bodies of requests, as vLLM's protocol modules have them (vllm/entrypoints/openai).

Fields that the simulation has no use for (temperature, stop, user, ...) are taken and ignored. Those that
would change what an answer holds are refused: NOT_SIMULATED.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sim.serve.calls import Call
from sim.serve.errors import ApiError, bad_request
from sim.serve.prompts import Prompt, from_ids, from_messages, from_text

NOT_SIMULATED = (
    *("echo", "suffix", "logprobs", "top_logprobs", "prompt_logprobs", "prompt_embeds", "use_beam_search"),
    *("response_format", "structured_outputs", "tools", "functions", "truncate_prompt_tokens"),
    *("return_token_ids", "audio", "modalities"),
)
TEXT_FORMAT = {"type": "text"}

TokenId = Annotated[int, Field(ge=0)]
Prompts = str | list[TokenId] | list[str] | list[list[TokenId]]
Body = TypeVar("Body", bound=BaseModel)


class StreamOptions(BaseModel):
    """What a stream tells beside tokens."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class GenerationBody(BaseModel):
    """What completions and chat completions have in common."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    prompt_token_ids: list[TokenId] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    ignore_eos: bool = False
    n: Annotated[int, Field(ge=1, le=16384)] | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    priority: int = 0
    request_id: str | None = None
    cache_salt: str | None = None

    def call(self, prompts: Sequence[Prompt], max_tokens: int | None, adapter: str | None) -> Call:
        """Return what it asks for."""
        return Call(
            prompts,
            adapter,
            self.n or 1,
            max_tokens,
            self.min_tokens,
            self.ignore_eos,
            self.priority,
            self.cache_salt,
        )

    def check(self) -> None:
        """Raise ApiError (400) for what fits no field's type but cannot be answered."""
        for name in NOT_SIMULATED:
            value = (self.model_extra or {}).get(name)
            if value and not (name == "response_format" and value == TEXT_FORMAT):
                raise bad_request(f"`{name}` is not simulated", name)
        if self.stream_options is not None and not self.stream:
            raise bad_request("Stream options can only be defined when `stream=True`.", "stream_options")


class CompletionBody(GenerationBody):
    """The body of ``/v1/completions``."""

    prompt: Prompts | None = None

    def prompts(self) -> list[Prompt]:
        """Return the prompts, one or several. Raises ApiError (400) where there is none."""
        return prompts_of(self.prompt, self.prompt_token_ids)

    @property
    def output_limit(self) -> int | None:
        """Most tokens of an output; 16 where the client does not say."""
        return self.max_tokens or 16


class Message(BaseModel):
    """A message of a chat; of its parts only text can be simulated."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[Mapping[str, Any]] | None = None

    def text(self) -> str:
        """Return its text. Raises ApiError (400) for other parts."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        for part in self.content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise bad_request(
                    f"messages: a part of type {part.get('type')!r} is not simulated", "messages"
                )
        return " ".join(part["text"] for part in self.content)


class ChatBody(GenerationBody):
    """The body of ``/v1/chat/completions``."""

    messages: list[Message] = []
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    def prompts(self) -> list[Prompt]:
        """Return the prompt. Raises ApiError (400) where there is none."""
        if self.prompt_token_ids:
            return [from_ids(self.prompt_token_ids)]
        if not self.messages:
            raise bad_request("messages must not be empty", "messages")
        return [from_messages([(message.role, message.text()) for message in self.messages])]

    @property
    def output_limit(self) -> int | None:
        """Most tokens of an output; None: as many as there is room for."""
        return self.max_completion_tokens or self.max_tokens


class GenerateBody(BaseModel):
    """The body of ``/generate``."""

    model_config = ConfigDict(extra="allow")

    prompt: str | list[TokenId] | None = None
    prompt_token_ids: list[TokenId] | None = None
    model_id: int
    max_tokens: Annotated[int, Field(ge=1)] = 16
    min_tokens: Annotated[int, Field(ge=0)] = 0
    ignore_eos: bool = False

    def only_prompt(self) -> Prompt:
        """Return the prompt. Raises ApiError (400) where there is none."""
        return prompts_of(self.prompt, self.prompt_token_ids)[0]


class LoadAdapterBody(BaseModel):
    """The body of ``/v1/load_lora_adapter``."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadAdapterBody(BaseModel):
    """The body of ``/v1/unload_lora_adapter``."""

    lora_name: str


def parse(body: type[Body], value: object) -> Body:
    """Return ``value``, a JSON value, as ``body``. Raises ApiError (400) that names the field."""
    if not isinstance(value, dict):
        raise bad_request(f"the body must be a JSON object, not {type(value).__name__}")
    try:
        return body.model_validate(value)
    except ValidationError as error:
        raise _wrong_fields(error) from error


def prompts_of(prompt: Prompts | None, ids: list[int] | None) -> list[Prompt]:
    """Return the prompts that a body's ``prompt`` or ``prompt_token_ids`` stand for, one at least."""
    if prompt and ids:
        raise bad_request("prompt and prompt_token_ids are both given; expected one of them", "prompt")
    given = prompt or ids
    if not given:
        raise bad_request("prompt must be provided and not be empty.", "prompt")
    if isinstance(given, str):
        return [from_text(given)]
    if token_ids := [token for token in given if isinstance(token, int)]:
        return [from_ids(token_ids)]
    if not all(given):
        raise bad_request("prompt must not hold empty prompts", "prompt")
    several = [one for one in given if not isinstance(one, int)]
    return [from_text(one) if isinstance(one, str) else from_ids(one) for one in several]


def _wrong_fields(error: ValidationError) -> ApiError:
    """Return the error for fields of wrong types: of each field, what came nearest to one that fits."""
    wrong: dict[str, tuple[int, str]] = {}
    for each in error.errors(include_url=False, include_input=False, include_context=False):
        depth, name = len(each["loc"]), str(each["loc"][0])
        if depth > wrong.get(name, (0, ""))[0]:
            wrong[name] = depth, each["msg"]
    message = "; ".join(f"{name}: {text}" for name, (_, text) in wrong.items())
    return bad_request(message, next(iter(wrong)))
