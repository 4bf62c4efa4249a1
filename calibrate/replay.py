"""Replay simulated workloads on the real engine, with policies: `python -m calibrate.replay`.

The plan (`conf/replay.yaml`) has rounds: engines that share the GPU, each in a process of its own, started
together since a start is bound by one core, and used one at a time.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from calibrate.bridge.settings import VLLMS_SWAPS, swaps_mode
from calibrate.engine import require_vllm
from calibrate.engine_process import EngineProcess
from calibrate.play import workload_of
from sim.cli import hydra_entry
from sim.errors import UserError
from sim.fields import plain_values


def plan_of(cfg: DictConfig) -> dict[str, Any]:
    """Return the plan as plain values; policies may go on referring to their engine's settings."""
    names = [str(name) for name in cfg if name != "policies"]
    return plain_values(OmegaConf.masked_copy(cfg, names)) | {
        "policies": OmegaConf.to_container(cfg.policies)
    }


def jobs_of(config: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Return the jobs of each round that have no results yet, in order.

    A play's workload and policy are named in the plan's tables of them. Raises UserError for names that are
    not there, and for workloads that do not end.
    """
    rounds = []
    for number, planned in enumerate(config["rounds"]):
        own = config | {"host": planned.get("host", config["host"])}
        jobs = [_job(job, f"rounds[{number}]", planned["engines"], own) for job in planned["jobs"]]
        rounds.append([job for job in jobs if not (Path(job["folder"]) / "meta.json").exists()])
    return rounds


def _job(job: dict[str, Any], where: str, engines: list[str], config: dict[str, Any]) -> dict[str, Any]:
    engine = job["engine"]
    if engine not in engines:
        raise UserError(f"{where}: {job['name']}: engine={engine} is none of {', '.join(engines)}")
    model = Path(_named(config, "engines", engine, where)["model"]["name"]).name
    named = {"name": job["name"], "engine": engine}
    if "phases" in job:
        policy = _named(config, "policies", job.get("policy", "vllm"), where)
        folder = Path(config["measurements"]) / config["host"] / model
        if (swaps := swaps_mode(policy)) != VLLMS_SWAPS:
            folder = folder / swaps  # Not among what a profile of vLLM's own way is fitted to.
        folder = folder / job["name"]
        measure = {"phases": _named(config, "phases", job["phases"], where), "policy": policy}
        measure["torch_threads"] = job.get("torch_threads")
        return named | {"folder": str(folder), "measure": measure}
    if "sleeps" in job:
        folder = Path(config["measurements"]) / config["host"] / model / "sleep_mode" / job["name"]
        return named | {"folder": str(folder), "sleeps": job["sleeps"]}
    play = {
        **job,
        "workload": _named(config, "workloads", job["workload"], where) | job.get("changes", {}),
        "policy": _named(config, "policies", job.get("policy", "vllm"), where),
        "policy_name": job.get("policy", "vllm"),
    }
    workload_of(play)
    folder = Path(config["out"]) / config["host"] / model / job["name"]
    return named | {"folder": str(folder), "play": play}


def _named(config: dict[str, Any], table: str, name: str, where: str) -> Any:
    if name not in config[table]:
        raise UserError(f"{where}: {name}: none of {table}: {', '.join(config[table])}")
    return config[table][name]


def do_round(jobs: list[dict[str, Any]], config: dict[str, Any]) -> list[str]:
    """Start the engines that `jobs` need, all at once, and do the jobs; returns what failed."""
    from calibrate.engine_worker import EngineWorker

    failed: list[str] = []
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(
                EngineProcess(name, EngineWorker, name, config["engines"][name], config)
            )
            for name in dict.fromkeys(job["engine"] for job in jobs)
        }
        for engine in engines.values():
            with _noted(engine.name, failed):
                engine.wait_until_ready()  # One that does not start fails its own jobs, and no others.
        for number, job in enumerate(tqdm(jobs, desc="replays", file=sys.stderr)):
            with _noted(job["name"], failed):
                print(f"{job['name']}: {engines[job['engine']].do(job)}", flush=True)
            if job["engine"] not in {later["engine"] for later in jobs[number + 1 :]}:
                engines[job["engine"]].stop()  # Its memory is for whoever needs it.
    return failed


@contextmanager
def _noted(name: str, failed: list[str]) -> Iterator[None]:
    """Say at once what failed, and go on."""
    try:
        yield
    except UserError as error:
        print(f"{name}: {error}", flush=True)
        failed.append(f"{name}: {error}")


def task(cfg: DictConfig) -> None:
    """Do every job of the plan that has no results yet."""
    config = plan_of(cfg)
    rounds = jobs_of(config)
    chosen = config["only_rounds"]
    if unknown := [number for number in chosen or () if number not in range(len(rounds))]:
        raise UserError(f"only_rounds: {unknown[0]}: there are rounds 0 to {len(rounds) - 1}")
    require_vllm()
    failed: list[str] = []
    for number, jobs in enumerate(rounds):
        if jobs and (chosen is None or number in chosen):
            planned = config["rounds"][number]
            print(f"round {number}: {len(jobs)} of {len(planned['jobs'])} replays to do", flush=True)
            failed += do_round(jobs, config)
    if failed:
        raise UserError(f"{len(failed)} replays failed; rerun to try them again: {'; '.join(failed)}")


def main() -> None:
    """Entry point."""
    hydra_entry(task, "replay", "calibrate.replay")


if __name__ == "__main__":
    main()
