"""Predicted KV cache against engines that were started: `python -m calibrate.kv_capacity`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from calibrate.dataset import read_json
from sim.cli import hydra_entry
from sim.config import EngineConfig, ModelConfig
from sim.errors import DoesNotFit, UserError
from sim.fields import plain_values
from sim.files import write_atomically
from sim.memory import MemoryProfile, num_gpu_blocks, slot_bytes

COLUMNS = ("model", "max_loras", "max_lora_rank", "kv_tokens", "status")


def measured_engines(folder: Path, block_size: int) -> pd.DataFrame:
    """Return a row per measured engine run below `folder`, in COLUMNS; `kv_tokens` counts the null block."""
    rows = []
    for file in sorted(folder.glob("*/meta.json")):
        meta = read_json(file)
        settings = meta["settings"]
        tokens = meta["num_gpu_blocks"] * block_size
        rows.append((meta["model"]["name"], settings["max_loras"], settings["max_lora_rank"], tokens, "ok"))
    if not rows:
        raise UserError(f"measurements={folder}: no */meta.json there; make some with calibrate.measure")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def others(file: Path) -> pd.DataFrame:
    """Return the rows of a CSV with COLUMNS; an empty `status` means that the engine started."""
    try:
        table = pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise UserError(f"runs={file}: not readable as CSV: {error}") from error
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise UserError(f"runs={file}: no column {missing[0]}; expected {', '.join(COLUMNS)}")
    return table[list(COLUMNS)].assign(status=table.status.astype(object).fillna("ok").str.lower())


def overhead_bytes(
    rows: pd.DataFrame, model: ModelConfig, engine: EngineConfig, memory: MemoryProfile
) -> int:
    """Return what the first engine that started had beside weights, slots and KV cache."""
    started = rows[rows.status == "ok"]
    if started.empty or memory.gpu_memory_bytes is None:
        raise UserError(f"model {rows.model.iloc[0]}: no engine that started, to calibrate the others by")
    first = started.iloc[0]
    used = model.weight_bytes() + int(first.max_loras) * slot_bytes(model, int(first.max_lora_rank))
    kv_bytes = int(first.kv_tokens) * model.kv_bytes_per_token()
    return int(memory.gpu_memory_bytes * engine.gpu_memory_utilization) - used - kv_bytes


def predicted_tokens(row: Any, model: ModelConfig, engine: EngineConfig, memory: MemoryProfile) -> float:
    """Return the predicted KV cache in tokens; NaN where it would not fit."""
    loras, rank = int(row.max_loras), int(row.max_lora_rank)
    settings = replace(engine, max_loras=loras, max_cpu_loras=loras, max_lora_rank=rank)
    try:
        return num_gpu_blocks(settings, model, memory) * engine.block_size
    except DoesNotFit:
        return np.nan


def compare(
    rows: pd.DataFrame, models: dict[str, ModelConfig], engine: EngineConfig, gpu_bytes: int
) -> pd.DataFrame:
    """Return the rows with `predicted_kv_tokens`, `error_pct` and `predicted_status` added."""
    tables = []
    for name, group in rows.groupby("model", sort=False):
        if name not in models:
            raise UserError(f"model {name}: not known; conf/kv_capacity.yaml has {', '.join(models)}")
        model, memory = models[str(name)], MemoryProfile(gpu_memory_bytes=gpu_bytes)
        memory = replace(memory, non_kv_overhead_bytes=overhead_bytes(group, model, engine, memory))
        predicted = np.array([predicted_tokens(row, model, engine, memory) for row in group.itertuples()])
        tables.append(
            group.assign(
                predicted_kv_tokens=predicted,
                error_pct=(100 * (predicted / group.kv_tokens - 1)).round(3),
                predicted_status=np.where(np.isnan(predicted), "oom", "ok"),
            )
        )
    return pd.concat(tables, ignore_index=True)


def summary(table: pd.DataFrame) -> str:
    """Return the errors of the engines that started, and how many of those that did not are named."""
    started, failed = table[table.status == "ok"], table[table.status != "ok"]
    errors = started.error_pct.abs()
    text = f"{len(started)} engines: median error {errors.median():.2f} %, worst {errors.max():.2f} %"
    if len(failed):
        named = int((failed.predicted_status == "oom").sum())
        text += f"; of {len(failed)} that ran out of memory, {named} are named"
    return text


def task(cfg: DictConfig) -> None:
    """Compare, print and write the table."""
    config = plain_values(cfg)
    models = {name: ModelConfig(**config["models"][key]) for name, key in config["names"].items()}
    engine = EngineConfig(**{**config["engine"], "max_loras": 1, "max_cpu_loras": None})
    if config["runs"] is None:
        rows = measured_engines(Path(config["measurements"]), engine.block_size)
    else:
        rows = others(Path(config["runs"]))
    table = compare(rows, models, engine, config["gpu_memory_bytes"])
    write_atomically(Path(config["out"]), table.to_csv(index=False).encode())
    print(table.to_string(index=False))
    print(summary(table))


def main() -> None:
    """Entry point."""
    hydra_entry(task, "kv_capacity", "calibrate.kv_capacity")


if __name__ == "__main__":
    main()
