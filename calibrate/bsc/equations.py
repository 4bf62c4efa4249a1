"""The equations of the fit: what each microbenchmark's steps have of each term, and what it measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    of_changes: bool = False
    """Whether it is the host's, and only where the batch is another one than that of the step before."""


COLUMNS = (
    Column("constant"),
    Column("constant", ("none",)),
    Column("reqs"),
    Column("kv_tokens"),
    Column("mixed_kv_tokens", unit="read_again"),
    Column("padded_tokens", unit="weights"),
    Column("prefill_reqs", unit="one"),
    Column("lora_programs", unit="one"),
    Column("slots_tokens", unit="one", of_changes=True),
)
"""In a step with prompts each query head reads the keys and values anew, those after the first of a group
from the L2 cache; only where all requests have one token are they taken together (flash-attention,
flash_api.cpp, `seqlenq_ngroups_swapped`). The last column is vLLM's search, in Python, of each token's
adapter in the list of slots (vllm/lora/punica_wrapper/utils.py, `convert_mapping`)."""


def units(model: ModelConfig) -> dict[str, float]:
    """Return what one of each shared term is for `model`."""
    weights = sum(inputs * outputs for inputs, outputs in model.linear_shapes())
    num_again = model.num_attention_heads / model.num_key_value_heads - 1
    return {
        "one": 1.0,
        "weights": 1e-9 * model.num_hidden_layers * weights,
        "read_again": 1e-6 * num_again * model.kv_bytes_per_token(),
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


class Kernels:
    """The thread blocks of all LoRA kernels of a table of steps' shapes."""

    def __init__(self, shapes: pd.DataFrame, model: ModelConfig) -> None:
        grids: dict[tuple[int, int], LoraGrid] = {}
        found = []
        for row in shapes.to_dict("records"):
            key = int(row["max_loras"]), int(row["max_lora_rank"])
            grid = grids.setdefault(key, LoraGrid(model, *key))
            num_decodes = row["num_reqs"] - row["num_prefill_reqs"]
            counts = row["num_padded_tokens"], row["num_adapters"], num_decodes, row["num_prefill_tokens"]
            step = Step(*(int(count) for count in counts))
            found.append(grid.kernels(step) if step.num_adapters else NO_KERNELS)
        self._blocks = np.array(found, dtype=float)
        """Shape (shapes, kernels of a layer, kinds of `Blocks`)."""
        self._layers = model.num_hidden_layers

    def programs(self, times: BlockTimes) -> Floats:
        """Return `LoraGrid.num_programs` of each shape, not rounded; shape (shapes,)."""
        totals = self._blocks @ np.array([1.0, times.working, times.iteration])
        launched = self._blocks.any(axis=(1, 2))
        of_layer = np.maximum(times.latency, times.latency / 2 + totals).sum(axis=1)
        return np.asarray(self._layers * np.where(launched, of_layer, 0.0))


class Pool:
    """The equations of all models, in columns."""

    def __init__(self, found: Sequence[Observation], models: Mapping[str, ModelConfig]) -> None:
        self.found = found
        self.keys = [
            (number, None if column.unit else name)
            for number, column in enumerate(COLUMNS)
            for name in (models if column.unit is None else ["all"])
        ]
        self.measured = np.array([observation.measured_ms for observation in found])
        self.groups = pd.Series(
            [f"{seen.run.model} {seen.run.kind} {seen.run.max_num_seqs}" for seen in found]
        )
        self._kernels = [Kernels(seen.shapes, models[seen.run.model]) for seen in found]
        self._without_lora = np.array([self._row(seen, units(models[seen.run.model])) for seen in found])
        self._lora_column = [COLUMNS[number].term for number, _ in self.keys].index("lora_programs")

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
            if column.of_changes:
                counted = counted * (shapes.num_prefill_reqs > 0).to_numpy()
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
