"""Predictions of many runs, in processes of their own."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import pandas as pd
from tqdm import tqdm

from calibrate.bsc.hour import Hour, simulate
from calibrate.bsc.settings import Setting, setting
from sim.config import EngineConfig, ModelConfig
from sim.errors import UserError

SPLIT_KEYS = ("model", "max_loras", "max_cpu_loras", "max_lora_rank", "ranks", "rate_values", "rate_counts")


def part(row: Mapping[Any, Any]) -> str:
    """Return the part of the split a row is in: mechanisms are sought in `look`, confirmed in `confirm`."""
    words = [" ".join(str(row[key]).split()).removesuffix(".0") for key in SPLIT_KEYS]
    return ("look", "confirm")[hashlib.sha256("|".join(words).encode()).digest()[0] % 2]


def settings_of(table: pd.DataFrame, config: Mapping[str, Any]) -> list[Setting]:
    """Return the settings of all rows. Raises UserError.

    A row without results takes the mean lengths of its model's other rows, or those of the configuration.
    """
    known = table[table.completed.notna() & (table.completed > 0)]
    found = []
    for number, row in enumerate(table.to_dict("records"), 2):
        where = f"runs={config['runs']}, line {number}"
        if row["model"] not in config["names"]:
            accepted = ", ".join(config["names"])
            raise UserError(f"{where}: model {row['model']}: expected one of {accepted}")
        of_model = known[known.model == row["model"]]
        lengths = config["mean_input_length"], config["mean_output_length"]
        if len(of_model):
            total = of_model.completed.sum()
            lengths = of_model.in_tokens.sum() / total, of_model.out_tokens.sum() / total
        found.append(setting(row, lengths, where))
    return found


def predict(one: Setting, config: Mapping[str, Any]) -> Hour:
    """Return the prediction for one setting."""
    key = config["names"][one.model]
    engine = {**config["engine"], **config["overrides"][one.model], "max_loras": 1, "max_cpu_loras": None}
    model = ModelConfig(**config["models"][key])
    return simulate(one, EngineConfig(**engine), model, config["profiles"][key], config["seed"])


def predict_all(found: list[Setting], config: Mapping[str, Any]) -> list[Hour]:
    """Return the predictions, made in processes of their own, those that take longest first."""
    hours: dict[int, Hour] = {}
    order = sorted(
        range(len(found)), key=lambda number: -min(found[number].request_rate, 30 + found[number].max_loras)
    )
    processes = config["processes"] or os.cpu_count() or 1
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(predict, found[number], config): number for number in order}
        for future in tqdm(as_completed(futures), total=len(futures), unit="run", desc="simulated hours"):
            hours[futures[future]] = future.result()
    return [hours[number] for number in range(len(found))]
