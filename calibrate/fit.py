"""Fit a profile to measurements, without a GPU: `python -m calibrate.fit`, the same bytes each time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from omegaconf import DictConfig

from calibrate.copies import copy_durations
from calibrate.dataset import Measurements, read, reference
from calibrate.forms import FORMS, Quantity
from calibrate.regression import Floats, design, fit, intervals, relative_errors
from sim.cli import hydra_entry
from sim.config import ModelConfig
from sim.errors import UserError
from sim.fields import plain_values
from sim.files import write_atomically
from sim.memory import slot_bytes
from sim.terms import TERMS

DIGITS = 4
SPREAD_LEVELS = np.linspace(0, 1, 21)
HELD_OUT = ("max_loras", "max_lora_rank")
PARTS = 5
HOST_SCALES = ("steps", "load", "activate")
SWAPS = ("load_growing", "load_recycled", "activate")


@dataclass(frozen=True)
class Fitted:
    """One quantity's sum of terms, and what it predicts for steps that it has and has not seen."""

    quantity: Quantity
    terms: Sequence[str]
    coefficients: Floats
    ci95: Floats
    predictions: pd.DataFrame
    tried: dict[str, float]
    """Form -> held-out median error, of all forms tried."""


def fit_quantity(quantity: Quantity, steps: pd.DataFrame, seed: int) -> Fitted:
    """Choose the form with the smallest held-out median error and fit it to all steps that show it."""
    rows = steps[quantity.rows(steps)]
    trials = {", ".join(terms): (terms, held_out(quantity, rows, terms)) for terms in quantity.forms}
    tried = {name: _median_error(table) for name, (_, table) in trials.items()}
    # Forms that differ by terms of zero are as good but for rounding: the first, simplest one is taken.
    terms, unseen = trials[min(tried, key=lambda name: round(tried[name], 6))]
    known = rows.dropna(subset=[quantity.name])
    counts, measured = design(known, terms), known[quantity.name].to_numpy()
    coefficients = fit(counts, measured)
    seen = predictions_of(quantity, rows, design(rows, terms) @ coefficients, "")
    groups = known.run + " " + known.cell
    return Fitted(
        quantity=quantity,
        terms=terms,
        coefficients=coefficients,
        ci95=intervals(counts, measured, groups, seed),
        predictions=pd.concat([seen, unseen]),
        tried=tried,
    )


def held_out(quantity: Quantity, rows: pd.DataFrame, terms: Sequence[str]) -> pd.DataFrame:
    """Hold out each value of `max_loras` and `max_lora_rank`, whole; predict it by a fit to the rest.

    A fit is asked about one unseen value at a time: a held-out step whose other value has left with it is not
    predicted. Where one engine was measured, each fifth of its cells is held out instead.
    """
    if _is_one_engine(rows):
        return held_out_cells(quantity, rows, terms)
    counts, measured = design(rows, terms), rows[quantity.name].to_numpy()
    known = ~np.isnan(measured)
    tables = []
    for column, other in (HELD_OUT, HELD_OUT[::-1]):
        values = sorted(rows.loc[known, column].unique())
        for value in values if len(values) > 1 else ():
            left = known & (rows[column] != value).to_numpy()
            held = ((rows[column] == value) & rows[other].isin(rows.loc[left, other])).to_numpy()
            coefficients = fit(counts[left], measured[left])
            tables.append(
                predictions_of(quantity, rows[held], counts[held] @ coefficients, f"{column}={value}")
            )
    return pd.concat(tables)


def _is_one_engine(rows: pd.DataFrame) -> bool:
    return all(rows[column].nunique() == 1 for column in HELD_OUT)


def held_out_cells(quantity: Quantity, rows: pd.DataFrame, terms: Sequence[str]) -> pd.DataFrame:
    """Hold out each fifth of the cells (each, where there are fewer), and predict it by a fit to the rest."""
    counts, measured = design(rows, terms), rows[quantity.name].to_numpy()
    known = ~np.isnan(measured)
    names = rows.cell[known].unique()
    parts = min(PARTS, len(names))
    part = rows.cell.map({name: number % parts for number, name in enumerate(names)}).fillna(0).to_numpy()
    tables = []
    for number in range(parts):
        held, left = part == number, known & (part != number)
        coefficients = fit(counts[left], measured[left])
        name = f"cells, part {number + 1} of {parts}"
        tables.append(predictions_of(quantity, rows[held], counts[held] @ coefficients, name))
    return pd.concat(tables)


def predictions_of(quantity: Quantity, rows: pd.DataFrame, predicted: Floats, held: str) -> pd.DataFrame:
    """Return a table of predictions; `measured_ms` is NaN for steps that do not show the quantity."""
    return pd.DataFrame(
        {
            "run": rows.run,
            "step": rows.index,
            "regime": quantity.regime,
            "quantity": quantity.name,
            "split": "heldout" if held else "train",
            "held_out": held,
            "predicted_ms": predicted,
            "measured_ms": rows[quantity.name],
            "num_tokens": rows.num_tokens,
            "num_adapters": rows.num_adapters,
        }
    )


def _median_error(table: pd.DataFrame) -> float:
    known = table.dropna(subset=["measured_ms"])
    return float(np.median(relative_errors(known.predicted_ms.to_numpy(), known.measured_ms.to_numpy())))


def whole_steps(predictions: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Return predictions of whole steps on the GPU's timeline: the longer of GPU work and launches."""
    keys = ["step", "regime", "split", "held_out"]
    gpu, launch = (
        predictions[predictions.quantity == name].set_index(keys) for name in ("gpu_ms", "launch_ms")
    )
    both = launch.join(gpu.predicted_ms.rename("gpu_ms"), how="inner")
    both["predicted_ms"] = both[["predicted_ms", "gpu_ms"]].max(axis=1)
    table = both.drop(columns="gpu_ms").reset_index()
    table["measured_ms"] = steps.step_ms.reindex(table.step).to_numpy()
    return table.assign(quantity="step")[predictions.columns]


def error_table(predictions: pd.DataFrame, by: str = "split") -> pd.DataFrame:
    """Return count, median and 90th percentile of the errors in percent, by regime, quantity and `by`."""
    known = predictions[predictions[by] != ""].dropna(subset=["measured_ms"])
    errors = 100 * relative_errors(known.predicted_ms.to_numpy(), known.measured_ms.to_numpy())
    grouped = known.assign(error=errors).groupby(["regime", "quantity", by], sort=True).error
    table = pd.DataFrame(
        {"count": grouped.size(), "median_abs_pct": grouped.median(), "p90_abs_pct": grouped.quantile(0.9)}
    )
    return table.round(2).reset_index()


def fit_swaps(swaps: pd.DataFrame) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the profile's `swaps` section (a mean linear in rank, and its spread) and a table of what was
    measured.
    """
    section: dict[str, Any] = {}
    tables = []
    for kind in SWAPS:
        rows = swaps[swaps.kind == kind]
        counts = np.column_stack([np.ones(len(rows)), rows["rank"]])
        coefficients = fit(counts, rows.duration_ms.to_numpy())
        mean = rows.duration_ms.groupby(rows["rank"]).transform("mean")
        coefficients *= _mean_ratio(rows.duration_ms.to_numpy(), counts @ coefficients)
        section[kind] = {
            "constant_ms": rounded(coefficients[0]),
            "rank_ms": rounded(coefficients[1]),
            "spread": [rounded(value) for value in np.quantile(rows.duration_ms / mean, SPREAD_LEVELS)],
        }
        quantiles = rows.groupby("rank").duration_ms.quantile(np.array([0.1, 0.5, 0.9, 1.0])).unstack()
        quantiles.columns = pd.Index(["p10_ms", "median_ms", "p90_ms", "max_ms"])
        tables.append(quantiles.assign(kind=kind, count=rows.groupby("rank").size()).reset_index())
    columns = ["kind", "rank", "count", "p10_ms", "median_ms", "p90_ms", "max_ms"]
    return section, pd.concat(tables)[columns].round(3)


def copy_section(steps: pd.DataFrame) -> dict[str, Any]:
    """Return what a copy to a slot takes of the GPU; nothing where the host's work on it takes as long."""
    copies_ms = copy_durations(steps)
    return {} if copies_ms.empty else {"copy": {"rank_ms": rounded(float(copies_ms.median()))}}


def _mean_ratio(measured: Floats, predicted: Floats) -> float:
    """Relative least squares favours short durations; a queue feels the mean."""
    return float(measured.sum() / predicted.sum())


def memory(measurements: Measurements, model: dict[str, Any]) -> dict[str, int]:
    """Return the `memory` section: what vLLM's start-up profiling found beside weights and slots.

    Where vLLM was told its KV cache, and did not look, the number of blocks that it had.
    """
    host_memory_bytes = min(meta["host_memory_bytes"] for meta in measurements.metas)
    if any("available_kv_cache_bytes" not in meta["memory"] for meta in measurements.metas):
        blocks = min(meta["num_gpu_blocks"] for meta in measurements.metas)
        return {"num_gpu_blocks": blocks, "host_memory_bytes": host_memory_bytes}
    shape = ModelConfig(**model)
    overheads = [
        meta["memory"]["requested_bytes"]
        - meta["memory"]["available_kv_cache_bytes"]
        - shape.weight_bytes()
        - meta["settings"]["max_loras"] * slot_bytes(shape, meta["settings"]["max_lora_rank"])
        for meta in measurements.metas
    ]
    return {
        "gpu_memory_bytes": measurements.metas[0]["memory"]["total_bytes"],
        "non_kv_overhead_bytes": int(np.median(overheads)),
        "host_memory_bytes": host_memory_bytes,
    }


def provenance(measurements: Measurements, root: Path) -> dict[str, Any]:
    """Return where a profile comes from."""
    first = measurements.metas[0]
    same = {key: first[key] for key in ("gpu", "driver", "cpu", "cpu_cores", "python", "versions")}
    dates = sorted(meta["date"] for meta in measurements.metas)
    return {
        **same,
        "dates": [dates[0], dates[-1]],
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "folder": root.as_posix(),
        "files_sha256": measurements.sha256,
    }


def ranges(measurements: Measurements) -> dict[str, list[int]]:
    """Return the lowest and highest value measured of what a simulation may exceed."""
    steps, swaps = measurements.steps, measurements.swaps
    columns = (
        "max_loras",
        "max_lora_rank",
        "num_reqs",
        "num_tokens",
        "num_adapters",
        "kv_tokens",
        "host_cache_entries",
    )
    measured = {name: [int(steps[name].min()), int(steps[name].max())] for name in columns}
    return {**measured, "adapter_rank": [int(swaps["rank"].min()), int(swaps["rank"].max())]}


def rounded(value: float) -> float:
    """Round to four significant digits: more would be noise, and would differ between machines."""
    return float(f"{value:.{DIGITS}g}")


def terms_section(fitted: Fitted) -> dict[str, Any]:
    """Return a quantity's terms as the profile has them; terms whose coefficient is zero are left out."""
    rows = zip(fitted.terms, fitted.coefficients, fitted.ci95, strict=True)
    return {
        term: {
            "value": rounded(value),
            "ci95": [rounded(low), rounded(high)],
            "unit": f"ms for {TERMS[term].unit}",
        }
        for term, value, (low, high) in rows
        if value > 0
    }


def references(measurements: Measurements, of_swaps: Measurements) -> dict[int, dict[str, float]]:
    """Return the profile's `reference_ms` section: what the host reference run took, by rank."""
    steps, swaps = measurements.steps, of_swaps.swaps
    return {
        int(rank): {
            name: rounded(value)
            for name, value in reference(
                steps[steps.max_lora_rank == rank],
                swaps[swaps.max_lora_rank == rank],
                str(measurements.folder),
            ).items()
        }
        for rank in sorted(steps.max_lora_rank.unique())
    }


def profile(
    config: dict[str, Any],
    measurements: Measurements,
    of_swaps: Measurements,
    fits: list[Fitted],
    errors: pd.DataFrame,
) -> dict[str, Any]:
    """Return the whole profile; swaps may have been measured apart from steps."""
    sections: dict[str, Any] = {"steps": {}, "host": {}}
    for fitted in fits:
        place = fitted.quantity.graph
        target = sections["host"] if place is None else sections["steps"].setdefault(place, {})
        without = config["without"].get(fitted.quantity.name, ()) if place is None else ()
        section = terms_section(fitted)
        target[fitted.quantity.name] = {key: term for key, term in section.items() if key not in without}
    held = errors[errors.split == "heldout"]
    apart = {} if of_swaps is measurements else {"swaps": provenance(of_swaps, of_swaps.folder)}
    return {
        "kind": "fitted",
        "schema_version": 1,
        "name": config["name"],
        "model": config["model"]["name"],
        **sections,
        "swaps": fit_swaps(of_swaps.swaps)[0] | copy_section(of_swaps.steps),
        "host_scale": dict.fromkeys(HOST_SCALES, 1.0),
        "reference_ms": references(measurements, of_swaps),
        "memory": memory(measurements, config["model"]),
        "ranges": ranges(measurements),
        "heldout_error_pct": {
            f"{row.regime}, {row.quantity}": {"median": row.median_abs_pct, "p90": row.p90_abs_pct}
            for row in held.itertuples()
        },
        "forms_tried": {
            f"{fitted.quantity.regime}, {fitted.quantity.name}": [
                {"terms": form, "heldout_median_pct": round(100 * error, 2)}
                for form, error in fitted.tried.items()
            ]
            for fitted in fits
        },
        "provenance": provenance(measurements, Path(config["measurements"])) | apart,
    }


def refuse_incomplete(measurements: Measurements, model: str) -> None:
    """Raise UserError for measurements of another model, and for those that leave something unknown."""
    where = f"measurements={measurements.folder}"
    for meta in measurements.metas:
        if meta["model"]["name"] != model:
            raise UserError(f"{where}: run {meta['name']} is of {meta['model']['name']}, expected {model}")
    for quantity in FORMS:
        known = measurements.steps[quantity.rows(measurements.steps)].dropna(subset=[quantity.name])
        if _is_one_engine(measurements.steps):
            if known.cell.nunique() < 2:
                raise UserError(
                    f"{where}: expected two cells or more that show {quantity.name} ({quantity.regime}), "
                    f"found {known.cell.nunique()}; or runs of several engines"
                )
            continue
        if all(
            known.groupby(other)[column].nunique().max() < 2 or known.empty
            for column, other in (HELD_OUT, HELD_OUT[::-1])
        ):
            raise UserError(
                f"{where}: expected runs with two values of max_loras or max_lora_rank, the other one the "
                f"same, that show {quantity.name} ({quantity.regime})"
            )


def refuse_without_swaps(measurements: Measurements) -> None:
    """Raise UserError for measurements that lack a kind of swap."""
    for kind in SWAPS:
        if not (measurements.swaps.kind == kind).any():
            where = f"measurements={measurements.folder}"
            raise UserError(f"{where}: expected a swap of kind {kind}, found none")


HEADER = """# Made by `python -m calibrate.fit` from the files named under provenance; do not edit.
# Durations in ms, coefficients with 95 % bootstrap intervals. A swap's mean is constant_ms + rank_ms * rank,
# its spread the quantiles 0, 5, ... 100 % of measured / mean. Terms: sim/terms.py, forms: calibrate/forms.py.
"""


def task(cfg: DictConfig) -> None:
    """Fit, and write the profile and the fit's tables."""
    config = plain_values(cfg)
    measurements = read(Path(config["measurements"]))
    refuse_incomplete(measurements, config["model"]["name"])
    of_swaps = measurements if config["swaps"] is None else read(Path(config["swaps"]))
    refuse_without_swaps(of_swaps)
    fits = [fit_quantity(quantity, measurements.steps, config["seed"]) for quantity in FORMS]
    predictions = pd.concat([fitted.predictions for fitted in fits], ignore_index=True)
    predictions = pd.concat([predictions, whole_steps(predictions, measurements.steps)], ignore_index=True)
    errors = error_table(predictions)
    text = HEADER + yaml.safe_dump(
        profile(config, measurements, of_swaps, fits, errors), sort_keys=False, width=120
    )
    write_atomically(Path(config["out"]), text.encode())
    write_tables(Path(config["tables"]), predictions, errors, fit_swaps(of_swaps.swaps)[1])
    print(errors.to_string(index=False))
    print(f"profile: {config['out']}   tables: {config['tables']}")


def write_tables(out: Path, predictions: pd.DataFrame, errors: pd.DataFrame, swaps: pd.DataFrame) -> None:
    """Write what the profile was made of and how good it is."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "errors.csv", errors.to_csv(index=False).encode())
    write_atomically(out / "heldout.csv", error_table(predictions, "held_out").to_csv(index=False).encode())
    write_atomically(out / "swaps.csv", swaps.to_csv(index=False).encode())
    kept = (
        predictions.dropna(subset=["measured_ms"])
        .drop(columns=["step"])
        .round({"predicted_ms": 4, "measured_ms": 4})
    )
    write_atomically(out / "predictions.parquet", kept.to_parquet(compression="zstd", index=False))


def main() -> None:
    """Entry point."""
    hydra_entry(task, "fit", "calibrate.fit")


if __name__ == "__main__":
    main()
