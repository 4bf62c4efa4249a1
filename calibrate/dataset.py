"""Measurement files as tables: a row a step with the durations a profile is made of, a row a swap."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim.errors import UserError

HEADROOM = 1.05
"""A step counts as bound by the GPU when its GPU time exceeds its launch time by this factor."""


STEP_COLUMNS = (
    *(
        "phase",
        "cell",
        "graph",
        "num_padded_tokens",
        "num_reqs",
        "num_tokens",
        "num_prefill_reqs",
        "attention_work",
    ),
    *("kv_tokens", "num_adapters", "num_lora_tokens", "num_waiting", "host_cache_entries", "mapping_s"),
    *("loads", "load_s", "activates", "activate_s", "schedule_start_s", "lora_start_s", "lora_end_s"),
    *("launch_start_s", "launch_end_s", "result_end_s", "update_end_s"),
    *("gpu_begin_s", "gpu_forward_s", "gpu_end_s"),
)
SWAP_COLUMNS = ("phase", "kind", "rank", "duration_s", "host_cache_entries")
META_KEYS = (
    *("name", "date", "gpu", "driver", "cpu", "cpu_cores", "host_memory_bytes", "python"),
    *("versions", "model.name", "settings.max_loras", "settings.max_lora_rank"),
    *("memory.total_bytes", "memory.requested_bytes"),
)


@dataclass(frozen=True)
class Measurements:
    """All engine runs of one model on one host."""

    folder: Path
    metas: list[dict[str, Any]]
    steps: pd.DataFrame
    swaps: pd.DataFrame
    sha256: dict[str, str]
    """File (relative to the folder) -> digest."""


def read(folder: Path) -> Measurements:
    """Read every engine run below `folder`. Raises UserError for a folder or file that is none."""
    files = sorted(folder.glob("*/meta.json"))
    if not files:
        raise UserError(
            f"{folder}: no measurements (*/meta.json) there; make some with python -m calibrate.measure"
        )
    metas, steps, swaps, digests = [], [], [], {}
    for file in files:
        meta = read_meta(file, META_KEYS)
        settings = {
            "run": meta["name"],
            **{key: meta["settings"][key] for key in ("max_loras", "max_lora_rank")},
        }
        metas.append(meta)
        steps.append(durations(read_table(file.parent / "steps.parquet", STEP_COLUMNS)).assign(**settings))
        swaps.append(kinds(read_table(file.parent / "swaps.parquet", SWAP_COLUMNS)).assign(**settings))
        for part in (file, file.parent / "steps.parquet", file.parent / "swaps.parquet"):
            digests[part.relative_to(folder).as_posix()] = hashlib.sha256(part.read_bytes()).hexdigest()
    return Measurements(
        folder, metas, pd.concat(steps, ignore_index=True), pd.concat(swaps, ignore_index=True), digests
    )


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; UserError where it is unreadable or truncated."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable as JSON ({error}); measure that run again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a JSON object")
    return content


def read_meta(file: Path, keys: Collection[str]) -> dict[str, Any]:
    """Read a `meta.json`; UserError where it is unreadable or lacks one of `keys` (`settings.max_loras`)."""
    meta = read_json(file)
    for key in keys:
        value: Any = meta
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise UserError(f"{file}: missing {key}; measure that run again")
            value = value[part]
    return meta


def read_table(file: Path, columns: Collection[str] = ()) -> pd.DataFrame:
    """Read a parquet file; UserError where it is missing, unreadable or truncated, or lacks `columns`."""
    try:
        table = pd.read_parquet(file)
    except Exception as error:  # pyarrow raises its own kinds for each way a file can be broken
        raise UserError(f"{file}: not readable as parquet ({error}); measure that run again") from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise UserError(f"{file}: missing columns {', '.join(missing)}; measure that run again")
    return table


def durations(steps: pd.DataFrame) -> pd.DataFrame:
    """Add the durations of `sim.costs.StepCost` to a run's steps, in ms; NaN where a step does not show one.

    `schedule_ms` leaves out loads, activations and the mapping; `prepare_ms` is known where the mapping
    stayed and `remap_ms` where it changed: from when the GPU had finished the step before, which the host
    then waits for, to the first launch. `gpu_ms` is known where the GPU, not the launches, took longest.
    """
    swapped_s = steps.load_s + steps.activate_s
    changed = steps.mapping_s > 0
    adapters_s = steps.lora_end_s - steps.lora_start_s - swapped_s - steps.mapping_s
    mapped_s = (steps.lora_end_s - steps.mapping_s).clip(lower=steps.gpu_begin_s)
    gpu_s, launch_s = steps.gpu_end_s - steps.gpu_forward_s, steps.launch_end_s - steps.launch_start_s
    seconds = {
        "step_ms": gpu_s,
        "gpu_ms": gpu_s.where((steps.graph != "none") | (gpu_s > HEADROOM * launch_s)),
        "launch_ms": launch_s,
        "schedule_ms": steps.lora_start_s - steps.schedule_start_s + adapters_s,
        "prepare_ms": (steps.launch_start_s - steps.lora_end_s).where(~changed),
        "remap_ms": (steps.launch_start_s - mapped_s).where(changed & (steps.launch_start_s > mapped_s)),
        "update_ms": steps.update_end_s - steps.result_end_s,
    }
    return steps.assign(**{name: 1e3 * value for name, value in seconds.items()})


def kinds(swaps: pd.DataFrame) -> pd.DataFrame:
    """Add to a run's swaps whether a load made the engine allocate pinned memory, or used some again.

    Torch keeps the pinned memory of adapters that have left, so a load allocates only when more adapters are
    in the host cache than ever before. A load comes before the eviction that it causes.
    """
    entries = swaps.host_cache_entries + 1
    growing = entries > entries.where(swaps.kind == "load").cummax().shift(fill_value=0).ffill()
    name = swaps.kind.mask(swaps.kind == "load", "load_recycled").mask(
        (swaps.kind == "load") & growing, "load_growing"
    )
    return swaps.assign(kind=name, duration_ms=1e3 * swaps.duration_s)


def reference(steps: pd.DataFrame, swaps: pd.DataFrame, where: str) -> dict[str, float]:
    """Return the medians of the host reference run, in ms: launches without a graph, loads, activations.

    Every engine run of a calibration begins with it, and so does a replay: see `calibrate.phases.reference`.
    Raises UserError, which names `where`, if it is not there.
    """
    launched = steps[(steps.phase == "reference") & (steps.graph == "none")]
    swapped = swaps[swaps.phase == "reference"]
    medians = {
        "steps": float(1e3 * (launched.launch_end_s - launched.launch_start_s).median()),
        "load": float(1e3 * swapped[swapped.kind.str.startswith("load")].duration_s.median()),
        "activate": float(1e3 * swapped[swapped.kind == "activate"].duration_s.median()),
    }
    for name, median in medians.items():
        if np.isnan(median):
            raise UserError(f"{where}: no {name} in the reference run; measure that run again")
    return medians
