"""What a call means: lengths, prefixes, `/generate` and the swap counts. In virtual time, 10 ms a step."""

import asyncio
from typing import Any

import pytest

from sim.serve.backend import Backend
from sim.serve.prompts import from_ids, from_text, prefix_hashes
from sim.serve.words import words
from tests.sim.serve.serving import AsgiClient, VirtualLoop, serve_config, with_client
from tests.sim.test_profile import LLAMA, SETTINGS
from tests.sim.test_simulation import OPEN, config


def test_a_model_that_stops_by_itself() -> None:
    """After 6 tokens: fewer with max_tokens, more with min_tokens, and not with ignore_eos."""

    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> None:
        for limits, expected in (
            ({"max_tokens": 20}, (6, "stop")),
            ({"max_tokens": 6}, (6, "length")),
            ({"max_tokens": 4}, (4, "length")),
            ({"max_tokens": 20, "min_tokens": 9}, (9, "stop")),
            ({"max_tokens": 20, "ignore_eos": True}, (20, "length")),
        ):
            answer = await client.post("/v1/completions", {"prompt": "a"} | limits)
            found = answer.json["usage"]["completion_tokens"], answer.json["choices"][0]["finish_reason"]
            assert found == expected

    with_client(serve_config(output_length=6), task)


def test_prompts_that_begin_alike_hit_the_prefix_cache() -> None:
    """Three full blocks of 16 tokens are shared, by the same adapter only, and not with another salt."""

    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> None:
        prompt = list(range(50))

        async def hits(**more: Any) -> float:
            before = total(backend, "vllm:prefix_cache_hits")
            assert (
                await client.post("/v1/completions", {"prompt": prompt, "max_tokens": 2} | more)
            ).status == 200
            return total(backend, "vllm:prefix_cache_hits") - before

        assert await hits() == 0
        assert await hits() == 48
        assert await hits(prompt=[*prompt[:40], *[0] * 10]) == 32
        assert await hits(model="adapter-0000") == 0
        assert await hits(cache_salt="mine") == 0
        assert total(backend, "vllm:prompt_tokens_cached") == 80
        assert total(backend, "vllm:prefix_cache_queries") == 250

    with_client(serve_config(), task)


def total(backend: Backend, counter: str) -> float:
    value = backend.metrics_now().registry.get_sample_value(
        f"{counter}_total", {"model_name": "tiny", "engine": "0"}
    )
    assert value is not None
    return value


def test_generate_answers_with_the_fields_of_the_write_up() -> None:
    """The first token after a step, the others one step each."""

    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> None:
        asked = {"prompt": "Hello, how are you?", "model_id": 5, "max_tokens": 16, "temperature": 0.0}
        answer = await client.post("/generate", asked)
        assert answer.json == {
            "text": ["Hello, how are you? " + words(1, 16)],
            "model_id": 5,
            "ttft": 0.01,
            "completion_time": 0.16,
        }
        ids = await client.post("/generate", {"prompt": [1, 2], "model_id": 0, "max_tokens": 2})
        assert ids.json["text"] == ["w1 w2"]
        for body, status, param in (
            ({"prompt": "a", "model_id": 10}, 404, "model_id"),
            ({"prompt": "a", "model_id": -1}, 404, "model_id"),
            ({"prompt": "a"}, 400, "model_id"),
            ({"model_id": 1}, 400, "prompt"),
            ({"prompt": ["a"], "model_id": 1}, 400, "prompt"),
        ):
            refused = await client.post("/generate", body)
            assert (refused.status, refused.json["error"]["param"]) == (status, param)

    with_client(serve_config(), task)


@pytest.mark.parametrize("replicas", [1, 2])
def test_swap_stats_tell_preloading_and_running_apart(replicas: int) -> None:
    """Four of ten adapters are preloaded. 4 and 5 come in one step, 6 alone; 9 is there: a request before."""

    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> None:
        async def ask(*model_ids: int) -> None:
            bodies = [{"prompt": "a", "model_id": number, "max_tokens": 2} for number in model_ids]
            await asyncio.gather(*(client.post("/generate", body) for body in bodies))

        async def stats() -> Any:
            return (await client.get("/swap_stats")).json

        start = {"swap_calls": replicas, "swap_count": 4 * replicas}
        assert await stats() == {"init": start, "runtime": {"swap_calls": 0, "swap_count": 0}}
        await ask(*range(4) if replicas == 1 else (0,))
        assert (await stats())["runtime"] == {"swap_calls": 0, "swap_count": 0}
        if replicas == 1:
            await ask(4, 5)
            await ask(6)
            await ask(6)
            assert await stats() == {"init": start, "runtime": {"swap_calls": 2, "swap_count": 3}}
        reset = await client.post("/reset_swap_stats", b"")
        assert reset.json == await stats() == {"init": start, "runtime": {"swap_calls": 0, "swap_count": 0}}

    run = config(OPEN, {"max_loras": 4, "max_cpu_loras": 10, "max_lora_rank": 16}, replicas=replicas)
    with_client(serve_config(run, preload=True), task)


def test_adapters_have_names_and_health_says_what_is_served() -> None:
    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> None:
        models = (await client.get("/v1/models")).json["data"]
        assert [card["id"] for card in models] == ["base", "sql", "french"]
        assert (await client.post("/v1/completions", {"model": "sql", "prompt": "a"})).json["model"] == "sql"
        assert (await client.post("/v1/completions", {"prompt": "a"})).json["model"] == "base"
        health = (await client.get("/health")).json
        assert (health["status"], health["model"], health["total_loras"]) == ("ok", "base", 2)
        for path in ("load", "unload"):
            answer = await client.post(f"/v1/{path}_lora_adapter", {"lora_name": "sql", "lora_path": "/x"})
            assert answer.status == 404
            assert "serve.allow_runtime_lora_updating=true" in answer.json["error"]["message"]

    with_client(serve_config(adapters=["sql", "french"], served_model_name="base"), task)


def test_the_request_id_is_the_clients() -> None:
    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> None:
        body = {"prompt": "a", "request_id": "of-body"}
        assert (await client.post("/v1/completions", body)).json["id"] == "cmpl-of-body"
        answer = await client.post("/v1/completions", body, x_request_id="of-header")
        assert answer.json["id"] == "cmpl-of-header"

    with_client(serve_config(), task)


def test_health_names_the_measured_ranges_that_were_left() -> None:
    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> None:
        said = (await client.get("/health")).json["outside_range"]
        assert said == ["max_loras=4 is outside the measured 8 to 64"]

    with_client(serve_config(config(OPEN, profile=SETTINGS, model=LLAMA)), task)


def test_usage_with_every_chunk() -> None:
    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> None:
        options = {"include_usage": True, "continuous_usage_stats": True}
        body = {"prompt": "a b", "max_tokens": 3, "stream": True, "stream_options": options}
        events = [event for _, event in (await client.post("/v1/completions", body)).events[:-1]]
        assert [event["usage"]["completion_tokens"] for event in events] == [1, 2, 3, 3]
        assert {event["usage"]["prompt_tokens"] for event in events} == {2}

    with_client(serve_config(), task)


def test_twice_as_fast() -> None:
    """Simulated times are what they are; the clock on the wall shows half of them."""

    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> None:
        answer = await client.post("/generate", {"prompt": "a", "model_id": 0, "max_tokens": 4})
        assert answer.json["completion_time"] == 0.04
        assert loop.now_ns == 20_000_001

    with_client(serve_config(speed=2), task)


def test_words_of_a_stream_add_up() -> None:
    assert words(1, 3) == "w1 w2 w3"
    assert words(1, 2) + words(3, 3) == "w1 w2 w3"
    assert words(1, 0) == ""


def test_tokens_of_prompts() -> None:
    assert from_text(" to be\tor\n not ").num_tokens == 4
    assert from_text("  ").num_tokens == 1
    assert from_ids([7, 7, 7]).num_tokens == 3


def test_hashes_are_of_full_blocks_and_of_all_before() -> None:
    one, other = from_ids([1, 2, 3, 4, 5]), from_ids([9, 2, 3, 4, 5])
    assert len(prefix_hashes(one, 2)) == 2
    assert not set(prefix_hashes(one, 2)) & set(prefix_hashes(other, 2))
    assert prefix_hashes(one, 2) == prefix_hashes(from_ids([1, 2, 3, 4, 6, 7]), 2)[:2]
    assert prefix_hashes(from_ids([1, 2]), 2) != prefix_hashes(from_text("1 2"), 2)
