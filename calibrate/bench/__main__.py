"""`python -m calibrate.bench`: load on a server, with one adapter, with many, or with both to compare."""

import asyncio
import signal
import sys
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from tqdm import tqdm

from calibrate.bench import names
from calibrate.bench.client import OpenAIClient
from calibrate.bench.files import write_comparison, write_run
from calibrate.bench.gpu_memory import GpuMemory, NoGpuMemory
from calibrate.bench.load import LoadRun, Plan
from calibrate.bench.metrics import improvements, measure
from calibrate.bench.open_files import allow_many_open_files
from calibrate.bench.plan import make_plan
from calibrate.bench.record import RequestRecord, Run
from calibrate.bench.settings import MODES, BenchConfig, bench_config, with_users_file
from calibrate.bench.tables import comparison_table, run_table
from sim.cli import hydra_entry
from sim.fields import plain_values
from sim.files import check_folder

LOCAL = ("localhost", "127.0.0.1", "::1")
ELSEWHERE = NoGpuMemory("the endpoint is not on this machine; gpu_memory=true asks all the same")
LATE_MS = 10.0
"""A client that is later than so at the 99th percentile is itself in the way."""


def main() -> None:
    """Run the command with the arguments in `sys.argv`."""
    hydra_entry(task, "bench", "calibrate.bench")


def task(cfg: DictConfig) -> None:
    """Run what `mode` says, write the files, print the table.

    What was measured is kept when it is interrupted (exit status 130), and when a run stops after too many
    failures or has no success (1).
    """
    if cfg.config is not None:
        cfg = with_users_file(cfg, str(cfg.config), _overrides())
    values = plain_values(cfg)
    config = bench_config(values)
    date = datetime.now().astimezone()
    runs, gpu_memory = asyncio.run(benchmark(config))
    about = {
        "date": date.isoformat(timespec="seconds"),
        "gpu_memory": gpu_memory,
        "config": values | {"api_key": None},
    }
    runs = [run.after(config.warmup_s) for run in runs]
    if runs:
        show(Path(config.out), date.strftime("%Y%m%d_%H%M%S"), runs, about)
    if len(runs) < len(MODES[config.mode]) or any(run.end == "interrupted" for run in runs):
        raise KeyboardInterrupt
    if any(run.end != "done" or not measure(run)["completed"] for run in runs):
        sys.exit(1)


async def benchmark(config: BenchConfig) -> tuple[list[Run], dict[str, Any]]:
    """Return the mode's runs that were begun, and the GPUs' memory in each. Raises UserError, OSError."""
    stop = asyncio.Event()
    sending = config.sending()
    allow_many_open_files()
    async with OpenAIClient(config.connection) as client:
        served = await client.models() if config.check_models or config.adapters is None else None
        workload, known = names.resolve(sending.workload, config.adapters, config.names, served, config.seed)
        sending = replace(sending, workload=workload)
        for mode in MODES[config.mode]:
            asked = names.asked_for(mode, workload, config.seed, sending.lines, known)
            if config.check_models:
                names.refuse_unknown(asked, served)
        check_folder(Path(config.out))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        runs, gpu_memory = [], {}
        for mode in MODES[config.mode]:
            if not stop.is_set():
                with GpuMemory() if _asks_gpus(config) else nullcontext(ELSEWHERE) as memory:
                    plan = make_plan(mode, sending, known)
                    runs.append(await play(client, plan, stop, config.stop_after_failures))
                gpu_memory[mode] = memory.result
    return runs, gpu_memory


async def play(client: OpenAIClient, plan: Plan, stop: asyncio.Event, stop_after: int | None) -> Run:
    """Play one plan with a progress bar."""
    failed = 0
    length = "" if plan.duration_s is None else f" for {plan.duration_s:g} s"
    with tqdm(total=plan.num_requests, unit="req", desc=f"{plan.mode}{length}", leave=False) as progress:

        def count(record: RequestRecord) -> None:
            nonlocal failed
            failed += record.is_failed
            progress.set_postfix({"failed": failed}, refresh=False)
            progress.update()

        return await LoadRun(client, plan, stop, stop_after, count).run()


def show(out: Path, name: str, runs: list[Run], about: dict[str, Any]) -> None:
    """Write the files of `runs`, then print the table, warnings and paths."""
    measured = [measure(run) for run in runs]
    if len(runs) == 2:
        paths = write_comparison(out, name, runs[0], runs[1], about)
        print(comparison_table(measured[0], measured[1], improvements(measured[0], measured[1])))
    else:
        paths = write_run(out, name, runs[0], about)
        print(run_table(runs[0].mode, measured[0]))
    for mode, memory in about["gpu_memory"].items():
        for gpu in memory.get("gpus", []):
            used, total = gpu["max_used_bytes"] / 2**30, gpu["total_bytes"] / 2**30
            print(f"\nGPU Memory ({mode}): {gpu['name']}: {used:.2f} of {total:.2f} GiB")
    for run, metrics in zip(runs, measured, strict=True):
        for warning in warnings(metrics):
            print(f"calibrate.bench: warning: {run.mode}: {warning}", file=sys.stderr)
    print("", *paths, sep="\n")


def warnings(measured: dict[str, Any]) -> list[str]:
    """Return what a reader of the metrics must know."""
    found = []
    if measured["tokens_counted_by"].get("chunks"):
        found.append("the server does not count tokens: each chunk of its streams counts as one")
    late_ms = max(measured[f"p99_{lag}_lag_ms"] or 0.0 for lag in ("send", "client"))
    if late_ms > LATE_MS:
        found.append(f"the client was up to {late_ms:.1f} ms late itself (p99), which the latencies include")
    return found


def _overrides() -> dict[str, Any]:
    """Return the command line's settings, those of configuration groups left out."""
    hydra_config = HydraConfig.get()
    parsed = OverridesParser.create().parse_overrides(list(hydra_config.overrides.task))
    return {
        override.key_or_group: override.value()
        for override in parsed
        if override.key_or_group not in hydra_config.runtime.choices
    }


def _asks_gpus(config: BenchConfig) -> bool:
    if config.gpu_memory is None:
        return urlsplit(config.endpoint).hostname in LOCAL
    return config.gpu_memory


if __name__ == "__main__":
    main()
