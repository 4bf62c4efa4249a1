"""The ``lorasim-serve`` command: start, requests, Ctrl-C; and what is refused in one line."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from sim.errors import UserError
from sim.serve.__main__ import main
from sim.serve.config import ServeConfig, ServerConfig
from tests.refusal import refused
from tests.sim.serve.serving import running, serve_config, serve_values
from tests.sim.test_profile import changed

ROOT = Path(__file__).resolve().parents[3]
QUICK = ["profile=constant", "profile.step_ms=20", "serve.port=0", "serve.adapters=20"]


@contextmanager
def started(*words: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start the command; gives its address and its process."""
    command = [sys.executable, "-m", "sim.serve", *QUICK, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.startswith("lorasim-serve: simulating meta-llama/Llama-3.1-8B at http://127.0.0.1:")
            yield line.split(" at ")[1].split()[0], process
        finally:
            process.kill()


def stopped(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end; returns exit status and the rest of standard error."""
    _, rest = process.communicate(timeout=60)
    return process.returncode, rest


def test_ctrl_c_lets_a_request_in_flight_end() -> None:
    with started() as (address, process), openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        health = httpx2.get(f"{address}/health").json()
        assert (health["total_loras"], health["profile"]) == (20, "constant")
        stream = client.completions.create(model="adapter-0001", prompt="a", max_tokens=20, stream=True)
        text = next(stream).choices[0].text
        process.send_signal(signal.SIGINT)
        text += "".join(chunk.choices[0].text for chunk in stream)
        assert text == " ".join(f"w{number}" for number in range(1, 21))
        status, rest = stopped(process)
        assert (status, rest) == (0, "lorasim-serve: 1 requests in flight; Ctrl-C ends them now\n")


def test_a_second_ctrl_c_ends_requests_with_an_error() -> None:
    with started() as (address, process), openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        stream = client.completions.create(model="adapter-0001", prompt="a", max_tokens=5000, stream=True)
        next(stream)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "1 requests in flight" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        assert stopped(process) == (0, "")


def test_the_end_of_patience_ends_requests_with_an_error() -> None:
    errors: list[openai.APIError] = []

    def read_all() -> None:
        try:
            list(stream)
        except openai.APIError as error:
            errors.append(error)

    with running(serve_config(shutdown_timeout_s=0.1)) as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(model="tiny", prompt="a", max_tokens=100, stream=True)
        next(stream)
        reading = threading.Thread(target=read_all)
        reading.start()
    reading.join()
    client.close()
    assert "shutting down" in str(errors)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve.port=http"], "serve.port='http': expected int"),
        (["serve.hsot=x"], "hsot"),
        (["serve.host=256.1.1.1"], "serve.host=256.1.1.1"),
        (["admission._target_=nowhere.Policy"], "admission"),
        (["workload=zipf"], "workload"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: list[str],
    said: str,
) -> None:
    line = refused(monkeypatch, capsys, tmp_path, [*QUICK, *words], main=main, prog="lorasim-serve")
    assert said in line


def test_a_server_is_no_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lorasim-serve", "--multirun", *QUICK])
    with pytest.raises(SystemExit) as exit_:
        main()
    said = "lorasim-serve: error: --multirun: a server has one configuration; start several; given: "
    assert (exit_.value.code, capsys.readouterr().err.startswith(said)) == (2, True)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("serve.port", 70000, "serve.port=70000: expected 0 (any free one) to 65535"),
        ("serve.speed", 0, "serve.speed=0.0: must be greater than 0"),
        ("serve.adapters", -1, "serve.adapters=-1: must not be negative"),
        ("serve.adapters", ["a", "b", "a"], "serve.adapters=['a', 'b', 'a']: expected names"),
        ("serve.adapters", ["a", ""], "expected names, none of them empty"),
        ("serve.adapter_rank", 64, "adapter-0000 has rank 64; must be at most engine.max_lora_rank=16"),
        ("serve.max_queued_requests", 0, "serve.max_queued_requests=0: must be greater than 0"),
        ("serve.request_timeout_s", -1, "serve.request_timeout_s=-1.0: must be greater than 0"),
        ("serve.shutdown_timeout_s", -1, "serve.shutdown_timeout_s=-1.0: must not be negative"),
        ("serve.output_length", {"kind": "zipf"}, "serve.output_length"),
        ("serve.hsot", "x", "unknown key serve.hsot; accepted: host, port"),
        ("engine.fast_forward", True, "engine.fast_forward=true"),
        ("engine.max_model_len", 200_000, "must be at most model.max_position_embeddings=4096"),
        ("replicas", 0, "replicas=0: must be greater than 0"),
        ("seed", -1, "seed=-1: must not be negative"),
    ],
)
def test_a_wrong_setting_is_named(key: str, value: object, said: str) -> None:
    with pytest.raises(UserError) as raised:
        ServeConfig.from_mapping(changed(key, value, base=serve_values()))
    assert said in str(raised.value)


def test_preloading_and_a_warm_start_exclude_each_other() -> None:
    values = changed("engine.initial_host_cache", ["x"], base=serve_values(preload=True))
    with pytest.raises(UserError, match=r"serve\.preload=true"):
        ServeConfig.from_mapping(values)


def test_a_port_that_is_taken_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [*QUICK, f"serve.port={port}"]
        line = refused(monkeypatch, capsys, tmp_path, words, main=main, prog="lorasim-serve")
    assert f"serve.host=127.0.0.1 serve.port={port}: Address already in use" in line


def test_help_names_groups_and_paths(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lorasim-serve", "--help"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for part in (
        "constant, h100_llama_3_1_8b",
        "/v1/chat/completions",
        "/reset_swap_stats",
        "--cfg job",
        "Not modelled",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("variable", "setting", "allowed"),
    [
        (None, None, False),
        ("True", None, True),
        ("1", None, True),
        ("0", None, False),
        ("1", False, False),
        ("0", True, True),
    ],
)
def test_runtime_lora_updating_is_vllms_variable_unless_it_is_set(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, setting: bool | None, allowed: bool
) -> None:
    monkeypatch.delenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", raising=False)
    if variable is not None:
        monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", variable)
    assert ServerConfig(allow_runtime_lora_updating=setting).lora_updating_allowed is allowed


def test_preloading_fills_the_host_cache_and_of_it_the_slots() -> None:
    values: dict[str, Any] = serve_values(adapters=10, preload=True)
    values["engine"] |= {"max_loras": 2, "max_cpu_loras": 5}
    engine = ServeConfig.from_mapping(values).engine
    assert engine.initial_host_cache == [f"adapter-{number:04d}" for number in range(5)]
    assert engine.initial_slots == ["adapter-0000", "adapter-0001"]
