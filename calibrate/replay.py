"""Replay simulated workloads on the real engine: `python -m calibrate.replay`, one engine for all its
workloads.
"""

import multiprocessing
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from calibrate.adapters import AdapterStore
from calibrate.engine import VllmEngine, require_vllm
from calibrate.phases import Bench, reference, warm_up
from calibrate.records import write_records
from sim.cli import hydra_entry
from sim.errors import UserError
from sim.fields import plain_values
from sim.workload import RequestSpec, WorkloadConfig, requests

PREPARED = 2000
"""Requests whose prompts are drawn and hashed before the clock starts; later ones as they come."""


class Replay:
    """Plays one workload: arrivals by the wall clock (open) or on completion (closed), until `duration_s`."""

    def __init__(self, engine: VllmEngine, config: WorkloadConfig, seed: int) -> None:
        self.engine, self.config = engine, config
        specs = requests(config, seed)
        prepared = [(spec, self._prepare(spec)) for spec in islice(specs, PREPARED)]
        self._upcoming = self._chain(prepared, specs)
        self._next = next(self._upcoming, None)
        self.rows: dict[str, dict[str, Any]] = {}
        self._start, self._duration_s = 0.0, config.duration_s or 0.0

    def _prepare(self, spec: RequestSpec) -> Any:
        return self.engine.prepare(spec.request_id, spec.input_length, spec.output_length, spec.adapter)

    def _chain(
        self, prepared: list[tuple[RequestSpec, Any]], rest: Iterator[RequestSpec]
    ) -> Iterator[tuple[RequestSpec, Any]]:
        yield from prepared
        for spec in rest:
            yield spec, self._prepare(spec)

    def run(self) -> pd.DataFrame:
        """Play the workload; return a row a request with times in seconds since its start, as
        `requests.parquet`.
        """
        self._start = time.perf_counter()
        if self.config.mode == "closed":
            for _ in range(self.config.concurrency or 0):
                self._submit(0.0)
        while (now := self._now()) < self._duration_s:
            self._submit_arrived(now)
            if self.engine.has_requests():
                self._take(self.engine.step())
            elif self._next is None:
                break
            else:
                time.sleep(max(0.0, min(self._next[0].arrival_ns / 1e9, self._duration_s) - self._now()))
        unfinished = [name for name, row in self.rows.items() if row["finish_s"] is None]
        self.engine.abort(unfinished)
        self.engine.drain()
        return pd.DataFrame(self.rows.values())

    def _now(self) -> float:
        return time.perf_counter() - self._start

    def _submit_arrived(self, now: float) -> None:
        while self.config.mode == "open" and self._next is not None and self._next[0].arrival_ns <= now * 1e9:
            self._submit(self._next[0].arrival_ns / 1e9)

    def _submit(self, arrival_s: float) -> None:
        if self._next is None:
            return
        spec, request = self._next
        self.engine.submit(request)
        self.rows[spec.request_id] = {
            "request_id": spec.request_id,
            "adapter": spec.adapter,
            "arrival_s": arrival_s,
            "first_token_s": None,
            "finish_s": None,
            "input_length": spec.input_length,
            "output_length": spec.output_length,
            "num_generated_tokens": 0,
        }
        self._next = next(self._upcoming, None)

    def _take(self, outputs: list[Any]) -> None:
        now = self._now()
        if now >= self._duration_s:  # These tokens came after the end.
            return
        for output in outputs:
            row = self.rows[output.request_id]
            row["num_generated_tokens"] += len(output.new_token_ids)
            if row["first_token_s"] is None:
                row["first_token_s"] = now
            if output.finished:
                row["finish_s"] = now
                if self.config.mode == "closed":
                    self._submit(now)


def workload_of(play: dict[str, Any]) -> WorkloadConfig:
    """Return the workload of a play; UserError for what is none, or has no end."""
    workload = WorkloadConfig.from_mapping(play["workload"])
    if workload.duration_s is None:
        raise UserError(f"workload.duration_s is null: the replay {play['name']} needs it")
    return workload


def replay_engine(
    engine: dict[str, Any], plays: list[dict[str, Any]], config: dict[str, Any], root: Path
) -> None:
    """Start one engine and play its workloads in it, each from empty caches; results in a folder a play."""
    from calibrate.machine import describe_engine, describe_machine
    from calibrate.probe import Probe

    settings = {**config["engine"], **engine}
    store = AdapterStore(
        Path(config["adapters_dir"]), config["model"], settings["max_lora_rank"], config["adapter_files"]
    )
    vllm = VllmEngine(config["model"], settings, store, config["seed"])
    probe = Probe(vllm)
    bench = Bench(vllm, probe, settings["max_loras"], settings["max_num_batched_tokens"], None)  # type: ignore[arg-type]
    warm_up(bench)
    probe.steps.clear()
    probe.swaps.clear()
    reference(bench)
    for play in plays:
        folder = root / play["name"]
        if (folder / "meta.json").exists():
            continue
        vllm.forget_adapters()
        vllm.release_pinned_memory()
        workload = workload_of(play)
        probe.label("replay", play["name"])
        rows = Replay(vllm, workload, play["seed"]).run()
        steps, swaps = probe.tables()
        meta = {"play": play, "settings": settings, "model": config["model"]}
        meta |= {**describe_machine(), **describe_engine(vllm)}
        write_records(folder, {"requests": rows, "steps": steps, "swaps": swaps}, meta)
        probe.steps[:] = [row for row in probe.steps if row["phase"] == "reference"]
        probe.swaps[:] = [row for row in probe.swaps if row["phase"] == "reference"]


def task(cfg: DictConfig) -> None:
    """Play every workload of the plan that is not there yet, with one engine process per engine
    configuration.
    """
    config = plain_values(cfg)
    require_vllm()
    root = Path(config["out"]) / config["host"] / Path(config["model"]["name"]).name
    for play in (play for group in config["plays"] for play in group["workloads"]):
        workload_of(play)
    for group in config["plays"]:
        missing = [play for play in group["workloads"] if not (root / play["name"] / "meta.json").exists()]
        print(
            f"{group['engine']}: {len(missing)} of {len(group['workloads'])} replays to do; results in {root}"
        )
        if missing:
            arguments = (group["engine"], missing, config, root)
            process = multiprocessing.get_context("spawn").Process(target=replay_engine, args=arguments)
            process.start()
            process.join()
            if process.exitcode:
                raise UserError(
                    f"replay with {group['engine']} failed: see vLLM's messages above; rerun to go on"
                )


def main() -> None:
    """Entry point."""
    hydra_entry(task, "replay", "calibrate.replay")


if __name__ == "__main__":
    main()
