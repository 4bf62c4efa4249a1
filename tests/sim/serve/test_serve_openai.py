"""A real server and the `openai` package: completions and chats, whole and streamed, and what goes wrong."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from sim.serve.backend import Backend
from sim.serve.words import words as token_words
from tests.sim.serve.serving import running, serve_config
from tests.sim.test_simulation import OPEN, config

QUICK: dict[str, Any] = {"profile": {"kind": "constant", "step_ms": 2}}
CHAT: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How are you?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Backend]]:
    run = config(
        OPEN, {"max_num_seqs": 256, "max_num_batched_tokens": 2048, "num_gpu_blocks": 20_000}, **QUICK
    )
    with running(serve_config(run, max_request_bytes=10_000, allow_runtime_lora_updating=True)) as found:
        yield found


@pytest.fixture
def client(server: tuple[str, Backend]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_models_are_the_base_model_and_its_adapters(client: openai.OpenAI) -> None:
    cards = list(client.models.list())
    assert [card.id for card in cards] == ["tiny", *(f"adapter-{n:04d}" for n in range(10))]
    assert cards[1].parent == "tiny"  # type: ignore[attr-defined]


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="adapter-0003", prompt="to be or not to be", max_tokens=4)
    (choice,) = answer.choices
    assert (answer.model, choice.text, choice.finish_reason) == ("adapter-0003", "w1 w2 w3 w4", "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        6,
        4,
        10,
    )
    assert answer.id.startswith("cmpl-")


def test_completion_without_max_tokens_has_16_as_in_vllm(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=[5, 6, 7])
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 16)


def test_streamed_completion_tells_one_token_after_another(client: openai.OpenAI) -> None:
    usage = {"include_usage": True}
    stream = client.completions.create(
        model="tiny", prompt="a b", max_tokens=50, stream=True, stream_options=usage  # type: ignore[call-overload]
    )  # fmt: skip
    *chunks, last = stream
    assert "".join(chunk.choices[0].text for chunk in chunks) == token_words(1, 50)
    # Not 50: a busy machine tells several at once. None stands still for all of them.
    assert len(chunks) > 1
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert (last.choices, last.usage.completion_tokens) == ([], 50)


def test_several_prompts_and_n(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["a b c", "d"], n=2, max_tokens=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.text for choice in answer.choices} == {"w1 w2 w3"}
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 12)
    texts: dict[int, str] = {}
    for chunk in client.completions.create(
        model="tiny", prompt=[[1, 2], [3]], n=2, max_tokens=3, stream=True
    ):
        (choice,) = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert texts == dict.fromkeys(range(4), "w1 w2 w3")


def test_chat_counts_roles_as_words_and_the_assistants_turn(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="adapter-0000", messages=CHAT, max_completion_tokens=3)
    assert answer.choices[0].message.content == "w1 w2 w3"
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    # system Be brief. user How are you? assistant
    assert answer.usage.prompt_tokens == 8
    assert answer.id.startswith("chatcmpl-")
    parts = [{"role": "user", "content": [{"type": "text", "text": "How are you?"}]}]
    again = client.chat.completions.create(model="tiny", messages=parts, max_tokens=1)  # type: ignore[arg-type]
    assert again.usage is not None
    assert again.usage.prompt_tokens == 5


def test_chat_without_max_tokens_goes_on_to_the_end_of_the_context(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=CHAT)
    assert answer.usage is not None
    assert answer.usage.total_tokens == 128
    assert answer.choices[0].finish_reason == "length"


def test_streamed_chat_begins_with_the_role(client: openai.OpenAI) -> None:
    first, *chunks = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=4, stream=True)
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "w1 w2 w3 w4"
    assert chunks[-1].choices[0].finish_reason == "length"


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == answer.status_code
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_unknown_model_is_404(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError, match="The model `nobody` does not exist"):
            client.completions.create(model="nobody", prompt="a", stream=stream)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="nobody", messages=CHAT, stream=stream)


COMPLETION = {"prompt": "a b", "max_tokens": 4}


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"max_tokens": 4}, "prompt", "provided"),
        ({"prompt": ""}, "prompt", "provided"),
        ({"prompt": []}, "prompt", "provided"),
        ({"prompt": ["a", ""]}, "prompt", "empty"),
        ({"prompt": [-1]}, "prompt", "greater than or equal to 0"),
        ({"prompt": {"a": 1}}, "prompt", "valid"),
        (COMPLETION | {"prompt_token_ids": [1]}, "prompt", "both"),
        (COMPLETION | {"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        (COMPLETION | {"max_tokens": "many"}, "max_tokens", "integer"),
        (COMPLETION | {"max_tokens": 127}, "max_tokens", "maximum context length is 128"),
        ({"prompt": [1] * 128, "max_tokens": 1}, "prompt", "maximum context length is 128"),
        (COMPLETION | {"min_tokens": 5}, "min_tokens", "max_tokens=4"),
        (COMPLETION | {"n": 0}, "n", "greater than or equal to 1"),
        (COMPLETION | {"stream_options": {"include_usage": True}}, "stream_options", "stream=True"),
        (COMPLETION | {"logprobs": 3}, "logprobs", "not simulated"),
        (COMPLETION | {"response_format": {"type": "json_object"}}, "response_format", "not simulated"),
        ([1, 2], None, "JSON object"),
    ],
)  # fmt: skip
def test_bad_completion_is_400_and_names_the_field(
    server: tuple[str, Backend], body: Any, param: str | None, words: str
) -> None:
    answer = httpx2.post(f"{server[0]}/v1/completions", json=body)
    error = error_of(answer)
    assert (answer.status_code, error["type"], error["param"]) == (400, "BadRequestError", param)
    assert words in error["message"]


def test_bad_chat_is_400(client: openai.OpenAI) -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    for messages in ([], [{"content": "no role"}], image):
        with pytest.raises(openai.BadRequestError, match="messages"):
            client.chat.completions.create(model="tiny", messages=messages)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[" * 5000, "not valid JSON"),
    ],
)
def test_bad_json_is_400(server: tuple[str, Backend], content: bytes, words: str) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/generate", "/v1/load_lora_adapter"):
        answer = httpx2.post(server[0] + path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
        assert words in error_of(answer)["message"]


def test_other_media_types_are_400_as_in_vllm(server: tuple[str, Backend]) -> None:
    answer = httpx2.post(f"{server[0]}/v1/completions", data={"prompt": "a"})
    assert answer.status_code == 400
    assert "application/json" in error_of(answer)["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_413(server: tuple[str, Backend], chunked: bool) -> None:
    content = json.dumps({"prompt": "a " * 6000}).encode()
    sent: Any = iter([content[:4000], content[4000:]]) if chunked else content
    headers = {"Content-Type": "application/json"}
    answer = httpx2.post(f"{server[0]}/v1/completions", content=sent, headers=headers)
    assert answer.status_code == 413
    assert "10000 bytes" in error_of(answer)["message"]


def test_unknown_paths_and_methods(server: tuple[str, Backend]) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/health", 405),
    ):
        answer = httpx2.request(method, server[0] + path)
        assert answer.status_code == status
        error_of(answer)


def test_adapters_are_loaded_and_unloaded_at_runtime(
    server: tuple[str, Backend], client: openai.OpenAI
) -> None:
    def post(path: str, **body: Any) -> httpx2.Response:
        return httpx2.post(f"{server[0]}/v1/{path}_lora_adapter", json=body)

    loaded = post("load", lora_name="sql", lora_path="/adapters/sql")
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
    assert list(client.models.list())[-1].id == "sql"
    assert client.completions.create(model="sql", prompt="a", max_tokens=2).choices[0].text == "w1 w2"
    again = post("load", lora_name="sql", lora_path="/adapters/sql")
    assert (again.status_code, error_of(again)["type"]) == (400, "InvalidUserInput")
    assert post("load", lora_name="sql", lora_path="/new", load_inplace=True).status_code == 200
    assert post("load", lora_name="", lora_path="/x").status_code == 400
    assert post("load", lora_name="x").status_code == 400
    assert post("load", lora_name="tiny", lora_path="/x").status_code == 400
    assert post("unload", lora_name="sql").text == "Success: LoRA adapter 'sql' removed successfully."
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="sql", prompt="a", max_tokens=2)
    assert post("unload", lora_name="sql").status_code == 404
    assert post("unload", lora_name="").status_code == 400


def test_a_client_that_goes_away_aborts_its_request(server: tuple[str, Backend]) -> None:
    address, backend = server

    async def go_away(stream: bool) -> None:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            asking = client.completions.create(model="tiny", prompt="a", max_tokens=100, stream=stream)
            task = asyncio.ensure_future(asking)
            while not backend.num_calls:
                await asyncio.sleep(0.001)
            if stream:
                answer = await task
                async for _ in answer:  # type: ignore[union-attr]
                    break
                await answer.close()  # type: ignore[union-attr]
            task.cancel()
        while backend.num_calls:
            await asyncio.sleep(0.001)

    for stream in (False, True):
        before = aborted(address)
        asyncio.run(asyncio.wait_for(go_away(stream), 20))
        assert aborted(address) == before + 1
    assert backend.replicas[0].state.num_running == 0


def aborted(address: str) -> float:
    (line,) = (
        line for line in httpx2.get(f"{address}/metrics").text.splitlines()
        if line.startswith("lorasim:requests_aborted_total")
    )  # fmt: skip
    return float(line.split()[-1])
