"""One engine under measurement: replays and measurements, one after another, each from empty caches."""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calibrate.adapters import AdapterStore
from calibrate.bridge.settings import VLLMS_SWAPS, swaps_mode
from calibrate.cpu import on_core, torch_threads
from calibrate.engine import VllmEngine
from calibrate.measure import run_phases
from calibrate.phases import Bench, reference, swap_reference, warm_up
from calibrate.play import Replay, workload_of
from calibrate.records import write_records
from calibrate.sleep_mode import time_sleeps
from sim.workload import adapter_name


class EngineWorker:
    """Starts an engine and does the jobs of a plan (`conf/replay.yaml`) with it.

    `engine` has `model`, `settings` (vLLM's engine arguments) and `bridged`; `config` is the plan.
    """

    def __init__(self, name: str, engine: dict[str, Any], config: dict[str, Any]) -> None:
        began = time.time()
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self.name, self.engine, self.config = name, engine, config
        self.settings = {**config["engine"], **engine["settings"]}
        model = engine["model"]
        folder = Path(config["adapters_dir"]) / Path(model["name"]).name
        store = AdapterStore(folder, model, self.settings["max_lora_rank"], config["adapter_files"])
        self.vllm = VllmEngine(model, self.settings, store, config["seed"], bridged=engine["bridged"])
        self._start_s = round(time.time() - began, 1)
        self._references: dict[tuple[str, int | None], tuple[pd.DataFrame, pd.DataFrame]] = {}
        self._bench: Bench | None = None
        self._kinds = {"play": self._play, "measure": self._measure, "sleeps": self._sleep}

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do a job of `calibrate.replay.jobs_of`: a `play`, a `measure` or `sleeps`, into its `folder`."""
        do = next(do for kind, do in self._kinds.items() if kind in job)
        try:
            return do(job, Path(job["folder"]))
        finally:  # A failed job leaves the engine to the next one as it found it.
            self.vllm.abort(list(self.vllm.scheduler.requests))
            self.vllm.drain()
            self._clear()

    def bench(self) -> Bench:
        """Return the warmed-up engine with its probe; on the first call, when no other engine is working."""
        from calibrate.probe import Probe

        if self._bench is None:
            probe, settings = Probe(self.vllm), self.settings
            budget = settings["max_num_batched_tokens"]
            rng = np.random.default_rng([self.config["seed"], settings["max_loras"]])
            self._bench = Bench(self.vllm, probe, settings["max_loras"], budget, rng)
            warm_up(self._bench)
            self._clear()
        return self._bench

    def _play(self, job: dict[str, Any], folder: Path) -> dict[str, Any]:
        play, bench = job["play"], self.bench()
        with torch_threads(play.get("torch_threads")):
            reference_steps, reference_swaps = self._reference(play)
            replay, rows = self._replayed(play)
            steps, swaps = bench.probe.tables()
            tables = {
                "requests": rows,
                "steps": pd.concat([reference_steps, steps], ignore_index=True),
                "swaps": pd.concat([reference_swaps, swaps], ignore_index=True),
            }
            if play.get("outputs"):
                tables["outputs"] = replay.outputs()
            write_records(folder, tables, {"play": play, **self._meta(play.get("settings"))})
        return {"requests": len(rows), "tokens": int(rows.num_generated_tokens.sum())}

    def _replayed(self, play: dict[str, Any]) -> tuple[Replay, pd.DataFrame]:
        """Play the workload under observation; return its requests too."""
        probe = self.bench().probe
        probe.label("setup")
        self._use(play["policy"], play.get("settings"))
        workload = workload_of(play)
        probe.label("replay", play["name"])
        replay = Replay(self.vllm, workload, play["seed"])
        with on_core(play.get("core")):
            return replay, replay.run()

    def _measure(self, job: dict[str, Any], folder: Path) -> dict[str, Any]:
        measure, bench = job["measure"], self.bench()
        self._use(measure.get("policy"))
        began = time.time()
        with torch_threads(measure.get("torch_threads")):
            run_phases(bench, measure["phases"])
            steps, swaps = bench.probe.tables()
            meta = {"name": folder.name, "seed": self.config["seed"], "engine_start_s": self._start_s}
            meta["measuring_s"] = round(time.time() - began, 1)
            write_records(folder, {"steps": steps, "swaps": swaps}, {**meta, **self._meta()})
        return {"steps": len(steps), "swaps": len(swaps)}

    def _sleep(self, job: dict[str, Any], folder: Path) -> dict[str, Any]:
        sleeps = time_sleeps(self.vllm, job["sleeps"])
        meta = {"name": folder.name, "engine_start_s": self._start_s, **self._meta()}
        write_records(folder, {"sleeps": sleeps}, meta)
        medians = sleeps.drop(columns="repeat").median()
        return {str(name): round(median, 3) for name, median in medians.items()}

    def _reference(self, play: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the host reference run with the play's way of bringing adapters in, and its threads; made on
        the first call.
        """
        swaps = swaps_mode(play["policy"])
        which = swaps, play.get("torch_threads")
        if which not in self._references:
            bench = self.bench()
            self._use(None if swaps == VLLMS_SWAPS else {"swaps": swaps})
            reference(bench)
            swap_reference(bench)
            steps, swapped = bench.probe.tables()
            self._references[which] = (steps, swapped)
            self._clear()
        return self._references[which]

    def _use(self, policy: dict[str, Any] | None, own: dict[str, Any] | None = None) -> None:
        """Empty the engine and give it `policy` and a play's `own` settings, of those it can change."""
        settings = self.settings | (own or {})
        self.vllm.forget_adapters()
        self.vllm.release_pinned_memory()
        self.vllm.forget_prompts()
        self.vllm.set_max_cpu_loras(settings["max_cpu_loras"])
        self.vllm.set_max_num_seqs(settings["max_num_seqs"])
        bridged, (host_cache, slots) = self.engine["bridged"], initial_adapters(settings)
        if policy is not None and not bridged:
            raise ValueError(f"engine {self.name} is plain vLLM, and cannot serve with {json.dumps(policy)}")
        if host_cache or slots:
            if bridged:  # They come in vLLM's own way.
                self.vllm.set_policy(None)
            self.vllm.preload(host_cache, slots)
        if bridged:
            self.vllm.set_policy(policy)

    def _clear(self) -> None:
        if self._bench is not None:
            self._bench.probe.steps, self._bench.probe.swaps = [], []

    def _meta(self, own: dict[str, Any] | None = None) -> dict[str, Any]:
        from calibrate.machine import describe_engine, describe_machine

        settings = self.settings | (own or {})
        described = {"engine": self.name, "engine_started": self._started, "bridged": self.engine["bridged"]}
        return {
            **described,
            "settings": settings,
            "model": self.engine["model"],
            **describe_machine(),
            **describe_engine(self.vllm),
        }


def initial_adapters(settings: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the adapters that are in the host cache and in slots when a play begins, oldest first: so many
    of the workload's, as `sim.config.EngineConfig` takes them.
    """
    counts = [settings.get(key, 0) for key in ("initial_host_cache", "initial_slots")]
    host_cache, slots = ([adapter_name(index) for index in range(count)] for count in counts)
    return host_cache, slots
