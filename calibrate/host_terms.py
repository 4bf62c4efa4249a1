"""The host's speed on the machine of a replay, which differs between machines and from minute to minute.

Three ways to know it, as factors on a profile's host terms: from the short reference run at the engine's
start; from the other replays of the same engine, or its longer reference run of swaps where there are none;
from the replay itself, which is no prediction but tells an error of the simulated mechanism from one of the
host's speed.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calibrate.dataset import STEP_COLUMNS, durations, kinds, read_meta, read_table, reference
from calibrate.phases import SWAP_REFERENCE
from calibrate.regression import design
from sim.errors import UserError
from sim.profile import SWAPS

META_KEYS = ("settings.max_lora_rank", "settings.max_loras")
SWAP_COLUMNS = ("phase", "kind", "duration_s", "host_cache_entries")
STALL = 5
"""What takes so many times the usual is a stall of the host, not its speed."""

Scale = dict[str, float]


def from_reference(folder: Path, profile: dict[str, Any]) -> Scale:
    """Return the factors that the reference run shows. Raises UserError where there is none."""
    rank = read_meta(folder / "meta.json", META_KEYS)["settings"]["max_lora_rank"]
    known = profile.get("reference_ms", {})
    if rank not in known:
        raise UserError(f"profile.reference_ms: no reference run of rank {rank}; it has {list(known)}")
    steps = read_table(folder / "steps.parquet", ("phase", "graph", "launch_start_s", "launch_end_s"))
    swaps = read_table(folder / "swaps.parquet", ("phase", "kind", "duration_s"))
    here = reference(steps, swaps, str(folder))
    return {name: round(here[name] / known[rank][name], 3) for name in here}


def from_others(folder: Path, others: Sequence[Path], profile: dict[str, Any], of_reference: Scale) -> Scale:
    """Return the factors that the engine's other replays show, or its longer reference; without stalls.

    What they do not show stays as the reference run has it.
    """
    of_steps = {"steps": steps_ratio(others, profile)} if others else {}
    tables = [swaps_of(other, ["replay"]) for other in others] or [swaps_of(folder, [SWAP_REFERENCE])]
    found = pd.concat(tables, ignore_index=True)
    typical = found.groupby(found.kind.map(SWAPS.get)).duration_ms.transform("median")
    return _with_swaps(of_reference | of_steps, found[found.duration_ms <= STALL * typical], profile)


def from_itself(folder: Path, profile: dict[str, Any], scale: Scale) -> Scale:
    """Return the factors that the replay itself shows: of its steps, and of its mean swap durations, stalls
    included. What it does not show stays.
    """
    of_steps = {"steps": steps_ratio([folder], profile)}
    return _with_swaps(scale | of_steps, swaps_of(folder, ["replay"]), profile)


def steps_ratio(folders: Sequence[Path], profile: dict[str, Any]) -> float:
    """Return what the host's phases of the replays' steps took over what the profile expects of them."""
    took_ms = expected_ms = 0.0
    for folder in folders:
        steps = _replayed(folder)
        for name, terms, rows in _phases(steps, profile):
            known = rows.dropna(subset=[name])
            coefficients = np.array([entry["value"] for entry in terms.values()])
            expected = design(known, list(terms)) @ coefficients if terms else np.zeros(len(known))
            usual = known[name].to_numpy() <= STALL * expected
            took_ms += known[name].to_numpy()[usual].sum()
            expected_ms += expected[usual].sum()
    return round(took_ms / expected_ms, 3)


@cache  # Each replay is asked about by all others of its engine.
def _replayed(folder: Path) -> pd.DataFrame:
    """The replay's steps with their durations, and what the terms of a cost ask about the engine."""
    settings = read_meta(folder / "meta.json", META_KEYS)["settings"]
    steps = durations(read_table(folder / "steps.parquet", STEP_COLUMNS))
    own = {key: settings[key] for key in ("max_loras", "max_lora_rank")}
    return steps[steps.phase == "replay"].assign(**own)


def _phases(
    steps: pd.DataFrame, profile: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any], pd.DataFrame]]:
    """Yield each phase of the host's work, its terms, and the steps that show it."""
    for graph, section in profile["steps"].items():
        yield "launch_ms", section["launch_ms"], steps[steps.graph == graph]
    for name, terms in profile["host"].items():
        # A new mapping waits for adapters to be copied, which is the GPU's time.
        yield name, terms, steps[steps.activates == 0] if name == "remap_ms" else steps


def _with_swaps(of_reference: Scale, swaps: pd.DataFrame, profile: dict[str, Any]) -> Scale:
    factors = swaps.groupby(swaps.kind.map(SWAPS.get))
    return of_reference | {str(factor): ratio(rows, profile) for factor, rows in factors}


def ratio(swaps: pd.DataFrame, profile: dict[str, Any]) -> float:
    """Return what the swaps took over what the profile expects of them."""
    expected = sum(
        mean_swap_ms(profile, kind, rank) for kind, rank in zip(swaps.kind, swaps.max_lora_rank, strict=True)
    )
    return round(float(swaps.duration_ms.sum() / expected), 3)


def swaps_of(folder: Path, phases: Sequence[str]) -> pd.DataFrame:
    """Return a replay's swaps by the profile's kinds; what a loader did beside the engine is a load."""
    rank = read_meta(folder / "meta.json", META_KEYS)["settings"]["max_lora_rank"]
    table = read_table(folder / "swaps.parquet", SWAP_COLUMNS)
    table = kinds(table[table.phase.isin(phases)])
    prefetched = table.kind == "prefetch"
    if prefetched.any():
        table.loc[prefetched, "duration_ms"] = 1e3 * table.read_s
        table.loc[prefetched, "kind"] = "load_recycled"
    return table.assign(max_lora_rank=rank)


def mean_swap_ms(profile: dict[str, Any], kind: str, rank: int) -> float:
    """Return the mean duration of a swap as the simulator draws it, in ms: between quantiles, evenly."""
    swap = profile["swaps"][kind]
    factor = np.mean([np.mean(swap["spread"][:-1]), np.mean(swap["spread"][1:])])
    return float((swap["constant_ms"] + swap["rank_ms"] * rank) * factor)
