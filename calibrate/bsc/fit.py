"""Fit the study's profiles, one a model, to its microbenchmarks: `python -m calibrate.bsc.fit`.

A run is a row: the sum of its steps' terms against its duration, or the sum over the gaps between tokens
against their mean. Both models ran on the same GPU, so what the hardware fixes (a product's time for each
multiplication, a LoRA kernel's for each thread block) is one coefficient for both, in a common unit; the rest
is each model's own. How long the blocks of the LoRA kernels take is no coefficient, because of the latency
that a kernel takes at least: of the points of a lattice, that one is kept with which the rest errs least.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from omegaconf import DictConfig, OmegaConf

from calibrate.bsc.equations import (
    COLUMNS,
    GRAPHS,
    Kernels,
    Observation,
    Pool,
    held_out,
    observations,
    units,
)
from calibrate.bsc.lattice import Point, descend
from calibrate.bsc.microbenchmarks import LOADING_OUTPUT, runs, steps
from calibrate.bsc.tables import read
from calibrate.dataset import read_json
from calibrate.fit import rounded
from calibrate.kv_capacity import COLUMNS as CAPACITY_COLUMNS
from calibrate.regression import Floats, design, intervals, relative_errors
from sim.cli import hydra_entry
from sim.config import EngineConfig, ModelConfig
from sim.errors import UserError
from sim.files import write_atomically
from sim.lora_grid import BlockTimes
from sim.memory import MemoryProfile, slot_bytes
from sim.terms import TERMS


def entry(term: str, values: Floats) -> dict[str, Any]:
    """Return a term of a profile from its coefficient and its interval."""
    value, low, high = (rounded(number) for number in values)
    return {"value": value, "ci95": [low, high], "unit": f"ms for {TERMS[term].unit}"}


def steps_section(
    name: str, model: ModelConfig, pool: Pool, coefficients: Floats, ci95: Floats
) -> dict[str, dict[str, Any]]:
    """Return `steps` of a model's profile: a sum of terms for each graph mode."""
    scale = units(model)
    totals: dict[str, dict[str, Floats]] = {graph: {} for graph in GRAPHS}
    for (number, owner), value, interval in zip(pool.keys, coefficients, ci95, strict=False):
        column = COLUMNS[number]
        if owner not in (None, name):
            continue
        per_count = np.array([value, *interval]) * (scale[column.unit] if column.unit else 1.0)
        for graph in column.graphs:
            totals[graph][column.term] = totals[graph].get(column.term, np.zeros(3)) + per_count
    sections = {
        graph: {
            "gpu_ms": {term: entry(term, values) for term, values in terms.items() if values[0] > 0},
            "launch_ms": {},
        }
        for graph, terms in totals.items()
    }
    return {"full": sections["piecewise"], **sections}


def activation_ms(
    found: Sequence[Observation],
    sections: Mapping[str, Mapping[str, Any]],
    models: Mapping[str, ModelConfig],
    times: BlockTimes,
) -> float:
    """Return the mean time of an activation, from requests that ran one by one, each with another adapter.

    With n of them from the instant t0, each taking s, the last one ends at t0 + n s and the mean first token
    is known at t0 + (n - 1) / 2 s + s less the time of the other tokens. What s has beside its steps is the
    activation.
    """
    durations = []
    for seen in found:
        run = seen.run
        terms = sections[run.model]["piecewise"]["gpu_ms"]
        model = models[run.model]
        programs = Kernels(seen.shapes, model).programs(times)
        shapes = seen.shapes.assign(num_lora_programs=programs)
        prompts = shapes[shapes.num_prefill_reqs > 0]
        prompt_ms = np.mean(design(prompts, list(terms)) @ [term["value"] for term in terms.values()])
        decode_ms = (LOADING_OUTPUT - 1) * run.median_itl_ms
        of_one = (run.duration_ms - run.mean_ttft_ms - decode_ms) / ((run.num_requests - 1) / 2)
        durations.append(of_one - decode_ms - float(prompt_ms))
    return max(float(np.mean(durations)), 0.0)


def capacity(config: Mapping[str, Any], name: str, model: ModelConfig) -> MemoryProfile:
    """Return what engines that were started had beside weights, slots and KV cache. Raises UserError."""
    path, gpu_bytes = Path(config["kv_capacity"]), int(config["gpu_memory_bytes"])
    table, engine = read(path, CAPACITY_COLUMNS, "kv_capacity"), engine_of(config, name, model)
    rows = table[(table.model == name) & table.status.isna() & table.kv_tokens.notna()]
    if rows.empty:
        raise UserError(f"kv_capacity={path}: no engine of {name} that started")
    requested = int(gpu_bytes * engine.gpu_memory_utilization)
    overheads = [
        requested
        - model.weight_bytes()
        - int(row["max_loras"])
        * slot_bytes(model, int(row["max_lora_rank"]), engine.lora_embeddings, engine.lora_extra_vocab_size)
        - int(row["kv_tokens"]) * model.kv_bytes_per_token()
        for row in rows.to_dict("records")
    ]
    return MemoryProfile(gpu_memory_bytes=gpu_bytes, non_kv_overhead_bytes=int(np.median(overheads)))


class _NoAliases(yaml.SafeDumper):
    """Writes equal sections out each time."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


HEADER = """# Made by `python -m calibrate.bsc.fit` from the files named under provenance; do not edit.
# Durations in ms, coefficients with 95 % bootstrap intervals over groups of runs. The scheduler of vLLM 0.8.5
# waits for each step, so its host's work is in gpu_ms too, but for the searches of waiting queue and slots.
# Terms: sim/terms.py.
"""


@dataclass(frozen=True)
class Fitted:
    """What was found for one model."""

    model: ModelConfig
    steps: Mapping[str, Any]
    activation_ms: float
    memory: MemoryProfile
    errors: pd.DataFrame
    times: BlockTimes
    forms: Mapping[str, float]
    """What was tried of the LoRA kernels -> relative error."""


def search_ms(config: Mapping[str, Any]) -> float:
    """Return what the search for a token's adapter takes for each slot."""
    return float(read_json(Path(config["search"]))["ms_per_slot_token"])


def profile(config: Mapping[str, Any], name: str, fitted: Fitted) -> dict[str, Any]:
    """Return a whole profile."""
    none: dict[str, Any] = {"constant_ms": 0.0, "rank_ms": 0.0, "spread": [1.0, 1.0]}
    scan_ms = float(read_json(Path(config["scan"]))["ms_per_request"])
    scan = entry("passed_over", np.full(3, scan_ms))
    files = {key: Path(config[key]) for key in ("microbenchmarks", "kv_capacity", "scan", "search")}
    memory = fitted.memory
    return {
        "kind": "fitted",
        "schema_version": 1,
        "name": config["profiles"][name],
        "model": fitted.model.name,
        "steps": dict(fitted.steps),
        "host": {
            "schedule_ms": {"passed_over": scan},
            "prepare_ms": {},
            "remap_ms": {"slots_tokens": entry("slots_tokens", np.full(3, search_ms(config)))},
            "update_ms": {},
        },
        "swaps": {
            "load_growing": none,
            "load_recycled": dict(none),
            "activate": {"constant_ms": rounded(fitted.activation_ms), "rank_ms": 0.0, "spread": [1.0, 1.0]},
        },
        "host_scale": {"steps": 1.0, "load": 1.0, "activate": 1.0},
        "lora_kernels": {key: round(value, 3) for key, value in asdict(fitted.times).items()},
        "memory": {
            "gpu_memory_bytes": memory.gpu_memory_bytes,
            "non_kv_overhead_bytes": memory.non_kv_overhead_bytes,
        },
        "ranges": {},
        "error_pct": {
            row["kind"]: {"runs": int(row["runs"]), "train": row["train"], "heldout": row["heldout"]}
            for row in fitted.errors.to_dict("records")
        },
        "forms_tried": {
            name: {"rms_error_pct": round(100 * error, 3)} for name, error in fitted.forms.items()
        },
        "provenance": {
            "gpu": "NVIDIA H100 64GB",
            "versions": {"vllm": "0.8.5"},
            "files_sha256": {
                path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values()
            },
        },
    }


def error_table(pool: Pool, train: Floats, unseen: Floats) -> pd.DataFrame:
    """Return a row per run: measured, fitted, and predicted by a fit to the other groups, where it can be."""
    return pd.DataFrame(
        {
            "model": [seen.run.model for seen in pool.found],
            "kind": [seen.run.kind for seen in pool.found],
            "run": [seen.run.name for seen in pool.found],
            "quantity": [seen.quantity for seen in pool.found],
            "measured_ms": pool.measured,
            "predicted_ms": train.round(4),
            "heldout_ms": unseen.round(4),
        }
    )


def by_kind(table: pd.DataFrame) -> pd.DataFrame:
    """Return the median errors in percent for each kind of run."""
    measured = table.measured_ms.to_numpy()
    errors = table.assign(
        train=100 * relative_errors(table.predicted_ms.to_numpy(), measured),
        heldout=100 * relative_errors(table.heldout_ms.to_numpy(), measured),
    )
    grouped = errors.groupby("kind", sort=True)
    medians = grouped[["train", "heldout"]].median().round(2)
    return medians.assign(runs=grouped.size()).reset_index()


UNITS = {"latency": 250.0, "working": 0.5, "iteration": 0.1, "spilled": 0.5}
"""A step of the lattice in which the times of the LoRA kernels' blocks are sought."""
START = BlockTimes(latency=10000, working=20, iteration=5)


def block_times(point: Point) -> BlockTimes:
    """Return the times at a point of the lattice, without the last digits that the units would leave."""
    pairs = zip(UNITS.items(), point, strict=True)
    return BlockTimes(**{key: round(number * unit, 3) for (key, unit), number in pairs})


def point_of(times: BlockTimes) -> Point:
    """Return the point of the lattice."""
    return tuple(round(value / UNITS[key]) for key, value in asdict(times).items())


def rms_error(pool: Pool, allowed: Callable[[BlockTimes], bool]) -> Callable[[Point], float]:
    """Return the relative error of the best fit with the times at a point; infinite where not allowed.

    No block takes less time than an idle one.
    """

    def error(point: Point) -> float:
        times = block_times(point)
        if times.working < 1 or not allowed(times):
            return math.inf
        counts = pool.counts(times)
        return float(np.sqrt(np.mean((pool.predicted(counts, pool.fit(counts)) / pool.measured - 1) ** 2)))

    return error


def sought_times(pool: Pool) -> tuple[BlockTimes, dict[str, float]]:
    """Return the times of the LoRA kernels' blocks that err least, and the errors of simpler forms."""
    point, errors = descend(rms_error(pool, lambda _: True), point_of(START))
    best, forms = block_times(point), {"all of lora_kernels": errors[point]}
    simpler: dict[str, tuple[BlockTimes, Callable[[BlockTimes], bool]]] = {
        "no latency": (replace(best, latency=0), lambda times: times.latency == 0),
        "iterations at no cost": (replace(best, iteration=0), lambda times: times.iteration == 0),
        "outputs beyond the cache at no cost": (replace(best, spilled=0), lambda times: times.spilled == 0),
    }
    for name, (start, allowed) in simpler.items():
        point, errors = descend(rms_error(pool, allowed), point_of(start))
        forms[name] = errors[point]
    return best, forms


def equations_of(
    config: Mapping[str, Any], models: Mapping[str, ModelConfig], memories: Mapping[str, MemoryProfile]
) -> Pool:
    """Return the equations of all microbenchmarks. Raises UserError for a model that is not configured."""
    engines = {name: engine_of(config, name, model) for name, model in models.items()}
    found: list[Observation] = []
    for run in runs(Path(config["microbenchmarks"])):
        if run.model not in models:
            accepted = ", ".join(models)
            raise UserError(f"microbenchmarks: model {run.model}: expected one of {accepted}")
        found += observations(run, steps(run, engines[run.model], models[run.model], memories[run.model]))
    return Pool(found, models, search_ms(config))


def task(cfg: DictConfig) -> None:
    """Fit, and write the profiles and the table of errors."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    models = {name: ModelConfig(**config["models"][key]) for name, key in config["names"].items()}
    memories = {name: capacity(config, name, model) for name, model in models.items()}
    pool = equations_of(config, models, memories)
    times, forms = sought_times(pool)
    counts = pool.counts(times)
    coefficients = pool.fit(counts)
    ci95 = intervals(*pool.relative(counts), pool.groups, config["seed"])
    table = error_table(pool, pool.predicted(counts, coefficients), held_out(counts, pool))
    sections = {name: steps_section(name, model, pool, coefficients, ci95) for name, model in models.items()}
    of_loading = [seen for seen in pool.found if seen.run.kind == "loading"]
    swap_ms = activation_ms(of_loading, sections, models, times)
    for name, model in models.items():
        errors = by_kind(table[table.model == name])
        found = Fitted(model, sections[name], swap_ms, memories[name], errors, times, forms)
        values = profile(config, name, found)
        text = HEADER + yaml.dump(values, Dumper=_NoAliases, sort_keys=False, width=120)
        write_atomically(Path(config["out"]) / f"{values['name']}.yaml", text.encode())
    write_atomically(Path(config["tables"]), table.to_csv(index=False, float_format="%.10g").encode())
    print(by_kind(table).to_string(index=False))


def engine_of(config: Mapping[str, Any], name: str, model: ModelConfig) -> EngineConfig:
    """Return the engine's settings for a model, at the model's full context as `vllm serve` takes it."""
    settings = {**config["engine"], **config["overrides"][name], "max_loras": 1, "max_cpu_loras": None}
    return replace(EngineConfig(**settings), max_model_len=model.max_position_embeddings)


def main() -> None:
    """Entry point."""
    hydra_entry(task, "bsc_fit", "calibrate.bsc.fit")


if __name__ == "__main__":
    main()
