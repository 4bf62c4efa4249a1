"""Equal answers per adapter, in mixed batches and in single-adapter ones; the gate on their difference."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.errors import UserError
from sim.sweep.paired import mcnemar_p

Answers = Mapping[tuple[str, str], str | None]
"""(adapter, prompt) -> answer; None where the request failed."""

TOLERANCE = 1e-9
BY_CHANCE = (
    "By chance: how likely such a difference, or a larger one, is\n"
    "where mixing changes nothing (McNemar's exact test)."
)


@dataclass(frozen=True)
class Passes:
    """The answers of single-adapter batches, of their repetition and of mixed batches."""

    single: Answers
    again: Answers
    mixed: Answers


@dataclass(frozen=True)
class Parity:
    """How the answers for one adapter, or for all, compare; of prompts that were answered each time."""

    adapter: str
    prompts: int
    failed: int
    """Prompts without an answer in one of the runs."""
    repeatable: float | None
    """Share of equal answers of the two single-adapter runs: the engine's own repeatability."""
    equal: float | None
    """Share of answers in mixed batches that equal those of the first single-adapter run."""
    by_chance: float | None
    """How likely such a difference, or a larger one, is where mixing changes nothing."""
    gate_pct: float

    @property
    def difference_pct(self) -> float | None:
        """How much less often mixed answers are equal than repeated ones, in percent of the prompts."""
        if self.repeatable is None or self.equal is None:
            return None
        return 100 * (self.repeatable - self.equal)

    @property
    def passed(self) -> bool:
        """Whether every prompt was answered and the difference is within the gate."""
        return not self.failed and (self.difference_pct or 0.0) <= self.gate_pct + TOLERANCE


def normal(answer: str, compare: str) -> str:
    """Return what of an answer is compared: `text`, or `json`, where the order of keys does not matter.

    With `json`, an answer that is none is compared as text. Raises UserError for another `compare`.
    """
    if compare not in ("text", "json"):
        raise UserError(f"compare={compare!r}: expected one of text, json")
    if compare == "json":
        try:
            return json.dumps(json.loads(answer), sort_keys=True)
        except ValueError:
            pass
    return answer


def parities(passes: Passes, gate_pct: float) -> list[Parity]:
    """Return the parity of each adapter in order, and last that of `all`."""
    keys: dict[str, list[tuple[str, str]]] = {}
    for key in passes.single:
        keys.setdefault(key[0], []).append(key)
    return [
        _parity(name, group, passes, gate_pct)
        for name, group in [*keys.items(), ("all", list(passes.single))]
    ]


def _parity(name: str, keys: Sequence[tuple[str, str]], passes: Passes, gate_pct: float) -> Parity:
    single, again, mixed = passes.single, passes.again, passes.mixed
    answered = [key for key in keys if None not in (single.get(key), again.get(key), mixed.get(key))]
    if not answered:
        return Parity(name, len(keys), len(keys), None, None, None, gate_pct)
    again_equal = [single[key] == again[key] for key in answered]
    mixed_equal = [single[key] == mixed[key] for key in answered]
    pairs = list(zip(again_equal, mixed_equal, strict=True))
    return Parity(
        name,
        len(keys),
        len(keys) - len(answered),
        sum(again_equal) / len(answered),
        sum(mixed_equal) / len(answered),
        mcnemar_p(gained=pairs.count((False, True)), lost=pairs.count((True, False))),
        gate_pct,
    )


def first_difference(one: str, other: str) -> int | None:
    """Return the index of the first character that differs; None where there is none."""
    if one == other:
        return None
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def differing(passes: Passes) -> list[dict[str, Any]]:
    """Return each prompt whose answers are not all the same, with the answers."""
    rows = []
    for (adapter, prompt), answer in passes.single.items():
        key = adapter, prompt
        answers = {"single": answer, "again": passes.again.get(key), "mixed": passes.mixed.get(key)}
        if len(set(answers.values())) > 1:
            row: dict[str, Any] = {"adapter": adapter, "prompt": prompt, **answers}
            for name in ("again", "mixed"):
                found = answers[name]
                known = answer is not None and found is not None
                row[f"first_difference_{name}"] = (
                    first_difference(answer or "", found or "") if known else None
                )
            rows.append(row)
    return rows


def table(rows: Sequence[Parity]) -> str:
    """Return the parities as an aligned table."""
    width = max(len("Adapter"), *(len(row.adapter) for row in rows))
    head = f"{'Adapter':{width}}  Prompts  Failed  Repeatable  Mixed equal  Difference  By chance  Gate"
    lines = [head, "-" * len(head)]
    for row in rows:
        shares = ["-" if share is None else f"{100 * share:.2f}%" for share in (row.repeatable, row.equal)]
        difference = "-" if row.difference_pct is None else f"{row.difference_pct + 0.0:.2f}%"
        by_chance = "-" if row.by_chance is None else f"{row.by_chance:.2f}"
        lines.append(
            f"{row.adapter:{width}}  {row.prompts:>7}  {row.failed:>6}  {shares[0]:>10}  {shares[1]:>11}  "
            f"{difference:>10}  {by_chance:>9}  {'pass' if row.passed else 'FAIL'}"
        )
    return "\n".join([*lines, "", BY_CHANCE])
