"""The page: what goes into the template, and the HTML that comes out."""

from collections.abc import Sequence
from typing import Any

import yaml

from reports import limits, numbers
from reports.html import html
from reports.sweep import answer, evidence_plots, finding
from reports.sweep import plots as sweep_plots
from reports.sweep.choose import RULE, Recommendation, recommend
from reports.sweep.evidence import Check, Fit
from reports.sweep.load import Row, mapping
from reports.sweep.tables import (
    best_table,
    check_table,
    error_table,
    result_table,
    settings_table,
    swap_table,
)


def render(rows: Sequence[Row], fit: Fit | None, checks: Sequence[Check] | None) -> str:
    """Return the report on a sweep as one HTML page that needs nothing else."""
    choice = recommend(rows)
    return html(
        "template.html.j2",
        numbers=numbers,
        **_answer(rows, choice),
        **_sweep(rows),
        **_settings(rows, choice),
        calibration=None if fit is None else _calibration(fit),
        check=_check(checks) if checks else None,
        not_modelled=limits.NOT_MODELLED,
    )


def _answer(rows: Sequence[Row], choice: Recommendation | None) -> dict[str, Any]:
    return {
        "headline": answer.headline(rows, choice),
        "answer": answer.answer(rows, choice),
        "comparison": finding.comparison(choice),
        "command": None if choice is None else _unbroken(choice.serve_command),
        "best": best_table(rows, choice),
        "rule": RULE,
        "warnings": answer.warnings(rows, choice),
        "claims": finding.claims(rows, choice),
    }


def _unbroken(command: str) -> list[str]:
    """Split a command line where it may be broken: in front of its flags."""
    first, *flags = command.split(" --")
    return [first, *(f"--{flag}" for flag in flags)]


def _sweep(rows: Sequence[Row]) -> dict[str, Any]:
    some = any(row.ok for row in rows)
    return {
        "sweep_plots": sweep_plots.sweep_plots(rows) if some else [],
        "time_plots": sweep_plots.time_plots(rows) if some else [],
        "results": result_table(rows),
    }


def _settings(rows: Sequence[Row], choice: Recommendation | None) -> dict[str, Any]:
    first = choice.row if choice else rows[0]
    workloads = {row.traffic: row.config("workload") for row in rows if row.config("workload")}
    return {
        "model": first.config("model").get("name", "?"),
        "profile": first.profile.get("name", "?"),
        "gpu": mapping(first.config("profile").get("provenance")).get("gpu"),
        "traffic": {traffic: answer.describe_traffic(workload) for traffic, workload in workloads.items()},
        "settings": settings_table(rows, first),
        "profile_text": yaml.safe_dump(dict(first.config("profile")), sort_keys=False, allow_unicode=True),
    }


def _calibration(fit: Fit) -> dict[str, Any]:
    return {
        "plots": evidence_plots.calibration_plots(fit),
        "detail_plots": evidence_plots.detail_plots(fit),
        "errors": error_table(fit),
        "swaps": swap_table(fit.swaps),
        "swap_range": _swap_range(fit),
        "median_target": evidence_plots.MEDIAN_TARGET_PCT,
        "p90_target": evidence_plots.P90_TARGET_PCT,
    }


def _swap_range(fit: Fit) -> dict[str, str]:
    """Return the measured medians of loads and activations at the lowest rank, as text."""
    rank = min(swap.rank for swap in fit.swaps)
    medians = [(swap.kind, swap.median_ms) for swap in fit.swaps if swap.rank == rank]
    loads = [median for kind, median in medians if kind.startswith("load")]
    activations = [median for kind, median in medians if kind == "activate"]
    return {
        "load": f"{numbers.number(min(loads))} to {numbers.number(max(loads))} ms",
        "activate": f"{numbers.number(max(activations))} ms",
    }


def _check(checks: Sequence[Check]) -> dict[str, Any]:
    return {"plot": evidence_plots.check_plot(checks), "table": check_table(checks)}
