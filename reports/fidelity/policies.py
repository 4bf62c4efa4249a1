"""Policies inside the real engine, in comparison with plain vLLM."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from scipy.stats import kendalltau

from reports.experiments.document import markdown_table
from reports.numbers import number

PLAIN = "vllm"


def policies_section(rows: pd.DataFrame) -> list[str]:
    """Return, for each workload that several policies served, their throughput and its order."""
    base = [
        workload.removesuffix(f"-{policy}")
        for workload, policy in zip(rows.workload, rows.policy, strict=True)
    ]
    found = rows.assign(base=base)
    lines = ["## Policies inside vLLM", ""]
    for (model, name), group in found.groupby(["model", "base"]):
        throughput = group[group.quantity == "output_throughput"].set_index("policy")
        if len(throughput) < 2 or PLAIN not in throughput.index:
            continue
        measured = _mean_of_both(throughput)
        lines += [f"### {model}, {name}", ""]
        gains = [measured / measured[PLAIN], throughput.simulated / throughput.simulated[PLAIN]]
        head = ["policy", "tokens/s", "simulated", "gain", "simulated gain", "p99 TTFT, ms", "simulated"]
        ttft = group[group.quantity == "p99_ttft_ms"].set_index("policy")
        lines += markdown_table(
            head,
            [
                [policy, number(measured[policy]), number(throughput.simulated[policy])]
                + [f"{gain[policy]:.2f}" for gain in gains]
                + [number(_mean_of_both(ttft)[policy]), number(ttft.simulated[policy])]
                for policy in measured.sort_values().index
            ],
        )
        lines.append("")
        if len(measured) > 2:
            tau = kendalltau(measured, throughput.simulated.reindex(measured.index)).statistic
            lines += [f"Order of the policies, simulated against measured: Kendall's tau {tau:.2f}.", ""]
    return lines


def _mean_of_both(rows: pd.DataFrame) -> "pd.Series[float]":
    return rows.measured_again.add(rows.measured).div(2).fillna(rows.measured)


def winner_section(rows: pd.DataFrame, winners: Mapping[str, str], traffic: Mapping[str, Any]) -> list[str]:
    """Return what plain vLLM's best max_loras leaves to gain: throughput of closed loops, tail latency where
    all keep up, and what is in time at rates that plain vLLM cannot serve.

    `winners` describes the policies that stand against plain vLLM; `traffic` has, under `closed`, `kept_up`
    and `in_time`, what follows `<max_loras>-` in the replays' names, by title.
    """
    lines = []
    for model, group in rows.groupby("model"):
        for title, base in traffic["closed"].items():
            throughput = group[group.quantity == "output_throughput"]
            lines += _slots_lines(f"{model}, {title}", throughput, base, list(winners))
        lines += _tail_lines(str(model), group, traffic["kept_up"], list(winners))
        lines += _in_time_lines(str(model), group, traffic["in_time"], list(winners))
    head = ["## The winner, and plain vLLM at its best max_loras", ""]
    head += [f"* `{name}`: {what}" for name, what in winners.items()]
    head += [
        "",
        "Closed loops of 64 requests and open loops at 1,000 adapters, 30 s from an empty cache.",
        "",
    ]
    return [*head, *lines] if lines else []


def _of_policy(rows: pd.DataFrame, base: str, policy: str) -> pd.DataFrame:
    """The replays of this traffic with this policy, by max_loras."""
    names = rows.max_loras.astype(str) + f"-{base}" + ("" if policy == PLAIN else f"-{policy}")
    return rows[rows.workload == names].set_index("max_loras").sort_index()


def _slots_lines(title: str, throughput: pd.DataFrame, base: str, winners: Sequence[str]) -> list[str]:
    found = {policy: _of_policy(throughput, base, policy) for policy in (PLAIN, *winners)}
    plain = found.pop(PLAIN)
    found = {policy: part for policy, part in found.items() if len(part)}
    if plain.empty or not found:
        return []
    head, columns = ["max_loras"], []
    for policy, part in {"plain vLLM": plain, **found}.items():
        head += [policy, "simulated"]
        columns += [_mean_of_both(part), part.simulated]
    slots = sorted({*plain.index, *(slots for part in found.values() for slots in part.index)})
    cells = [[str(count), *(number(column.get(count)) for column in columns)] for count in slots]
    lines = [f"### {title}", "", "Output tokens/s.", "", *markdown_table(head, cells), ""]
    measured = _mean_of_both(plain)
    for policy, part in found.items():
        ours = _mean_of_both(part)
        gain = float(ours.max() / measured.max())
        predicted = float(part.simulated.max() / plain.simulated.max())
        lines += [
            f"`{policy}` with {ours.idxmax()} slots against plain vLLM with its best, {measured.idxmax()}: "
            f"{gain:.2f} times the throughput, {predicted:.2f} simulated "
            f"({100 * (predicted / gain - 1):+.0f} %).",
            "",
        ]
    return lines


def _tail_lines(
    model: str, rows: pd.DataFrame, kept_up: Mapping[str, str], winners: Sequence[str]
) -> list[str]:
    cells = []
    throughput, ttft = (rows[rows.quantity == name] for name in ("output_throughput", "p99_ttft_ms"))
    for title, base in kept_up.items():
        plain, tail = (_of_policy(part, base, PLAIN) for part in (throughput, ttft))
        for policy in winners:
            ours, our_tail = (_of_policy(part, base, policy) for part in (throughput, ttft))
            for slots in ours.index.intersection(plain.index):
                tails = [_mean_of_both(part)[slots] for part in (tail, our_tail)]
                cells.append(
                    [f"{title}, {slots} slots", f"`{policy}`"]
                    + [number(_mean_of_both(part)[slots]) for part in (plain, ours)]
                    + [*map(number, tails), f"{tails[0] / tails[1]:.1f}"]
                    + [f"{tail.simulated[slots] / our_tail.simulated[slots]:.1f}"]
                )
    head = ["", "", "plain, tokens/s", "policy", "plain, p99 TTFT, ms", "policy", "times less", "simulated"]
    return [f"### {model}, tail latency in open loops", "", *markdown_table(head, cells), ""] if cells else []


def _in_time_lines(
    model: str, rows: pd.DataFrame, in_time: Mapping[str, str], winners: Sequence[str]
) -> list[str]:
    cells = []
    for title, base in in_time.items():
        for policy in (PLAIN, *winners):
            parts = [
                _of_policy(rows[rows.quantity == name], base, policy)
                for name in ("request_goodput", "p99_ttft_ms")
            ]
            for slots in parts[0].index:
                points = [value for part in parts for value in (_mean_of_both(part), part.simulated)]
                line = [f"{title}, {slots} slots", f"`{policy}`", *(number(point[slots]) for point in points)]
                cells.append(line)
    if not cells:
        return []
    return [
        f"### {model}, requests/s that are in time",
        "",
        "Completed within 30 s, with the first token within 2 s and 75 ms for each further one: the "
        "laboratory's targets, and its rate of 12 a second.",
        "",
        *markdown_table(["", "", "in time", "simulated", "p99 TTFT, ms", "simulated"], cells),
        "",
    ]
