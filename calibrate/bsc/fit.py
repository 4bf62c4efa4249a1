"""Fit the study's profiles, one a model, to its microbenchmarks: `python -m calibrate.bsc.fit`.

A run is a row: the sum of its steps' terms against its duration, or the sum over the gaps between tokens
against their mean. Both models ran on the same GPU, so what the hardware fixes (a product's time for each
multiplication, a LoRA kernel's for each thread block) is one coefficient for both, in a common unit; the rest
is each model's own.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from omegaconf import DictConfig, OmegaConf

from calibrate.bsc.microbenchmarks import LOADING_OUTPUT, Run, runs, steps
from calibrate.bsc.tables import read
from calibrate.dataset import read_json
from calibrate.fit import rounded
from calibrate.kv_capacity import COLUMNS as CAPACITY_COLUMNS
from calibrate.regression import Floats, design, fit, intervals, relative_errors
from sim.cli import hydra_entry
from sim.config import EngineConfig, ModelConfig
from sim.errors import UserError
from sim.files import write_atomically
from sim.lora_grid import LoraGrid, modules
from sim.memory import MemoryProfile, slot_bytes
from sim.terms import TERMS

GRAPHS = ("piecewise", "none")
LONG_RUN = 1000
"""A run with fewer requests says more of the front end than of the engine."""
SUBMIT = "submit"


@dataclass(frozen=True)
class Column:
    """A term of the steps with some graph modes, with a coefficient of each model's or one for all."""

    term: str
    graphs: Sequence[str] = GRAPHS
    unit: str | None = None
    """What a count is multiplied with to be the same work for each model: a key of `units`. None: own."""


COLUMNS = (
    Column("constant"),
    Column("constant", ("none",)),
    Column("reqs"),
    Column("kv_tokens"),
    Column("padded_tokens", unit="weights"),
    Column("prefill_reqs", unit="one"),
    Column("lora_programs", unit="one"),
    Column("expand_tiles", unit="expand_programs"),
    Column("shrink_programs", unit="shrink_programs"),
    Column("lora_padded_tokens", ("none",), unit="lora_outputs"),
)
"""A LoRA kernel with few programs takes its latency (`lora_kernel_floor`), not its latency and its programs' time.
Above the captured sizes a step's LoRA outputs no longer fit in the GPU's cache, and each token's are read and
written once more."""


def units(model: ModelConfig) -> dict[str, float]:
    """Return what one of each shared term is for `model`."""
    linear = model.linear_shapes()
    layers = model.num_hidden_layers
    return {
        "one": 1.0,
        "weights": 1e-9 * layers * sum(inputs * outputs for inputs, outputs in linear),
        "expand_programs": layers * sum(slices * columns for slices, columns in modules(model)),
        "shrink_programs": layers * sum(slices for slices, _ in modules(model)),
        "lora_outputs": 1e-6 * layers * sum(outputs for _, outputs in linear),
    }


@dataclass(frozen=True)
class Observation:
    """One equation of the fit."""

    run: Run
    quantity: str
    weights: Floats
    """How often each of `shapes` counts."""
    shapes: pd.DataFrame
    measured_ms: float
    num_submitted: int = 0


def observations(run: Run, shapes: pd.DataFrame) -> list[Observation]:
    """Return what a run shows: its duration where it only computes prompts, else the time between tokens."""
    counts = shapes.steps.to_numpy(), shapes.gaps.to_numpy()
    if run.kind == "input":
        if run.num_requests < LONG_RUN:
            return []
        return [Observation(run, "duration", counts[0], shapes, run.duration_ms, run.num_requests)]
    gap_ms = run.median_itl_ms if run.kind == "loading" else run.mean_itl_ms
    return [Observation(run, "gap", counts[1] / counts[1].sum(), shapes, gap_ms)]


def with_programs(shapes: pd.DataFrame, model: ModelConfig, floor: int) -> pd.DataFrame:
    """Return the shapes with `num_lora_programs`."""
    programs = [
        LoraGrid(model, int(row.max_loras), int(row.max_lora_rank), floor).num_programs(
            int(row.num_padded_tokens)
        )
        if row.num_adapters
        else 0
        for row in shapes.itertuples()
    ]
    return shapes.assign(num_lora_programs=programs)


class Pool:
    """The equations of all models, in columns."""

    def __init__(self, found: Sequence[Observation], models: Mapping[str, ModelConfig]) -> None:
        self.found = found
        self.models = models
        self.keys = [
            (number, None if column.unit else name)
            for number, column in enumerate(COLUMNS)
            for name in (models if column.unit is None else ["all"])
        ]
        self.measured = np.array([observation.measured_ms for observation in found])
        self.groups = pd.Series(
            [f"{seen.run.model} {seen.run.kind} {seen.run.max_num_seqs}" for seen in found]
        )

    def counts(self, floor: int) -> Floats:
        """Return the counts of each column, shape (equations, columns), the requests submitted last."""
        return np.array([self._row(observation, floor) for observation in self.found])

    def _row(self, observation: Observation, floor: int) -> list[float]:
        model = self.models[observation.run.model]
        scale, row = units(model), []
        shapes = with_programs(observation.shapes, model, floor)
        for number, owner in self.keys:
            column = COLUMNS[number]
            if owner not in (None, observation.run.model):
                row.append(0.0)
                continue
            counted = observation.weights * shapes.graph.isin(column.graphs).to_numpy()
            count = float(design(shapes, [column.term])[:, 0] @ counted)
            row.append(count * (scale[column.unit] if column.unit else 1.0))
        return [*row, float(observation.num_submitted)]


def held_out(counts: Floats, pool: Pool) -> Floats:
    """Return predictions for each group of runs by a fit to all others; NaN where a column would be unknown."""
    predicted = np.full(len(counts), np.nan)
    for group in sorted(set(pool.groups)):
        left = (pool.groups != group).to_numpy()
        known = (counts[left] != 0).any(axis=0)
        ours = ~left & ~(counts[:, ~known] != 0).any(axis=1)
        coefficients = np.zeros(counts.shape[1])
        coefficients[known] = fit(counts[np.ix_(left, known)], pool.measured[left])
        predicted[ours] = counts[ours] @ coefficients
    return predicted


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
            "gpu_ms": {
                term: {
                    "value": rounded(value),
                    "ci95": [rounded(low), rounded(high)],
                    "unit": f"ms for {TERMS[term][0]}",
                }
                for term, (value, low, high) in terms.items()
                if value > 0
            },
            "launch_ms": {},
        }
        for graph, terms in totals.items()
    }
    return {"full": sections["piecewise"], **sections}


def activation_ms(
    found: Sequence[Observation],
    sections: Mapping[str, Mapping[str, Any]],
    models: Mapping[str, ModelConfig],
    floor: int,
) -> float:
    """Return the mean time of an activation, from requests that ran one after another, each with another adapter.

    With n of them from the instant t0, each taking s, the last one ends at t0 + n s and the mean first token is
    known at t0 + (n - 1) / 2 s + s less the time of the other tokens. What s has beside its steps is the
    activation.
    """
    durations = []
    for seen in found:
        run = seen.run
        terms = sections[run.model]["piecewise"]["gpu_ms"]
        shapes = with_programs(seen.shapes, models[run.model], floor)
        prompts = shapes[shapes.num_prefill_reqs > 0]
        prompt_ms = np.mean(design(prompts, list(terms)) @ [term["value"] for term in terms.values()])
        decode_ms = (LOADING_OUTPUT - 1) * run.median_itl_ms
        of_one = (run.duration_ms - run.mean_ttft_ms - decode_ms) / ((run.num_requests - 1) / 2)
        durations.append(of_one - decode_ms - float(prompt_ms))
    return max(float(np.mean(durations)), 0.0)


def capacity(
    path: Path, name: str, model: ModelConfig, engine: EngineConfig, gpu_bytes: int
) -> MemoryProfile:
    """Return what engines that were started had beside weights, slots and KV cache."""
    table = read(path, CAPACITY_COLUMNS, "kv_capacity")
    rows = table[(table.model == name) & table.status.isna() & table.kv_tokens.notna()]
    if rows.empty:
        raise UserError(f"kv_capacity={path}: no engine of {name} that started")
    requested = int(gpu_bytes * engine.gpu_memory_utilization)
    overheads = [
        requested
        - model.weight_bytes()
        - int(row.max_loras)
        * slot_bytes(model, int(row.max_lora_rank), engine.lora_embeddings, engine.lora_extra_vocab_size)
        - int(row.kv_tokens) * model.kv_bytes_per_token()
        for row in rows.itertuples()
    ]
    return MemoryProfile(gpu_memory_bytes=gpu_bytes, non_kv_overhead_bytes=int(np.median(overheads)))


class _NoAliases(yaml.SafeDumper):
    """Writes equal sections out each time."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


HEADER = """# Made by `python -m calibrate.bsc.fit` from the files named under provenance; do not edit.
# Durations in ms, coefficients with 95 % bootstrap intervals over groups of runs. The scheduler of vLLM 0.8.5 waits for
# each step, so its host's work is in gpu_ms too, but for the search of the waiting queue. Terms: sim/terms.py.
"""


def profile(
    config: Mapping[str, Any],
    name: str,
    model_name: str,
    sections: Mapping[str, Any],
    swap_ms: float,
    memory: MemoryProfile,
    errors: pd.DataFrame,
    tried: Mapping[int, float],
) -> dict[str, Any]:
    """Return a whole profile."""
    none: dict[str, Any] = {"constant_ms": 0.0, "rank_ms": 0.0, "spread": [1.0, 1.0]}
    scan_ms = float(read_json(Path(config["scan"]))["ms_per_request"])
    scan = {"value": scan_ms, "ci95": [scan_ms, scan_ms], "unit": f"ms for {TERMS['passed_over'][0]}"}
    files = {key: Path(config[key]) for key in ("microbenchmarks", "kv_capacity", "scan")}
    floor = min(tried, key=lambda key: tried[key])
    return {
        "kind": "fitted",
        "schema_version": 1,
        "name": config["profiles"][name],
        "model": model_name,
        "steps": dict(sections),
        "host": {"schedule_ms": {"passed_over": scan}, "prepare_ms": {}, "remap_ms": {}, "update_ms": {}},
        "swaps": {
            "load_growing": none,
            "load_recycled": dict(none),
            "activate": {"constant_ms": rounded(swap_ms), "rank_ms": 0.0, "spread": [1.0, 1.0]},
        },
        "host_scale": {"steps": 1.0, "load": 1.0, "activate": 1.0},
        "lora_kernel_floor": floor,
        "memory": {
            "gpu_memory_bytes": memory.gpu_memory_bytes,
            "non_kv_overhead_bytes": memory.non_kv_overhead_bytes,
        },
        "ranges": {},
        "error_pct": {
            str(row.kind): {"runs": int(row.runs), "train": float(row.train), "heldout": float(row.heldout)}
            for row in errors.itertuples()
        },
        "forms_tried": {
            f"lora_kernel_floor {tried_floor}": {"rms_error_pct": round(100 * error, 3)}
            for tried_floor, error in tried.items()
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
    """Return a row per run with its errors in percent; `heldout` NaN where nothing was left to predict it by."""
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


def _rms(counts: Floats, measured: Floats) -> float:
    return float(np.sqrt(np.mean((counts @ fit(counts, measured) / measured - 1) ** 2)))


def task(cfg: DictConfig) -> None:
    """Fit, and write the profiles and the table of errors."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    models = {name: ModelConfig(**config["models"][key]) for name, key in config["names"].items()}
    engines = {name: engine_of(config, name, model) for name, model in models.items()}
    memories = {
        name: capacity(Path(config["kv_capacity"]), name, model, engines[name], config["gpu_memory_bytes"])
        for name, model in models.items()
    }
    found = []
    for run in runs(Path(config["microbenchmarks"])):
        if run.model not in models:
            raise UserError(f"microbenchmarks: model {run.model} is not in conf/bsc_fit.yaml")
        shapes = steps(run, engines[run.model], models[run.model], memories[run.model])
        found += observations(run, shapes)
    pool = Pool(found, models)
    trials = {floor: pool.counts(floor) for floor in config["floors"]}
    tried = {floor: _rms(counts, pool.measured) for floor, counts in trials.items()}
    floor = min(tried, key=lambda key: tried[key])
    counts = trials[floor]
    coefficients = fit(counts, pool.measured)
    ci95 = intervals(counts, pool.measured, pool.groups, config["seed"])
    table = error_table(pool, counts @ coefficients, held_out(counts, pool))
    sections = {name: steps_section(name, model, pool, coefficients, ci95) for name, model in models.items()}
    swap_ms = activation_ms([seen for seen in found if seen.run.kind == "loading"], sections, models, floor)
    for name, model in models.items():
        errors = by_kind(table[table.model == name])
        values = profile(config, name, model.name, sections[name], swap_ms, memories[name], errors, tried)
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
