"""The equations of the fit: what each microbenchmark's steps have of each term, and what it measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from calibrate.bsc.microbenchmarks import Run
from calibrate.regression import Floats, design, fit
from sim.config import ModelConfig
from sim.lora_grid import Blocks, BlockTimes, LoraGrid, Step

GRAPHS = ("piecewise", "none")
NO_KERNELS = [Blocks(0, 0, 0)] * 8
"""Of a step without adapters."""
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
)


def units(model: ModelConfig) -> dict[str, float]:
    """Return what one of each shared term is for `model`."""
    weights = sum(inputs * outputs for inputs, outputs in model.linear_shapes())
    return {"one": 1.0, "weights": 1e-9 * model.num_hidden_layers * weights}


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


class Kernels:
    """The thread blocks of all LoRA kernels of a table of steps' shapes."""

    def __init__(self, shapes: pd.DataFrame, model: ModelConfig) -> None:
        grids: dict[tuple[int, int], LoraGrid] = {}
        found, spilled_kb = [], []
        for row in shapes.to_dict("records"):
            key = int(row["max_loras"]), int(row["max_lora_rank"])
            grid = grids.setdefault(key, LoraGrid(model, *key))
            num_decodes = row["num_reqs"] - row["num_prefill_reqs"]
            counts = row["num_padded_tokens"], row["num_adapters"], num_decodes, row["num_prefill_tokens"]
            step = Step(*(int(count) for count in counts))
            found.append(grid.kernels(step) if step.num_adapters else NO_KERNELS)
            spilled_kb.append(grid.spilled_kb(step.num_padded_tokens))
        self._blocks = np.array(found, dtype=float)
        """Shape (shapes, kernels of a layer, kinds of `Blocks`)."""
        self._spilled_kb = np.array(spilled_kb)
        self._layers = model.num_hidden_layers

    def programs(self, times: BlockTimes) -> Floats:
        """Return `LoraGrid.num_programs` of each shape, not rounded; shape (shapes,)."""
        totals = self._blocks @ np.array([1.0, times.working, times.iteration])
        launched = self._blocks.any(axis=(1, 2))
        of_layer = np.maximum(times.latency, times.latency / 2 + totals).sum(axis=1)
        of_layer += times.spilled * self._spilled_kb
        return np.asarray(self._layers * np.where(launched, of_layer, 0.0))


class Pool:
    """The equations of all models, in columns.

    `search_ms` is known (calibrate/bsc/search.py), and no part of what is left to be fitted.
    """

    def __init__(
        self, found: Sequence[Observation], models: Mapping[str, ModelConfig], search_ms: float
    ) -> None:
        self.found = found
        self.keys = [
            (number, None if column.unit else name)
            for number, column in enumerate(COLUMNS)
            for name in (models if column.unit is None else ["all"])
        ]
        self.measured = np.array([observation.measured_ms for observation in found])
        self.known = search_ms * np.array([_searched(observation) for observation in found])
        self.groups = pd.Series(
            [f"{seen.run.model} {seen.run.kind} {seen.run.max_num_seqs}" for seen in found]
        )
        self._kernels = [Kernels(seen.shapes, models[seen.run.model]) for seen in found]
        self._without_lora = np.array([self._row(seen, units(models[seen.run.model])) for seen in found])
        self._lora_column = [COLUMNS[number].term for number, _ in self.keys].index("lora_programs")

    def relative(self, counts: Floats) -> tuple[Floats, Floats]:
        """Return the counts and what they are to explain, each in parts of what was measured.

        An equation is a mean over thousands of gaps or a whole run: a short one says as much as a long one.
        """
        return counts / self.measured[:, None], 1 - self.known / self.measured

    def fit(self, counts: Floats, chosen: Any = slice(None)) -> Floats:
        """Return the coefficients that explain the `chosen` equations with the smallest relative errors."""
        ours, wanted = self.relative(counts)
        return fit(ours[chosen], wanted[chosen])

    def predicted(self, counts: Floats, coefficients: Floats) -> Floats:
        """Return what the coefficients say of each equation."""
        return np.asarray(counts @ coefficients + self.known)

    def counts(self, times: BlockTimes) -> Floats:
        """Return the counts of each column, shape (equations, columns), the requests submitted last."""
        pairs = zip(self.found, self._kernels, strict=True)
        counts = self._without_lora.copy()
        counts[:, self._lora_column] = [seen.weights @ kernels.programs(times) for seen, kernels in pairs]
        return counts

    def _row(self, observation: Observation, scale: Mapping[str, float]) -> list[float]:
        row, shapes = [], observation.shapes.assign(num_lora_programs=0)
        for number, owner in self.keys:
            column = COLUMNS[number]
            if owner not in (None, observation.run.model):
                row.append(0.0)
                continue
            counted = observation.weights * shapes.graph.isin(column.graphs).to_numpy()
            count = float(design(shapes, [column.term])[:, 0] @ counted)
            row.append(count * (scale[column.unit] if column.unit else 1.0))
        return [*row, float(observation.num_submitted)]


def _searched(observation: Observation) -> float:
    """Return the slots times the tokens of steps with prompts, whose batch is always another."""
    shapes = observation.shapes
    searched = design(shapes, ["slots_tokens"])[:, 0] * (shapes.num_prefill_reqs > 0).to_numpy()
    return float(searched @ observation.weights)


def held_out(counts: Floats, pool: Pool) -> Floats:
    """Return predictions for each group of runs by a fit to all others; NaN where a column is unknown."""
    predicted = np.full(len(counts), np.nan)
    for group in sorted(set(pool.groups)):
        left = (pool.groups != group).to_numpy()
        known = (counts[left] != 0).any(axis=0)
        ours = ~left & ~(counts[:, ~known] != 0).any(axis=1)
        coefficients = np.zeros(counts.shape[1])
        coefficients[known] = pool.fit(counts[:, known], left)
        predicted[ours] = pool.predicted(counts, coefficients)[ours]
    return predicted
