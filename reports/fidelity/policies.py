"""Policies inside the real engine, in comparison with plain vLLM."""

from collections.abc import Iterator, Mapping, Sequence
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


def winner_section(
    rows: pd.DataFrame, plain: Mapping[str, str], winners: Mapping[str, str], traffic: Mapping[str, Any]
) -> list[str]:
    """Return what plain vLLM's best max_loras leaves to gain: throughput of closed loops, tail latency where
    all keep up, and what is in time at rates that plain vLLM cannot serve.

    `plain` describes the ways in which vLLM's own policies were played, `winners` the policies that stand
    against them; `traffic` has, under `closed`, `kept_up` and `in_time`, what follows `<max_loras>-` in the
    replays' names, by title.
    """
    lines = []
    for model, group in rows.groupby("model"):
        for title, base in traffic["closed"].items():
            throughput = group[group.quantity == "output_throughput"]
            lines += _slots_lines(f"{model}, {title}", throughput, base, list(plain), list(winners))
        lines += _tail_lines(str(model), group, traffic["kept_up"], list(plain), list(winners))
        lines += _in_time_lines(str(model), group, traffic["in_time"], [*plain, *winners])
    head = ["## The winner, and plain vLLM at its best max_loras", ""]
    head += [f"* `{name}`: {what}" for name, what in {**plain, **winners}.items()]
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


def _slots_lines(
    title: str, throughput: pd.DataFrame, base: str, plain: Sequence[str], winners: Sequence[str]
) -> list[str]:
    played = {policy: _of_policy(throughput, base, policy) for policy in (*plain, *winners)}
    found = {policy: part for policy, part in played.items() if len(part)}
    if not found.keys() & set(plain) or not found.keys() & set(winners):
        return []
    head, columns = ["max_loras"], []
    for policy, part in found.items():
        head += [f"`{policy}`", "simulated"]
        columns += [_mean_of_both(part), part.simulated]
    slots = sorted({slots for part in found.values() for slots in part.index})
    cells = [[str(count), *(number(column.get(count)) for column in columns)] for count in slots]
    lines = [f"### {title}", "", "Output tokens/s.", "", *markdown_table(head, cells), ""]
    pairs = [(policy, against) for policy in winners for against in plain]
    return lines + [
        line
        for policy, against in pairs
        if policy in found and against in found
        for line in _gain_lines(policy, found[policy], against, found[against])
    ]


def _gain_lines(policy: str, ours: pd.DataFrame, against: str, plain: pd.DataFrame) -> list[str]:
    """Say what `policy` gains over plain vLLM, each with its best max_loras."""
    measured, theirs = _mean_of_both(ours), _mean_of_both(plain)
    gain = float(measured.max() / theirs.max())
    predicted = float(ours.simulated.max() / plain.simulated.max())
    return [
        f"`{policy}` with {measured.idxmax()} slots against `{against}` with its best of {len(theirs)}, "
        f"{theirs.idxmax()}: {gain:.2f} times the throughput, {predicted:.2f} simulated "
        f"({100 * (predicted / gain - 1):+.0f} %).",
        "",
    ]


def _tail_lines(
    model: str,
    rows: pd.DataFrame,
    kept_up: Mapping[str, str],
    plain: Sequence[str],
    winners: Sequence[str],
) -> list[str]:
    throughput, ttft = (rows[rows.quantity == name] for name in ("output_throughput", "p99_ttft_ms"))
    cells = [
        [f"{title}, {slots} slots", f"`{policy}`", f"`{against}`", *points]
        for title, base in kept_up.items()
        for policy in winners
        for against in plain
        for slots, points in _tails(throughput, ttft, base, policy, against)
    ]
    head = ["", "", "against", "tokens/s", "against", "p99 TTFT, ms", "against", "times less", "simulated"]
    return [f"### {model}, tail latency in open loops", "", *markdown_table(head, cells), ""] if cells else []


def _tails(
    throughput: pd.DataFrame, ttft: pd.DataFrame, base: str, policy: str, against: str
) -> Iterator[tuple[int, list[str]]]:
    """Yield, for each max_loras with which both were played, throughput and p99 TTFT of both."""
    rates = [_of_policy(throughput, base, name) for name in (policy, against)]
    tails = [_of_policy(ttft, base, name) for name in (policy, against)]
    for slots in rates[0].index.intersection(rates[1].index):
        ours, theirs = (_mean_of_both(part)[slots] for part in tails)
        predicted = tails[1].simulated[slots] / tails[0].simulated[slots]
        points = [*(_mean_of_both(part)[slots] for part in rates), ours, theirs]
        yield slots, [*map(number, points), f"{theirs / ours:.1f}", f"{predicted:.1f}"]


def _in_time_lines(
    model: str, rows: pd.DataFrame, in_time: Mapping[str, str], policies: Sequence[str]
) -> list[str]:
    cells = []
    for title, base in in_time.items():
        for policy in policies:
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
