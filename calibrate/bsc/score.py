"""How near predictions of runs are to what was measured, and how near the study's own simulator was."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from calibrate.bsc.settings import GROUP, OF_LENGTHS

SPREADS_PCT, SPREAD_DRAWS = (1.0, 2.0), 2000
"""Run-to-run spreads of which the regret is told."""
STABLE = 0.97
"""A run that completes this part of what is offered keeps up."""


@dataclass(frozen=True)
class Metric:
    """A column of the runs, and those that predict it."""

    name: str
    measured: str
    ours: str
    twin: str | None = None


METRICS = (
    Metric("output throughput", "out_tok_s", "sim_out_tok_s", "twin_output_throughput"),
    Metric("ITL", "mean_itl_ms", "sim_mean_itl_ms", "twin_itl"),
    Metric("TTFT, completed requests", "mean_ttft_ms", "sim_mean_ttft_ms"),
    Metric("TTFT, all requests", "ttft_all_ms", "sim_ttft_all_ms", "twin_ttft"),
    Metric("preemptions", "num_preempted_last", "sim_num_preempted"),
)
RESULTS = ("offered_req_s", "completed", "duration_s", "out_tok_s", "mean_ttft_ms", "mean_itl_ms")
"""What a row must have to be compared."""


def with_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with NaN for what is no number in a column of results or of their prediction.

    A run that failed may have a word there (`OOM`, `-`), and has no result then.
    """
    measured = {*RESULTS, *OF_LENGTHS, "num_preempted_last", *(metric.twin for metric in METRICS)}
    table = table.copy()
    for name in measured.intersection(table):
        table[name] = pd.to_numeric(table[name], errors="coerce")
    return table


def smape_pct(predicted: Any, measured: Any) -> float:
    """Return the mean of 2 |a - b| / (|a| + |b|) in percent; two zeros are equal. NaN of no rows."""
    if len(predicted) == 0:
        return float("nan")
    total = np.abs(predicted) + np.abs(measured)
    parts = 2 * np.abs(predicted - measured) / np.where(total == 0, 1, total)
    return float(100 * np.mean(parts))


def bias_pct(predicted: Any, measured: Any) -> float:
    """Return the mean of a / b - 1 in percent, over the rows whose b is not zero."""
    known = measured != 0
    return float(100 * np.mean(predicted[known] / measured[known] - 1)) if known.any() else float("nan")


def with_ttft_of_all(table: pd.DataFrame) -> pd.DataFrame:
    """Add the time to first token where a request that is not complete counts as the whole run."""
    sent = table.offered_req_s * table.total_time

    def of_all(ttft_ms: Any, completed: Any, duration_s: Any) -> Any:
        return (ttft_ms * completed + (sent - completed) * duration_s * 1e3) / sent

    return table.assign(
        ttft_all_ms=of_all(table.mean_ttft_ms, table.completed, table.duration_s),
        sim_ttft_all_ms=of_all(table.sim_mean_ttft_ms, table.sim_completed, table.total_time),
    )


def regime(row: Any) -> str:
    """Return how a measured run went: `preempting`, `stable` or `saturated`."""
    if row.num_preempted_last > 0:
        return "preempting"
    return "stable" if row.completed >= STABLE * row.offered_req_s * row.total_time else "saturated"


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that have results and are predicted to run, with `regime`; no others can be scored."""
    columns = [name for name in RESULTS if name in table]
    if len(columns) < len(RESULTS):
        return table.iloc[:0].assign(regime="")
    rows = table[table[columns].notna().all(axis=1) & (table.sim_status == "ok")]
    if "num_preempted_last" not in rows:
        rows = rows.assign(num_preempted_last=0.0)
    rows = with_ttft_of_all(rows)
    return rows.assign(regime=[regime(row) for row in rows.itertuples()])


def errors(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per metric: ours and the twin's."""
    found = []
    for metric in METRICS:
        measured = rows[metric.measured].to_numpy(dtype=float)
        entry: dict[str, Any] = {"metric": metric.name, "runs": len(rows)}
        for who, column in (("", metric.ours), ("twin_", metric.twin)):
            predicted = np.full(len(rows), np.nan)
            if column is not None and column in rows:
                predicted = rows[column].to_numpy(dtype=float)
            known = ~np.isnan(predicted) & ~np.isnan(measured)
            entry[f"{who}smape_pct"] = smape_pct(predicted[known], measured[known])
            entry[f"{who}bias_pct"] = bias_pct(predicted[known], measured[known])
        found.append(entry)
    return pd.DataFrame(found).round(3)


def groups(rows: pd.DataFrame) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Return the groups of two rows or more, however their lists are spaced."""
    keys = [rows[name].map(lambda value: " ".join(str(value).split())) for name in GROUP]
    return [
        (tuple(group.iloc[0][list(GROUP)]), group)
        for _, group in rows.groupby(keys, sort=True)
        if len(group) > 1
    ]


def regrets(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return for each group of two rows or more which `max_loras` has the largest `column`, and its cost.

    `regret_pct`: by how much the measured throughput is below the best one of the group.
    """
    found = []
    for key, group in groups(rows):
        if group[column].isna().any():
            continue
        predicted, measured = group[column].to_numpy(), group.out_tok_s.to_numpy()
        chosen, best = group.iloc[int(predicted.argmax())], group.iloc[int(measured.argmax())]
        found.append(
            {
                **dict(zip(GROUP, key, strict=True)),
                "rows": len(group),
                "chosen": int(chosen.max_loras),
                "best": int(best.max_loras),
                "regret_pct": 100 * (1 - chosen.out_tok_s / best.out_tok_s),
                "predicted_lead_pct": 100 * (chosen[column] / best[column] - 1),
            }
        )
    return pd.DataFrame(found, columns=[*GROUP, "rows", "chosen", "best", "regret_pct", "predicted_lead_pct"])


def regret_of_spread(rows: pd.DataFrame, spread_pct: float) -> float:
    """Return the mean regret, in percent, of a choice by what was measured if it were measured once more.

    Each throughput is multiplied with a normal factor of this spread, drawn SPREAD_DRAWS times.
    """
    rng, found = np.random.default_rng(0), []
    for _, group in groups(rows):
        measured = group.out_tok_s.to_numpy()
        again = measured * (1 + spread_pct / 100 * rng.standard_normal((SPREAD_DRAWS, len(measured))))
        found.append(100 * (1 - measured[again.argmax(axis=1)] / measured.max()).mean())
    return float(np.mean(found)) if found else float("nan")


def regret_summary(rows: pd.DataFrame, column: str) -> dict[str, Any]:
    """Return how often the best is chosen, and the mean and the worst regret in percent."""
    table = regrets(rows, column) if column in rows else regrets(rows.iloc[:0], "out_tok_s")
    if table.empty:
        return {"groups": 0}
    return {
        "groups": len(table),
        "best_chosen": int((table.chosen == table.best).sum()),
        "mean_pct": round(float(table.regret_pct.mean()), 4),
        "worst_pct": round(float(table.regret_pct.max()), 4),
    }


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """Return all scores of a table of predictions, whole and by model and regime."""
    rows = compared(table)
    named = table.sim_status == "oom"
    parts = {"all": rows}
    parts |= {f"model {name}": part for name, part in rows.groupby("model", sort=True)}
    parts |= {f"regime {name}": part for name, part in rows.groupby("regime", sort=True)}
    parts |= {f"part {name}": part for name, part in rows.groupby("sim_part", sort=True)}
    return {
        "rows": len(table),
        "compared": len(rows),
        "predicted_oom": int(named.sum()),
        "measured_but_predicted_oom": int((named & _has_result(table)).sum()),
        "errors": {name: _records(errors(part)) for name, part in parts.items() if len(part)},
        "regret": {"ours": regret_summary(rows, "sim_out_tok_s")}
        | {"twin": regret_summary(rows, "twin_output_throughput")}
        | {
            f"measured again, {spread:g} % spread": {"mean_pct": round(regret_of_spread(rows, spread), 4)}
            for spread in SPREADS_PCT
            if groups(rows)
        },
        "missed_choices": _records(_missed(rows)),
    }


def _missed(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the groups of which we would not choose the best."""
    table = regrets(rows, "sim_out_tok_s").round(3)
    return table[table.chosen != table.best]


def _has_result(table: pd.DataFrame) -> Any:
    return table["completed"].notna() if "completed" in table else pd.Series(False, index=table.index)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as plain values, null where there is none."""
    records: list[dict[str, Any]] = json.loads(table.to_json(orient="records"))
    return records


def text(scores: Mapping[str, Any]) -> str:
    """Return the scores as they are printed."""
    lines = [
        f"{scores['compared']} of {scores['rows']} rows compared, "
        f"{scores['predicted_oom']} predicted to run out of memory"
    ]
    for name, records in scores["errors"].items():
        lines += [f"\n{name}", pd.DataFrame(records).to_string(index=False)]
    lines += [f"\nregret of max_loras, {who}: {found}" for who, found in scores["regret"].items()]
    return "\n".join(lines)
