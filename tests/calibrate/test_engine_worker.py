"""Jobs of a plan, done by engine doubles: in which order, with which policy, and what is left behind."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from doubles import EngineDouble, ProbeDouble
from hydra import compose, initialize_config_module

from calibrate import engine_worker, machine, probe
from calibrate.engine_process import EngineProcess
from calibrate.engine_worker import EngineWorker
from calibrate.replay import jobs_of, plan_of
from sim.errors import UserError

WORKLOAD = {
    "mode": "closed",
    "concurrency": 2,
    "duration_s": 0.05,
    "popularity": {"kind": "uniform"},
    "num_adapters": 10,
    "input_length": 20,
    "output_length": 5,
}
CORE = min(os.sched_getaffinity(0))
SWAPS = {
    "decode": [],
    "decode_steps": 1,
    "prefill_tokens": [64],
    "mixed_decoding": [0],
    "mixed_rounds": 0,
    "mixed_repeats": 0,
    "long_prompts": [],
    "backlog_cells": 0,
    "loads": 2,
    "host_cache_entries": [],
    "waiting": 0,
}


class Probe(ProbeDouble):
    """Its tables have a row for each step of the double."""

    def __init__(self, engine: Any) -> None:
        super().__init__()
        engine.probe = self
        self.swaps: list[Any] = []

    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        steps = pd.DataFrame(self.steps, columns=["phase", "tokens", "adapters"])
        return steps, pd.DataFrame(self.swaps, columns=["phase", "kind"])


class Engine(EngineDouble):
    """Notes with which policies it is to serve."""

    def __init__(self, model: Any, settings: Any, store: Any, seed: int, bridged: bool) -> None:
        super().__init__(settings["max_loras"], ProbeDouble())
        self.policies: list[Any] = []
        self.max_cpu_loras: list[int] = []
        self.max_num_seqs: list[int] = []
        self.preloaded: list[Any] = []

    def set_policy(self, policy: Any) -> None:
        assert not self.registered, "each job begins with empty caches"
        self.policies.append(policy)

    def set_max_cpu_loras(self, count: int) -> None:
        self.max_cpu_loras.append(count)

    def set_max_num_seqs(self, count: int) -> None:
        self.max_num_seqs.append(count)

    def preload(self, host_cache: list[str], slots: list[str]) -> None:
        assert not self.policies or self.policies[-1] is None, "vLLM's own way"
        self.preloaded.append((host_cache, slots))

    def forget_prompts(self) -> None:
        assert not self.requests


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(engine_worker, "VllmEngine", Engine)
    monkeypatch.setattr(engine_worker, "AdapterStore", lambda *arguments: None)
    monkeypatch.setattr(probe, "Probe", Probe)
    monkeypatch.setattr(machine, "describe_machine", lambda: {"gpu": "none"})
    monkeypatch.setattr(machine, "describe_engine", lambda engine: {"num_gpu_blocks": 100})
    model = {"name": "org/model"}
    return {
        "host": "host",
        "out": str(tmp_path / "replays"),
        "measurements": str(tmp_path / "measurements"),
        "adapters_dir": str(tmp_path / "adapters"),
        "adapter_files": 1,
        "seed": 0,
        "engine": {
            "max_lora_rank": 16,
            "max_cpu_loras": 32,
            "max_num_seqs": 64,
            "max_num_batched_tokens": 8192,
        },
        "engines": {
            "plain": {"model": model, "bridged": False, "settings": {"max_loras": 4}},
            "bridged": {"model": model, "bridged": True, "settings": {"max_loras": 8}},
        },
        "workloads": {"short": WORKLOAD},
        "policies": {"vllm": None, "fast": {"swaps": "one_piece"}},
        "phases": {"swaps": SWAPS},
        "rounds": [{"engines": ["plain", "bridged"], "jobs": []}],
    }


def do(plan: dict[str, Any], engine: str, *jobs: dict[str, Any]) -> Any:
    plan["rounds"][0]["jobs"] = [{"engine": engine} | job for job in jobs]
    worker = EngineWorker(engine, plan["engines"][engine], plan)
    for job in jobs_of(plan)[0]:
        worker(job)
    return worker


def test_a_play_leaves_its_tables_and_with_them_the_hosts_reference(plan: Any, tmp_path: Path) -> None:
    changes = {"num_requests": 6, "duration_s": 60.0}
    own = {"max_cpu_loras": 8, "max_num_seqs": 2, "initial_host_cache": 3, "initial_slots": 2}
    worker = do(
        plan,
        "plain",
        {"name": "one", "workload": "short", "seed": 3, "changes": changes, "outputs": True},
        {
            "name": "two",
            "workload": "short",
            "seed": 3,
            "settings": own,
            "core": CORE,
        },
    )
    one, two = tmp_path / "replays/host/model/one", tmp_path / "replays/host/model/two"
    requests = pd.read_parquet(one / "requests.parquet")
    assert len(requests) == 6 and requests.finish_s.notna().all()
    outputs = pd.read_parquet(one / "outputs.parquet")
    assert outputs.request_id.tolist() == requests.request_id.tolist()
    assert [len(tokens) for tokens in outputs.token_ids] == [5] * 6
    for folder in (one, two):
        phases = {"reference", "swap_reference", "replay"}
        assert set(pd.read_parquet(folder / "steps.parquet").phase) == phases
    meta = json.loads((two / "meta.json").read_text())
    assert meta["settings"] == plan["engine"] | {"max_loras": 4} | own
    assert (worker.vllm.max_cpu_loras, worker.vllm.max_num_seqs) == ([32, 32, 8], [64, 64, 2])
    three = ["adapter-0000", "adapter-0001", "adapter-0002"]
    assert worker.vllm.preloaded == [(three, three[:2])]
    assert (meta["engine"], meta["bridged"], meta["num_gpu_blocks"]) == ("plain", False, 100)
    assert meta["play"]["workload"] == WORKLOAD and meta["play"]["policy"] is None


def test_each_way_of_bringing_adapters_in_has_a_reference_of_its_own(plan: Any, tmp_path: Path) -> None:
    play = {"workload": "short", "seed": 3}
    worker = do(
        plan,
        "bridged",
        {"name": "one", **play, "policy": "fast"},
        {"name": "two", **play},
        {"name": "three", **play, "policy": "fast"},
        {"name": "swaps", "phases": "swaps", "policy": "fast"},
    )
    fast = {"swaps": "one_piece"}
    assert worker.vllm.policies == [fast, fast, None, None, fast, fast]
    assert worker.vllm.max_cpu_loras == [32] * 6
    meta = json.loads((tmp_path / "measurements/host/model/one_piece/swaps/meta.json").read_text())
    assert meta["name"] == "swaps" and meta["settings"]["max_loras"] == 8
    assert "load" in set(
        pd.read_parquet(tmp_path / "measurements/host/model/one_piece/swaps/steps.parquet").phase
    )


def test_threads_are_torchs_during_a_play_and_have_a_reference_of_their_own(
    plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = SimpleNamespace(threads=16)
    torch.get_num_threads = lambda: torch.threads
    torch.set_num_threads = lambda count: setattr(torch, "threads", count)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(machine, "describe_machine", lambda: {"torch_threads": torch.threads})
    play = {"workload": "short", "seed": 3}
    worker = do(
        plan,
        "plain",
        {"name": "one", **play},
        {"name": "two", **play, "torch_threads": 1},
        {"name": "three", **play, "torch_threads": 1},
        {"name": "swaps", "phases": "swaps", "torch_threads": 2},
    )
    assert torch.threads == 16
    assert worker.vllm.policies == []
    assert len(worker.vllm.max_cpu_loras) == 3 + 2 + 1, "jobs, references, measurements"
    names = {"replays/host/model": ("one", "two", "three"), "measurements/host/model": ("swaps",)}
    folders = [tmp_path / root / name for root, found in names.items() for name in found]
    metas = [json.loads((folder / "meta.json").read_text()) for folder in folders]
    assert [meta["torch_threads"] for meta in metas] == [16, 1, 1, 2]


def test_adapters_that_are_there_first_come_in_vllms_own_way(plan: Any) -> None:
    own = {"initial_host_cache": 3, "initial_slots": 2}
    play = {"workload": "short", "seed": 3, "policy": "fast"}
    worker = do(plan, "bridged", {"name": "one", **play}, {"name": "two", **play, "settings": own})
    fast = {"swaps": "one_piece"}
    assert worker.vllm.policies == [fast, fast, None, fast]
    assert len(worker.vllm.preloaded) == 1


def test_sleep_and_wake_are_timed(plan: Any, tmp_path: Path) -> None:
    class Llm:
        asleep = False

        def sleep(self, level: int) -> None:
            assert level == 1 and not self.asleep
            self.asleep = True

        def wake_up(self) -> None:
            assert self.asleep
            self.asleep = False

    plan["rounds"][0]["jobs"] = [{"name": "sleeps", "engine": "plain", "sleeps": 3}]
    worker = EngineWorker("plain", plan["engines"]["plain"], plan)
    worker.vllm.llm = Llm()  # type: ignore[assignment]
    worker(jobs_of(plan)[0][0])
    folder = tmp_path / "measurements/host/model/sleep_mode/sleeps"
    sleeps = pd.read_parquet(folder / "sleeps.parquet")
    assert sleeps.columns.tolist() == ["repeat", "sleep_s", "wake_s", "request_s", "awake_s"]
    assert sleeps.repeat.tolist() == [0, 1, 2] and (sleeps >= 0).all(axis=None)
    assert json.loads((folder / "meta.json").read_text())["name"] == "sleeps"


def test_a_failed_job_leaves_nothing_running(plan: Any) -> None:
    plan["rounds"][0]["jobs"] = [{"name": "one", "engine": "plain", "workload": "short", "seed": 3}]
    worker = EngineWorker("plain", plan["engines"]["plain"], plan)
    step, worker.vllm.step = worker.vllm.step, None  # type: ignore[assignment,attr-defined]
    worker.vllm.drain = lambda: None  # type: ignore[method-assign]
    with pytest.raises(TypeError):
        worker(jobs_of(plan)[0][0])
    assert not worker.vllm.scheduler.requests
    worker.vllm.step = step  # type: ignore[method-assign]
    del worker.vllm.drain
    assert worker(jobs_of(plan)[0][0])["requests"] > 0


def test_what_is_there_is_not_done_again(plan: Any) -> None:
    job = {"name": "one", "workload": "short", "seed": 3}
    do(plan, "plain", job)
    assert jobs_of(plan) == [[]]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"engine": "other", "workload": "short"}, r"rounds\[0\]: mine: engine=other is none of plain"),
        ({"engine": "plain", "workload": "long"}, r"rounds\[0\]: long: none of workloads: short"),
        ({"engine": "plain", "workload": "short", "policy": "best"}, "best: none of policies: vllm, fast"),
        ({"engine": "plain", "phases": "all"}, "all: none of phases: swaps"),
    ],
)
def test_names_that_the_plan_does_not_have(plan: Any, job: dict[str, Any], message: str) -> None:
    plan["rounds"][0]["jobs"] = [{"name": "mine", "seed": 1} | job]
    with pytest.raises(UserError, match=message):
        jobs_of(plan)


def test_plain_vllm_serves_with_no_policy_of_ours(plan: Any) -> None:
    with pytest.raises(ValueError, match="engine plain is plain vLLM"):
        do(plan, "plain", {"name": "one", "workload": "short", "seed": 3, "policy": "fast"})


def test_the_shipped_plan() -> None:
    with initialize_config_module("conf", version_base="1.3"):
        rounds = jobs_of(plan_of(compose("replay", ["out=nowhere", "measurements=nowhere"])))
    plays = [job["play"] for jobs in rounds for job in jobs if "play" in job]
    folders = [job["folder"] for jobs in rounds for job in jobs]
    assert len(set(folders)) == len(folders)
    long = [play for play in plays if not play.get("outputs")]
    assert all(play["workload"]["duration_s"] >= 30 for play in long)
    assert len([play for play in long if not play["name"].endswith("-again")]) >= 24
    assert len([play for play in long if play["name"].endswith("-again")]) >= 3
    assert not {play["name"].removesuffix("-again") for play in long} - {play["name"] for play in long}


def doubler(factor: int) -> Any:
    if factor == 0:
        raise ValueError("nothing comes of nothing")
    return lambda job: job * factor


def test_jobs_are_done_in_another_process() -> None:
    with EngineProcess("double", doubler, 2) as engine:
        engine.wait_until_ready()
        assert engine.do(21) == 42
        with pytest.raises(UserError, match="engine double failed: TypeError"):
            engine.do({})
        assert engine.do("a") == "aa", "one failed job is not the end"


def test_an_engine_that_does_not_start_is_named() -> None:
    with EngineProcess("none", doubler, 0) as engine:
        with pytest.raises(UserError, match="engine none did not start: ValueError: nothing comes of"):
            engine.wait_until_ready()
        with pytest.raises(UserError, match="engine none failed: exit status 0; see the messages above"):
            engine.do(21)
