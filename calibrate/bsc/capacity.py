"""Which of the study's engines start, and with how large a KV cache: `python -m calibrate.bsc.capacity`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from calibrate.bsc.tables import read
from calibrate.kv_capacity import COLUMNS, predicted_tokens, summary
from sim.cli import hydra_entry
from sim.config import EngineConfig, ModelConfig
from sim.errors import UserError
from sim.files import write_atomically
from sim.memory import MemoryProfile


def predict(rows: pd.DataFrame, config: dict[str, Any]) -> pd.DataFrame:
    """Return the rows with `predicted_kv_tokens`, `error_pct` and `predicted_status`. Raises UserError."""
    tables = []
    for name, group in rows.groupby("model", sort=False):
        key = config["names"].get(name)
        if key is None:
            raise UserError(f"kv_capacity: model {name}: expected one of {', '.join(config['names'])}")
        model = ModelConfig(**config["models"][key])
        settings = {**config["engine"], **config["overrides"][name], "max_loras": 1, "max_cpu_loras": None}
        engine = replace(EngineConfig(**settings), max_model_len=model.max_position_embeddings)
        memory = MemoryProfile(**config["profiles"][key]["memory"])
        predicted = np.array([predicted_tokens(row, model, engine, memory) for row in group.itertuples()])
        tables.append(
            group.assign(
                status=group.status.astype(object).fillna("ok").str.lower(),
                predicted_kv_tokens=predicted,
                error_pct=(100 * (predicted / group.kv_tokens - 1)).round(3),
                predicted_status=np.where(np.isnan(predicted), "oom", "ok"),
            )
        )
    return pd.concat(tables, ignore_index=True)


def task(cfg: DictConfig) -> None:
    """Predict, print and write the table."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    table = predict(read(Path(config["kv_capacity"]), COLUMNS, "kv_capacity")[list(COLUMNS)], config)
    out = Path(config["out"]) / "kv_capacity.csv"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, table.to_csv(index=False).encode())
    print(summary(table))


def main() -> None:
    """Entry point."""
    hydra_entry(task, "bsc", "calibrate.bsc.capacity")


if __name__ == "__main__":
    main()
