"""`python -m calibrate.bench` from its command line to its files."""

import csv
import importlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from calibrate.bench import files
from calibrate.bench.__main__ import main
from calibrate.bench.dataset import read_dataset
from calibrate.bench.files import COLUMNS
from calibrate.bench.gpu_memory import GpuMemory
from sim.errors import UserError
from tests.calibrate.fake_openai import Behaviour, fake_openai, served
from tests.refusal import refused

QUICK = [
    "workload.output_length=4",
    "workload.input_length=6",
    "num_requests=24",
    "concurrency=4",
    "out=results",
]
Refuse = Callable[..., str]
ADAPTERS = ("adapter-0000", "adapter-0001", "multi_task")


@pytest.fixture(scope="module")
def told() -> Iterator[tuple[Behaviour, str]]:
    behaviour = Behaviour(models=served(*ADAPTERS))
    with fake_openai(behaviour) as url:
        yield behaviour, url


@pytest.fixture
def server(told: tuple[Behaviour, str]) -> tuple[Behaviour, str]:
    """Return the server's behaviour as new, and its URL."""
    told[0].__dict__.update(Behaviour(models=served(*ADAPTERS)).__dict__)
    return told


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: tuple[Behaviour, str]) -> Any:
    """Return a function that runs the command against the server, in a folder of its own, without plots."""
    for name in ("run_png", "comparison_png"):
        monkeypatch.setattr(files, name, lambda *runs: b"")

    def run(*words: str, status: int | None = None) -> Path:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["calibrate.bench", f"endpoint={server[1]}", *QUICK, *words])
        if status is None:
            main()
        else:
            with pytest.raises(SystemExit) as exit_:
                main()
            assert exit_.value.code == status
        return tmp_path / "results"

    return run


@pytest.fixture
def refuse(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    told: tuple[Behaviour, str],
) -> Refuse:
    """Return a function that runs the command with words that it refuses, and returns what it says."""

    def run(*words: str) -> str:
        given = [
            *(() if any(word.startswith("endpoint=") for word in words) else (f"endpoint={told[1]}",)),
            *words,
        ]
        return refused(monkeypatch, capsys, tmp_path, given, main=main, prog="calibrate.bench")

    return run


def rows(folder: Path) -> list[dict[str, str]]:
    (file,) = folder.glob("benchmark_*.csv")
    with file.open(newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def content(folder: Path, pattern: str) -> dict[str, Any]:
    (file,) = folder.glob(pattern)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def write_dataset(folder: Path, *lines: dict[str, Any]) -> None:
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_multi_asks_for_the_adapters_that_the_server_lists(
    bench: Any, server: tuple[Behaviour, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bench("mode=multi")
    found = content(folder, "benchmark_multi_*.json")
    assert found["metrics"]["completed"] == found["metrics"]["total_requests"] == 24
    assert set(found["metrics"]["adapters"]) <= set(ADAPTERS)
    assert len(found["metrics"]["adapters"]) > 1
    assert found["config"]["workload"]["output_length"] == 4
    assert found["gpu_memory"]["multi"].keys() <= {"unavailable", "gpus"}
    table = rows(folder)
    assert tuple(table[0]) == COLUMNS
    assert {(row["mode"], row["status"], row["num_generated_tokens"]) for row in table} == {
        ("multi", "completed", "4")
    }
    for body in server[0].seen:
        assert (len(body["prompt"]), body["max_tokens"], body["ignore_eos"]) == (6, 4, True)
    assert len({str(body["prompt"]) for body in server[0].seen}) == 24
    assert server[0].most_in_flight <= 4
    shown = capsys.readouterr().out
    assert "BENCHMARK RESULTS (multi)" in shown
    assert "Successful Requests            24\n" in shown


def test_compare_sends_the_same_requests_to_one_adapter_and_to_many(
    bench: Any, server: tuple[Behaviour, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bench("mode=compare", "baseline_adapter=multi_task")
    names = sorted(path.name.rsplit("_", 3 if "plot" in path.name else 2)[0] for path in folder.iterdir())
    assert names == ["benchmark", "comparison", "comparison"]
    found = content(folder, "comparison_*.json")
    assert list(found["baseline"]["adapters"]) == ["multi_task"]
    assert len(found["multi"]["adapters"]) > 1
    gain = found["improvement_pct"]["request_throughput"]
    ratio = found["multi"]["request_throughput"] / found["baseline"]["request_throughput"]
    assert gain == pytest.approx(100 * (ratio - 1))
    table = rows(folder)
    lengths = [[row["request_id"] for row in table if row["mode"] == mode] for mode in ("baseline", "multi")]
    assert sorted(lengths[0]) == sorted(lengths[1])
    # The second run must not find the first one's prompts in a prefix cache.
    assert len({str(body["prompt"]) for body in server[0].seen}) == 48
    assert "COMPARISON RESULTS" in capsys.readouterr().out


def test_a_dataset_is_sent_once_with_its_adapters(
    bench: Any, server: tuple[Behaviour, str], tmp_path: Path
) -> None:
    lines = [{"prompt": f"p{n}", "adapter_name": ADAPTERS[n % 2], "answer": "x"} for n in range(6)]
    write_dataset(tmp_path, *lines, {"prompt": "p6", "max_tokens": 9})
    bench("dataset=data.jsonl", "num_requests=null", "concurrency=2", "adapters=[multi_task]")
    asked = {body["prompt"]: (body["model"], body["max_tokens"]) for body in server[0].seen}
    expected = {f"p{n}": (ADAPTERS[n % 2], 4) for n in range(6)}
    assert asked == expected | {"p6": ("multi_task", 9)}
    assert [body["prompt"] for body in server[0].seen] != sorted(asked)
    assert all("ignore_eos" not in body for body in server[0].seen)


def test_an_open_loop_with_any_workload(bench: Any) -> None:
    folder = bench("workload=bursty", "concurrency=null", "request_rate=40", "api=chat", "seed=3")
    times = [float(row["arrival_s"]) for row in rows(folder)]
    assert times == sorted(times)
    assert len(set(times)) == 24


def test_a_server_without_a_list_and_without_counts(
    bench: Any, server: tuple[Behaviour, str], capsys: pytest.CaptureFixture[str]
) -> None:
    server[0].models, server[0].usage = None, False
    folder = bench("adapters=[x,y]", "extra_body={top_k: 3}")
    assert {body["model"] for body in server[0].seen} == {"x", "y"}
    assert {body["top_k"] for body in server[0].seen} == {3}
    assert content(folder, "benchmark_multi_*.json")["metrics"]["total_output_tokens"] == 96
    assert "warning: multi: the server does not count tokens" in capsys.readouterr().err


def test_a_trace_keeps_its_adapters_and_the_base_model(
    bench: Any, server: tuple[Behaviour, str], tmp_path: Path
) -> None:
    trace = [
        {"timestamp": 0, "input_length": 600, "output_length": 2, "adapter": "multi_task", "hash_ids": [1]},
        {"timestamp": 10, "input_length": 700, "output_length": 3, "adapter": "multi_task", "hash_ids": [1]},
        {"timestamp": 20, "input_length": 5, "output_length": 3, "adapter": None},
    ]
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in trace))
    words = ["workload=trace", "workload.path=trace.jsonl", "concurrency=null", "num_requests=null"]
    bench(*words, "workload.input_length=null", "workload.output_length=null")
    seen = sorted(server[0].seen, key=lambda body: -len(body["prompt"]))
    assert [(body["model"], len(body["prompt"]), body["max_tokens"]) for body in seen] == [
        ("multi_task", 700, 3),
        ("multi_task", 600, 2),
        ("base", 5, 3),
    ]
    assert seen[0]["prompt"][:512] == seen[1]["prompt"][:512]
    assert seen[0]["prompt"][512:600] != seen[1]["prompt"][512:600]


def test_a_run_without_a_success_is_one_in_the_status_too(bench: Any) -> None:
    folder = bench("adapters=[http_500]", "check_models=false", status=1)
    assert content(folder, "benchmark_*.json")["metrics"]["failures"] == {"http_500": 24}
    again = bench("adapters=[http_500]", "check_models=false", "stop_after_failures=3", "out=again", status=1)
    found = content(again.parent / "again", "benchmark_*.json")["metrics"]
    assert found["end"] == "stopped after 3 failed requests in a row"


def test_an_out_folder_that_takes_no_files_is_refused_before_a_request(
    refuse: Refuse, told: tuple[Behaviour, str]
) -> None:
    told[0].__dict__.update(Behaviour(models=told[0].models).__dict__)
    assert "/proc/x: No such file or directory" in refuse("out=/proc/x")
    assert not told[0].seen


def test_a_users_file_lies_between_ours_and_the_command_line(
    bench: Any, server: tuple[Behaviour, str], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(
        "benchmark: {baseline_adapter: adapter-0001, mode: compare}\nseed: 5\nconcurrency: 3\n"
        "workload: {output_length: 2}\n"
    )
    folder = bench("config=mine.yaml", "mode=baseline")
    found = content(folder, "benchmark_baseline_*.json")
    assert list(found["metrics"]["adapters"]) == ["adapter-0001"]
    # QUICK has the concurrency and the output's length on the command line.
    kept = {key: found["config"][key] for key in ("seed", "concurrency", "baseline_adapter")}
    assert kept == {"seed": 5, "concurrency": 4, "baseline_adapter": "adapter-0001"}
    assert found["config"]["workload"]["output_length"] == 4


def test_a_config_folder_of_the_users(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "my_conf").mkdir()
    (tmp_path / "my_conf" / "mine.yaml").write_text("defaults: [bench, _self_]\nseed: 9\n")
    folder = bench("--config-dir", "my_conf", "--config-name", "mine")
    assert content(folder, "benchmark_multi_*.json")["config"]["seed"] == 9


def test_a_key_is_not_written_to_any_file(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench("api_key=very-secret")
    texts = [path.read_bytes() for path in (tmp_path / "results").iterdir()]
    assert not any(b"very-secret" in text for text in texts)
    assert "very-secret" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mode=all"], "mode='all': expected one of baseline, multi, compare"),
        (["mode=baseline"], "baseline_adapter: not given"),
        (
            ["mode=baseline", "baseline_adapter=nobody"],
            "the server does not list nobody; it lists adapter-0000",
        ),
        (["adapters=[a,b,c,d,e,f,g]"], "does not list a, b, c, d, e and 2 more"),
        (["request_rate=5"], "concurrency and request_rate: expected one of them"),
        (["api=soap"], "api='soap': expected one of completions, chat"),
        (["concurrency=0"], "concurrency=0: must be greater than 0"),
        (["prompts=poems"], "prompts='poems': expected one of token_ids, words"),
        (["prompts=token_ids", "api=chat"], "api=chat takes text alone"),
        (["dataset=none.jsonl"], "none.jsonl: No such file or directory"),
        (["config=none.yaml"], "config=none.yaml: no such file"),
        (["concurency=3"], "Could not override 'concurency'"),
        (["timeout_s=0"], "timeout_s=0.0: must be greater than 0"),
        (["workload.popularity.kind=cube"], "workload.popularity.kind"),
    ],
)
def test_what_a_user_gets_wrong(refuse: Refuse, words: list[str], message: str) -> None:
    assert message in refuse(*QUICK, *words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[]", "line 1: expected a JSON object"),
        ("\n{}", "line 2: expected one of prompt and messages"),
        ('{"prompt": 3}', "prompt='3': expected text"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens=0"),
        ('{"prompt": "a", "adapter_name": ""}', "adapter_name=''"),
        ('{"messages": [{}]}', "messages: expected a list"),
        ("", "no lines in it"),
    ],
)
def test_bad_datasets(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read_dataset(str(tmp_path / "data.jsonl"))


def test_messages_are_for_a_chat(refuse: Refuse, tmp_path: Path) -> None:
    write_dataset(tmp_path, {"messages": [{"role": "user", "content": "a"}]})
    assert "data.jsonl: has messages; expected api=chat" in refuse("dataset=data.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [("nonsense: 1", "nonsense"), ("- 1", "expected a mapping"), ("a: [", "not valid YAML")],
)
def test_bad_configuration_files(refuse: Refuse, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert message in refuse("config=mine.yaml")


@pytest.mark.parametrize("mode", ["multi", "compare"])
def test_ctrl_c_keeps_what_was_measured(
    bench: Any, server: tuple[Behaviour, str], capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    server[0].ttft_s = 0.02

    def interrupt() -> None:
        while len(server[0].seen) < 20:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    words = [f"mode={mode}", "baseline_adapter=multi_task", "num_requests=null", "duration_s=60"]
    folder = bench(*words, status=130)
    thread.join()
    first = "multi" if mode == "multi" else "baseline"
    found = content(folder, f"benchmark_{first}_*.json")["metrics"]
    assert found["end"] == "interrupted"
    assert found["completed"] >= 10
    assert found["unfinished"] <= 4
    shown = capsys.readouterr()
    assert shown.err.endswith("calibrate.bench: interrupted\n")
    assert f"Not complete ({first}): interrupted" in shown.out
    assert len(rows(folder)) == found["total_requests"]


@pytest.mark.parametrize("name", ["bench", "parity", "check_adapters"])
def test_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    prog = f"calibrate.{name}"
    monkeypatch.setattr(sys, "argv", [prog, "--help"])
    module = importlib.import_module(f"{prog}.__main__" if name == "bench" else prog)
    with pytest.raises(SystemExit) as exit_:
        module.main()
    assert exit_.value.code == 0
    assert f"Usage: python -m {prog} " in capsys.readouterr().out


class FakeNvml:
    """NVML of one GPU whose memory in use rises and falls."""

    NVMLError = RuntimeError

    def __init__(self, unit: int = 1) -> None:
        self.used = iter([3, 7, *[5] * 1000])
        self.unit = unit
        self.is_open = False

    def nvmlInit(self) -> None:  # noqa: N802
        self.is_open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:  # noqa: N802
        return b"GPU"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=10 * self.unit, used=next(self.used) * self.unit)


def test_gpu_memory_is_the_most_that_was_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with GpuMemory(period_s=0.001) as memory:
        time.sleep(0.1)
    assert memory.result == {"gpus": [{"name": "GPU", "total_bytes": 10, "max_used_bytes": 7}]}
    assert not nvml.is_open


def test_gpu_memory_of_each_run_is_shown(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(2**30))
    folder = bench("mode=compare", "baseline_adapter=multi_task", "num_requests=2")
    (gpu,) = content(folder, "comparison_*.json")["gpu_memory"]["baseline"]["gpus"]
    assert gpu["total_bytes"] == 10 * 2**30
    shown = capsys.readouterr().out
    assert "GPU Memory (baseline): GPU: 3.00 of 10.00 GiB" in shown
    assert "GPU Memory (multi): GPU: " in shown
    away = bench("gpu_memory=false", "out=away").parent / "away"
    assert "not on this machine" in content(away, "*.json")["gpu_memory"]["multi"]["unavailable"]


def test_without_aiohttp_it_says_what_to_install(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert "pip install 'lorasim[bench]'" in refuse()


def test_gpu_memory_without_nvml_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with GpuMemory() as memory:
        pass
    assert memory.result["unavailable"].startswith("NVML does not answer")
