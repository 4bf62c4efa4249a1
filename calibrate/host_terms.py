"""The host's speed on the machine of a replay, which differs between machines and from minute to minute.

Three ways to know it, as factors on a profile's host terms: from the short reference run at the engine's
start; from the other replays of the same engine, or its longer reference run where there are none; from the
replay itself, which is no prediction but tells an error of the simulated mechanism from one of the host's
speed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calibrate.dataset import kinds, read_meta, read_table, reference
from calibrate.phases import SWAP_REFERENCE
from sim.errors import UserError
from sim.profile import SWAPS

META_KEYS = ("settings.max_lora_rank",)
SWAP_COLUMNS = ("phase", "kind", "duration_s", "host_cache_entries")
STALL = 5
"""A swap that takes so many times the median is a stall of the host, not its speed."""

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


def from_swaps(folder: Path, others: Sequence[Path], profile: dict[str, Any], of_reference: Scale) -> Scale:
    """Return the factors that the engine's other replays show, or its longer reference; without stalls.

    What they do not show stays as the reference run has it.
    """
    tables = [swaps_of(other, ["replay"]) for other in others] or [swaps_of(folder, [SWAP_REFERENCE])]
    found = pd.concat(tables, ignore_index=True)
    typical = found.groupby(found.kind.map(SWAPS.get)).duration_ms.transform("median")
    return _with_swaps(of_reference, found[found.duration_ms <= STALL * typical], profile)


def from_the_replay_itself(folder: Path, profile: dict[str, Any], of_reference: Scale) -> Scale:
    """Return the factors with the replay's own mean swap durations, stalls included."""
    return _with_swaps(of_reference, swaps_of(folder, ["replay"]), profile)


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
