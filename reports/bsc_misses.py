"""What the predictions of the study's runs miss: by how much, and which rows carry it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reports.numbers import number, whole

TARGETS_PCT = {
    "output throughput": 4.0,
    "ITL": 8.0,
    "TTFT, completed requests": 15.0,
    "TTFT, all requests": 15.0,
}
"""Of the SMAPE."""
BIAS_TARGET_PCT, REGRET_TARGET_PCT = 2.0, 0.2
COLUMNS = {
    "output throughput": ("out_tok_s", "sim_out_tok_s", "tokens/s"),
    "ITL": ("mean_itl_ms", "sim_mean_itl_ms", "ms"),
    "TTFT, completed requests": ("mean_ttft_ms", "sim_mean_ttft_ms", "ms"),
    "TTFT, all requests": ("ttft_all_ms", "sim_ttft_all_ms", "ms"),
}
"""Measured, ours, and their unit."""
FEW = 5
"""So many rows are named one by one."""


@dataclass(frozen=True)
class Measure:
    """A score that is the mean of what each row adds."""

    name: str
    target_pct: float

    def of_rows(self, predicted: Any, measured: Any) -> Any:
        """Return what each row adds, in percent."""
        if self.name == "bias":
            return 100 * (predicted / measured - 1)
        total = np.abs(predicted) + np.abs(measured)
        return 100 * 2 * np.abs(predicted - measured) / np.where(total == 0, 1, total)

    def is_met(self, value_pct: float) -> bool:
        """Whether a mean is within the target."""
        return abs(value_pct) < self.target_pct if self.name == "bias" else value_pct <= self.target_pct


def misses(rows: pd.DataFrame, scores: Mapping[str, Any]) -> list[str]:
    """Return the lines of the section: each target that is missed, or that none is."""
    lines = []
    for metric in COLUMNS:
        if metric in TARGETS_PCT:
            lines += _of_metric(rows, metric, Measure("SMAPE", TARGETS_PCT[metric]))
        lines += _of_metric(rows, metric, Measure("bias", BIAS_TARGET_PCT))
    lines += _of_regret(scores)
    return lines or ["Every target is met."]


def _of_metric(rows: pd.DataFrame, metric: str, measure: Measure) -> list[str]:
    measured_name, ours, _ = COLUMNS[metric]
    rows = rows[rows[ours].notna() & ((rows[measured_name] != 0) | (measure.name != "bias"))]
    added = measure.of_rows(rows[ours].to_numpy(dtype=float), rows[measured_name].to_numpy(dtype=float))
    if not len(rows) or measure.is_met(float(added.mean())):
        return []
    order = np.argsort(-np.abs(added))
    num_carriers = next(
        (n for n in range(1, len(order)) if measure.is_met(float(added[order[n:]].mean()))), len(order)
    )
    mean = number(float(added.mean()))
    head = f"* {metric}: the {measure.name} is {mean} % (target {measure.target_pct:g} %)."
    if num_carriers <= min(FEW, len(order) - 1):
        without = number(float(added[order[num_carriers:]].mean()))
        head += f" {_rows_alone(num_carriers)}; without, it is {without} %:"
        return [head, *(_row(rows.iloc[index], metric) for index in order[:num_carriers])]
    parts = [
        f"{regime} {number(float(added[(rows.regime == regime).to_numpy()].mean()))} %"
        for regime in sorted(set(rows.regime))
    ]
    head += (
        f" {num_carriers} of {len(rows)} rows carry it; by regime: {', '.join(parts)}. Most of it is from:"
    )
    return [head, _row(rows.iloc[order[0]], metric)]


def _rows_alone(num_rows: int) -> str:
    return "One row alone carries it" if num_rows == 1 else f"{num_rows} rows alone carry it"


def _row(row: Any, metric: str) -> str:
    measured, ours, unit = COLUMNS[metric]
    text = f"  * {setting(row)}: measured {number(row[measured])}, predicted {number(row[ours])} {unit}"
    low, high = f"{ours}_low", f"{ours}_high"
    if metric.startswith("TTFT"):
        sent = row["offered_req_s"] * row["total_time"]
        shares = (100 * row[name] / sent for name in ("completed", "sim_completed"))
        text += "; completed {:.1f} % of what was sent, predicted {:.1f} %".format(*shares)
    if low in row and pd.notna(row[low]):
        text += f" ({number(row[low])} to {number(row[high])} over the seeds)"
    return text


def setting(row: Any) -> str:
    """Return a row's settings in a few words."""
    model = str(row["model"]).split("-", maxsplit=1)[0]
    rate = str(row["rate_values"]).split()[-1]
    ranks = " ".join(str(row["ranks"]).split())
    slots, adapters = whole(row["max_loras"]), whole(row["max_cpu_loras"])
    return f"{model}, {adapters} adapters of ranks {ranks} at up to {rate}/s in {slots} slots"


def _of_regret(scores: Mapping[str, Any]) -> list[str]:
    found: Mapping[str, Any] = scores["regret"]["ours"]
    if found.get("mean_pct") is None or found["mean_pct"] < REGRET_TARGET_PCT:
        return []
    missed: Sequence[Mapping[str, Any]] = scores["missed_choices"]
    head = (
        f"* Regret: {number(found['mean_pct'])} % on average (target {REGRET_TARGET_PCT:g} %), all of it from"
    )
    lines = [f"{head} {len(missed)} of {found['groups']} groups:"]
    for group in sorted(missed, key=lambda group: -float(group["regret_pct"])):
        lines.append(
            f"  * {setting({**group, 'max_loras': group['chosen']})}, where {group['best']} are best by "
            f"{number(group['regret_pct'])} %; predicted {number(group['predicted_lead_pct'])} % apart"
        )
    return lines
