"""The ranks of adapters: one for all, or a mix."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sim.errors import UserError
from sim.fields import as_mapping, build
from sim.workload.streams import stream


@dataclass(frozen=True)
class RankMix:
    """Each adapter draws its rank from ``values``, with probabilities proportional to ``weights`` (null:
    equal). An adapter has its rank for the whole run.
    """

    values: list[int]
    weights: list[float] | None = field(default=None)

    def __post_init__(self) -> None:
        where = "workload.adapter_rank"
        if not self.values or min(self.values) < 1:
            raise UserError(f"{where}.values={self.values}: expected one or more ranks greater than 0")
        weights = [1.0] * len(self.values) if self.weights is None else self.weights
        if len(weights) != len(self.values) or min(weights) < 0 or not any(weights):
            raise UserError(
                f"{where}.weights={self.weights}: expected one for each of values={self.values}, none below "
                "0, and one above"
            )

    def draw(self, seed: int, num_adapters: int) -> list[int]:
        """Return the rank of each adapter index; more adapters do not move those of the first."""
        weights = np.array([1.0] * len(self.values) if self.weights is None else self.weights)
        bounds = np.cumsum(weights / weights.sum())[:-1]
        drawn = np.searchsorted(bounds, stream(seed, "ranks").random(num_adapters), side="right")
        return [self.values[index] for index in drawn.tolist()]


def from_value(value: object, where: str) -> RankMix | None:
    """Build from null (the engine's ``max_lora_rank``), a rank, or ``{values, weights}``; or UserError."""
    if value is None:
        return None
    if type(value) is int:
        if value <= 0:
            raise UserError(f"{where}={value}: must be greater than 0")
        return RankMix([value])
    if not isinstance(value, Mapping):
        raise UserError(f"{where}={value!r}: expected int or null, or a mapping of values and weights")
    settings: Mapping[str, Any] = as_mapping(value, where)
    return build(RankMix, settings, where)
