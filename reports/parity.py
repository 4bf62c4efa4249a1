"""The parity gate's result as part of a page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from reports.experiments.document import Section, markdown_table
from sim.errors import UserError
from sim.sweep.paired import mcnemar_p

ALL = "all"
"""`calibrate.parity`'s row over all adapters."""
SIGNIFICANT = 0.05
HEAD = ["", "prompts", "repeated answers equal", "mixed answers equal", "by chance"]


def parity_section(path: Path, title: str) -> Section:
    """Return the table of a file of `calibrate.parity` and what it says. Raises UserError."""
    try:
        gate = json.loads(path.read_text())
        differing = pd.DataFrame(gate["differing"], columns=["adapter", "single", "again", "mixed"])
        rows = [[*_shares(row), f"{_by_chance(differing, row['adapter']):.2f}"] for row in gate["adapters"]]
        said = _in_words(gate, gate["adapters"][-1], differing)
        num_adapters = sum(row["adapter"] != ALL for row in gate["adapters"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: no result of calibrate.parity ({error!r})") from error
    asked = (
        "`python -m calibrate.parity` asked the server the same prompts in batches of one adapter, of all "
        f"{num_adapters}, and of one again; at most {gate['gate_pct']} % may differ more than by repetition: "
        f"{'passed' if gate['passed'] else 'not passed'}. The last column is the probability of such a "
        "difference, or a larger one, where mixing changes nothing (McNemar's exact test)."
    )
    return Section(title, HEAD, rows, [asked, said] if said else [asked])


def parity_lines(path: Path) -> list[str]:
    """Return the same as lines of a page, without a title; none if there is no such file."""
    if not path.exists():
        return []
    section = parity_section(path, "")
    asked, *said = section.notes
    lines = [asked, "", *markdown_table(section.head, section.rows), ""]
    return [*lines, *(line for sentence in said for line in (sentence, ""))]


def _shares(row: Mapping[str, Any]) -> list[str]:
    shares = ["–" if share is None else f"{share:.2%}" for share in (row["repeatable"], row["equal"])]
    return [str(row["adapter"]), str(row["prompts"]), *shares]


def _in_words(gate: Mapping[str, Any], total: Mapping[str, Any], differing: pd.DataFrame) -> str:
    """Return what to make of a gate that is not passed."""
    if gate["passed"]:
        return ""
    if total["failed"]:
        return f"{total['failed']} prompts have no answer in one of the passes."
    chance = _by_chance(differing, total["adapter"])
    if chance < SIGNIFICANT:
        return "That is not chance: the gate says that mixing changes answers."
    return (
        "That may be chance, and proves neither that mixing changes answers nor that it does not: of all, "
        f"{total['equal']:.2%} are equal mixed and {total['repeatable']:.2%} repeated, and chance alone "
        f"makes such a difference, or a larger one, with a probability of {chance:.2f}. An engine that "
        f"repeats itself no more often cannot be held to {gate['gate_pct']} % with {total['prompts']} "
        "prompts. Weights of `calibrate.served_model` are random: its likeliest tokens are nearly alike, "
        "and rounding chooses."
    )


def _by_chance(differing: pd.DataFrame, adapter: str) -> float:
    rows = differing if adapter == ALL else differing[differing.adapter == adapter]
    rows = rows.dropna(subset=["single", "again", "mixed"])
    again, mixed = rows.again == rows.single, rows.mixed == rows.single
    return mcnemar_p(gained=int((mixed & ~again).sum()), lost=int((again & ~mixed).sum()))
