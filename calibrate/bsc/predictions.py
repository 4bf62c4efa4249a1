"""Predictions of many runs, in processes of their own."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import pandas as pd
from tqdm import tqdm

from calibrate.bsc.front_end import FrontEndCosts
from calibrate.bsc.hour import Hour, Server, simulate
from calibrate.bsc.settings import OF_LENGTHS, Setting, setting
from sim.config import EngineConfig, ModelConfig
from sim.errors import UserError

RANGED = ("sim_out_tok_s", "sim_mean_itl_ms", "sim_mean_ttft_ms", "sim_completed", "sim_num_preempted")
"""Columns that get `_low`, `_mean` and `_high` where there are several seeds."""
SPLIT_KEYS = ("model", "max_loras", "max_cpu_loras", "max_lora_rank", "ranks", "rate_values", "rate_counts")


def part(row: Mapping[Any, Any]) -> str:
    """Return the part of the split a row is in: mechanisms are sought in `look`, confirmed in `confirm`."""
    words = [" ".join(str(row[key]).split()).removesuffix(".0") for key in SPLIT_KEYS]
    return ("look", "confirm")[hashlib.sha256("|".join(words).encode()).digest()[0] % 2]


def settings_of(table: pd.DataFrame, config: Mapping[str, Any]) -> list[Setting]:
    """Return the settings of all rows. Raises UserError.

    A row without results takes the mean lengths of its model's other rows, or those of the configuration.
    """
    known = table[table.completed > 0] if set(OF_LENGTHS) <= set(table) else table.iloc[:0]
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


def predict(one: Setting, config: Mapping[str, Any], seed: int) -> Hour:
    """Return the prediction for one setting."""
    key = config["names"][one.model]
    engine = {**config["engine"], **config["overrides"][one.model], "max_loras": 1, "max_cpu_loras": None}
    model = ModelConfig(**config["models"][key])
    costs = FrontEndCosts(**config["front_end"])
    server = Server(EngineConfig(**engine), model, config["profiles"][key], costs)
    return simulate(one, server, seed)


def predict_all(found: list[Setting], config: Mapping[str, Any]) -> list[list[Hour]]:
    """Return for each setting a prediction for each of `seeds` seeds, `seed` first. Raises UserError.

    They are made in processes of their own, those that take longest first.
    """
    seeds = range(config["seed"], config["seed"] + _positive(config, "seeds"))
    processes = _positive(config, "processes") if config["processes"] is not None else os.cpu_count() or 1
    hours: dict[tuple[int, int], Hour] = {}
    work = sorted(
        ((number, seed) for number in range(len(found)) for seed in seeds),
        key=lambda item: -min(found[item[0]].request_rate, 30 + found[item[0]].max_loras),
    )
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(predict, found[number], config, seed): (number, seed) for number, seed in work}
        for future in tqdm(as_completed(futures), total=len(futures), unit="run", desc="simulated hours"):
            hours[futures[future]] = future.result()
    return [[hours[number, seed] for seed in seeds] for number in range(len(found))]


def columns(hours: list[Hour]) -> dict[str, Any]:
    """Return the columns of a row: the prediction of the first seed, and of several the range of all."""
    found = hours[0].columns()
    if len(hours) > 1:
        values = pd.DataFrame([hour.columns() for hour in hours])
        for name in RANGED:
            found |= {f"{name}_low": values[name].min(), f"{name}_mean": values[name].mean()}
            found |= {f"{name}_high": values[name].max()}
    return found


def _positive(config: Mapping[str, Any], key: str) -> int:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{key}={value}: expected an integer of at least 1")
    return value
