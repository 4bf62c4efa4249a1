"""The equations of the fit: what each microbenchmark's steps have of each term, and what it measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from calibrate.bsc.microbenchmarks import Run
from calibrate.regression import Floats, design, fit
from sim.config import ModelConfig
from sim.lora_grid import LoraGrid, modules

GRAPHS = ("piecewise", "none")
LONG_RUN = 1000
"""A run with fewer requests says more of the front end than of the engine."""


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
"""A LoRA kernel with few programs takes its latency (`lora_kernel_floor`), not that and its programs' time.
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
    grids: dict[tuple[int, int], LoraGrid] = {}
    programs = []
    for row in shapes.to_dict("records"):
        key = int(row["max_loras"]), int(row["max_lora_rank"])
        grid = grids.setdefault(key, LoraGrid(model, *key, floor))
        programs.append(grid.num_programs(int(row["num_padded_tokens"])) if row["num_adapters"] else 0)
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
    """Return predictions for each group of runs by a fit to all others; NaN where a column is unknown."""
    predicted = np.full(len(counts), np.nan)
    for group in sorted(set(pool.groups)):
        left = (pool.groups != group).to_numpy()
        known = (counts[left] != 0).any(axis=0)
        ours = ~left & ~(counts[:, ~known] != 0).any(axis=1)
        coefficients = np.zeros(counts.shape[1])
        coefficients[known] = fit(counts[np.ix_(left, known)], pool.measured[left])
        predicted[ours] = counts[ours] @ coefficients
    return predicted
