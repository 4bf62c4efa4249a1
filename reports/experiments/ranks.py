"""What it costs to mix ranks: every slot has room for the largest."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.experiments.document import Section
from reports.experiments.scenario import Scenario
from reports.numbers import duration, number, percent, whole
from sim.memory import slot_bytes

_ROWS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "ranks": ("ranks of the adapters", str),
    "max_lora_rank": ("max_lora_rank", whole),
    "mean_adapter_mb": ("an adapter, mean, MB", number),
    "slot_mb": ("a slot on the GPU, MB", number),
    "padding_share": ("of a slot's adapter part, padding", percent),
    "kv_blocks": ("KV blocks left, a box", whole),
    "p50_ms": ("p50 latency at the offered rate", duration),
    "p50_ttft_ms": ("p50 time to first token", duration),
    "median_tpot_ms": ("p50 time per output token", duration),
    "most_output_tokens_per_s": ("output tokens/s per box at most", whole),
}


@dataclass(frozen=True)
class Padding:
    """What an adapter of the workload takes of a slot, on average over the adapters."""

    slot_bytes: int
    mean_adapter_bytes: float
    padding_share: float
    """Of the room that a slot has for an adapter's weights."""


def padding(scenario: Scenario) -> Padding:
    """Return how much of the slots is padding: each has room for ``max_lora_rank``."""
    model, most = scenario.model, scenario.max_lora_rank
    mean_bytes = float(np.mean([model.lora_bytes(rank) for rank in scenario.ranks]))
    return Padding(slot_bytes(model, most), mean_bytes, 1 - mean_bytes / model.lora_bytes(most))


def ranks_of(scenario: Scenario, most: Scenario | None) -> dict[str, Any]:
    """Return what the ranks of a scenario cost at the offered rate, and saturated (``most``)."""
    slots = padding(scenario)
    return {
        "ranks": " and ".join(map(str, sorted(set(scenario.ranks)))),
        "max_lora_rank": scenario.max_lora_rank,
        "mean_adapter_mb": slots.mean_adapter_bytes / 1e6,
        "slot_mb": slots.slot_bytes / 1e6,
        "padding_share": slots.padding_share,
        "kv_blocks": scenario.metric("kv_blocks"),
        "p50_ms": scenario.metric("median_e2el_ms"),
        "p50_ttft_ms": scenario.metric("median_ttft_ms"),
        "median_tpot_ms": scenario.metric("median_tpot_ms"),
        "most_output_tokens_per_s": None if most is None else most.per_box("output_throughput"),
        "outside_range": list(scenario.outside_range),
    }


def ranks_section(ranks: Mapping[str, Mapping[str, Any]]) -> Section:
    """Return the table of ``uniform`` and ``mixed`` ranks."""
    uniform, mixed = ranks["uniform"], ranks["mixed"]
    rows = [[label, write(uniform[key]), write(mixed[key])] for key, (label, write) in _ROWS.items()]
    outside = [text for text in mixed["outside_range"] if text not in uniform["outside_range"]]
    notes = ["A slot has room for max_lora_rank, and vLLM computes with that, whatever rank an adapter has."]
    notes += [f"Mixed ranks, outside of what the profile measured: {text}." for text in outside]
    return Section("Mixed ranks against one rank", ["", "one rank", "mixed ranks"], rows, notes)
