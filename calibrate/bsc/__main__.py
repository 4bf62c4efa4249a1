"""Predict the study's runs from their settings alone: `python -m calibrate.bsc runs=PATH.csv`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from calibrate.bsc.predictions import columns, part, predict_all, settings_of
from calibrate.bsc.score import summary, text, with_numbers
from calibrate.bsc.settings import COLUMNS
from calibrate.bsc.tables import read
from sim.cli import hydra_entry
from sim.errors import UserError
from sim.files import write_atomically

CSV_FLOAT = "%.10g"


def task(cfg: DictConfig) -> None:
    """Predict, score, print and write."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    table = with_numbers(read(Path(config["runs"]), COLUMNS, "runs"))
    table = table.loc[:, ~table.columns.str.startswith("sim_")]
    if table.empty:
        raise UserError(f"runs={config['runs']}: no rows")
    hours = predict_all(settings_of(table, config), config)
    predicted = pd.DataFrame([columns(of_row) for of_row in hours], index=table.index)
    predicted = predicted.replace({np.inf: np.nan})
    table = pd.concat([table, predicted], axis=1)
    table["sim_part"] = [part(row) for row in table.to_dict("records")]
    scores = summary(table)
    out = Path(config["out"])
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "runs.csv", table.to_csv(index=False, float_format=CSV_FLOAT).encode())
    write_atomically(out / "summary.json", (json.dumps(scores, indent=2) + "\n").encode())
    print(text(scores))
    print(f"predictions: {out / 'runs.csv'}   scores: {out / 'summary.json'}")


def main() -> None:
    """Entry point."""
    hydra_entry(task, "bsc", "calibrate.bsc")


if __name__ == "__main__":
    main()
