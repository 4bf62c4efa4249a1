"""`make bench`."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import num_calls, where_time_goes
from benchmarks.workload import CAPACITY, REFERENCE, overrides, profiled, simulate, time_outs_per_s

Figures = dict[str, Any]
FEWER = 2_000
"""Requests, where one figure is compared with another."""


def test_simpy(figures: Figures) -> None:
    figures["simpy_time_outs_per_s"] = round(max(time_outs_per_s() for _ in range(3)))


def test_loop(benchmark: Any, figures: Figures) -> None:
    timings = []
    benchmark.pedantic(lambda: timings.append(simulate()), rounds=3, iterations=1)
    figures["loop"] = min(timings, key=lambda timing: timing.loop_s).rates()


def test_step_by_step(figures: Figures) -> None:
    figures["step_by_step"] = simulate(engine__fast_forward="false").rates()


def test_other_policies(figures: Figures) -> None:
    """What is not compiled: steps that are alike at once, in Python."""
    figures["in_python"] = simulate(compiled=False).rates()


@pytest.mark.parametrize("num_adapters", [10, 100, 1000, 10_000])
def test_adapters(figures: Figures, num_adapters: int) -> None:
    cached = max(32, min(num_adapters, 1000))
    changes: Figures = {"workload__num_adapters": num_adapters, "engine__max_cpu_loras": cached}
    timing = simulate(workload__num_requests=FEWER, **changes)
    figures.setdefault("adapters", {})[f"{num_adapters:,}"] = timing.rates()


@pytest.mark.parametrize("max_num_seqs", [8, 32, 128, 512])
def test_batch(figures: Figures, max_num_seqs: int) -> None:
    """Everything at once, with adapters enough in slots: the batch is as large as it may be."""
    timing = simulate(
        workload__num_requests=FEWER,
        workload__request_rate=1000,
        workload__num_adapters=32,
        engine__max_num_seqs=max_num_seqs,
    )
    figures.setdefault("max_num_seqs", {})[str(max_num_seqs)] = timing.rates()


@pytest.mark.parametrize("load", [0.25, 0.5, 1, 2, 3])
def test_load(figures: Figures, load: float) -> None:
    timing = simulate(workload__num_requests=FEWER, workload__request_rate=load * CAPACITY)
    figures.setdefault("load", {})[f"{load:g} x saturation"] = timing.rates()


def test_command(benchmark: Any, figures: Figures, tmp_path: Path) -> None:
    runs: list[Figures] = []
    benchmark.pedantic(lambda: runs.append(run_command(tmp_path)), rounds=5, iterations=1)
    figures["command"] = min(runs, key=lambda run: run["wall_s"])


def test_profile(figures: Figures) -> None:
    profile = profiled(simulate)
    figures["profile"] = where_time_goes(profile)
    figures["calls_per_request"] = round(num_calls(profile) / int(REFERENCE["workload.num_requests"]))


def test_million(request: pytest.FixtureRequest, figures: Figures, tmp_path: Path) -> None:
    if not request.config.getoption("--million"):
        pytest.skip("only with --million")
    figures["million"] = run_command(tmp_path, workload__num_requests=1_000_000)


def run_command(out: Path, **changes: Any) -> Figures:
    """Run `lorasim`, from the start of its process to its end, both result files included."""
    command = [sys.executable, "-m", "sim", *overrides(**changes), f"hydra.run.dir={out}"]
    # As it is installed: with its bytecode beside it from the second run on.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begin_s = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - begin_s
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert (out / "summary.json").exists()
    assert (out / "requests.parquet").exists()
    return {"wall_s": round(wall_s, 2), "peak_gib": round(usage.ru_maxrss / 2**20, 3)}
