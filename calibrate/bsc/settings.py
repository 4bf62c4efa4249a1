"""A row of the study's runs as settings of a simulation: nothing measured but the mean lengths."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sim.config import EngineConfig, ModelConfig
from sim.errors import UserError

COLUMNS = (
    *("model", "max_loras", "max_cpu_loras", "max_lora_rank", "max_num_seqs", "ranks", "rate_values"),
    *("rate_counts", "total_time"),
)
"""What a row must have."""
OF_LENGTHS = ("completed", "in_tokens", "out_tokens")
"""What it may have: requests, and their tokens together."""
GROUP = ("model", "ranks", "rate_values", "rate_counts", "max_cpu_loras")
"""Rows that differ in `max_loras` alone, but for what follows from it."""
SEPARATORS = r"""[\s,;|/'"()\[\]{}]+"""
"""Between the numbers of a list, however it was written: `8 16`, `8;16`, `[8, 16]`, `('8', '16')`."""


@dataclass(frozen=True)
class Setting:
    """One run before it was made."""

    model: str
    max_loras: int
    num_adapters: int
    """`max_cpu_loras` of the study: all adapters are in host memory."""
    max_lora_rank: int
    max_num_seqs: int
    adapter_ranks: tuple[int, ...]
    """Of each adapter."""
    rates: tuple[float, ...]
    """Requests per second of each adapter."""
    duration_s: float
    mean_input_length: float
    mean_output_length: float

    @property
    def request_rate(self) -> float:
        """Requests per second of all adapters."""
        return sum(self.rates)

    def engine(self, base: EngineConfig, model: ModelConfig) -> EngineConfig:
        """Return the engine of the run: `base` with its flags, the model's context and a warm host cache."""
        return replace(
            base,
            max_loras=self.max_loras,
            max_cpu_loras=max(self.num_adapters, self.max_loras),
            max_lora_rank=self.max_lora_rank,
            max_num_seqs=self.max_num_seqs,
            max_model_len=model.max_position_embeddings,
            initial_host_cache=[adapter_name(index) for index in range(self.num_adapters)],
        )


def adapter_name(index: int) -> str:
    """Return the name of an adapter."""
    return f"adapter-{index:04d}"


def setting(row: Mapping[Any, Any], lengths: tuple[float, float], where: str) -> Setting:
    """Return the setting of a row; `lengths` stand in where the row has no completed requests.

    The study deals ranks out in turn, and rates. Raises UserError, which names `where`, for a value that is
    missing or does not fit the others.
    """
    num_adapters = _count(row, "max_cpu_loras", where)
    ranks, rates, counts = (_numbers(row, name, where) for name in ("ranks", "rate_values", "rate_counts"))
    whole = all(number.is_integer() for number in counts)
    if not whole or len(rates) != len(counts) or sum(counts) != num_adapters:
        raise UserError(
            f"{where}: rate_counts={row['rate_counts']!r}: expected as many whole numbers as "
            f"rate_values, {num_adapters} together"
        )
    max_lora_rank = _count(row, "max_lora_rank", where)
    if max(ranks) > max_lora_rank:
        raise UserError(
            f"{where}: ranks={row['ranks']!r}: expected none above max_lora_rank, {max_lora_rank}"
        )
    has_lengths = all(_is_number(row.get(name)) for name in OF_LENGTHS)
    completed = float(row["completed"]) if has_lengths else 0.0
    if completed > 0:
        lengths = (float(row["in_tokens"]) / completed, float(row["out_tokens"]) / completed)
    return Setting(
        model=str(row["model"]),
        max_loras=_count(row, "max_loras", where),
        num_adapters=num_adapters,
        max_lora_rank=max_lora_rank,
        max_num_seqs=_count(row, "max_num_seqs", where),
        adapter_ranks=tuple(int(ranks[index % len(ranks)]) for index in range(num_adapters)),
        rates=tuple(rate for rate, count in zip(rates, counts, strict=True) for _ in range(int(count))),
        duration_s=_number(row, "total_time", where),
        mean_input_length=lengths[0],
        mean_output_length=lengths[1],
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(row: Mapping[Any, Any], name: str, where: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"{where}: {name}={row[name]}: expected a number greater than 0")
    return value


def _count(row: Mapping[Any, Any], name: str, where: str) -> int:
    value = _number(row, name, where)
    if not value.is_integer():
        raise UserError(f"{where}: {name}={row[name]}: expected a whole number")
    return int(value)


def _numbers(row: Mapping[Any, Any], name: str, where: str) -> list[float]:
    try:
        values = [float(part) for part in re.split(SEPARATORS, str(row[name])) if part]
    except ValueError:
        values = []
    if not values or any(not 0 < value < math.inf for value in values):
        raise UserError(
            f"{where}: {name}={row[name]!r}: expected numbers greater than 0, separated by spaces or commas"
        )
    return values
