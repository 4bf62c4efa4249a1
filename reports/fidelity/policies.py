"""Policies inside the real engine, in comparison with plain vLLM."""

import pandas as pd
from scipy.stats import kendalltau

from reports.experiments.document import markdown_table
from reports.numbers import number

PLAIN, WINNER = "vllm", "winner"


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


def winner_section(rows: pd.DataFrame, closed: dict[str, str], kept_up: dict[str, str]) -> list[str]:
    """Return plain vLLM's throughput over max_loras, the winner's gain over its best, and tail latency where
    both keep up.

    `closed` and `kept_up` name the replays of each traffic: title -> what follows `<max_loras>-` in the
    names.
    """
    lines = []
    for model, group in rows.groupby("model"):
        for title, base in closed.items():
            lines += _slots_lines(f"{model}, {title}", group[group.quantity == "output_throughput"], base)
        lines += _tail_lines(str(model), group, kept_up)
    head = ["## The winner, and plain vLLM at its best max_loras", ""]
    head += [
        "The winner is vLLM's admission with `queue_aware` eviction, prefetch `queue` and `swaps: one_piece`."
        " Output tokens/s of closed loops of 64 requests at 1,000 adapters, 30 s from an empty cache.",
        "",
    ]
    return [*head, *lines] if lines else []


def _pair(rows: pd.DataFrame, base: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Plain vLLM's and the winner's replays of the same traffic, by max_loras."""
    names = rows.max_loras.astype(str) + f"-{base}"
    plain, winner = rows[rows.workload == names], rows[rows.workload == names + f"-{WINNER}"]
    return plain.set_index("max_loras").sort_index(), winner.set_index("max_loras").sort_index()


def _slots_lines(title: str, throughput: pd.DataFrame, base: str) -> list[str]:
    plain, winner = _pair(throughput, base)
    if winner.empty or plain.empty:
        return []
    measured, ours = _mean_of_both(plain), _mean_of_both(winner)
    gain = float(ours.max() / measured.max())
    predicted = float(winner.simulated.max() / plain.simulated.max())
    columns = [measured, plain.simulated, ours, winner.simulated]
    cells = [
        [str(slots), *(number(column.get(slots)) for column in columns)]
        for slots in sorted({*plain.index, *winner.index})
    ]
    return [
        f"### {title}",
        "",
        *markdown_table(["max_loras", "plain vLLM", "simulated", "the winner", "simulated"], cells),
        "",
        f"The winner with {ours.idxmax()} slots against plain vLLM with its best, {measured.idxmax()}: "
        f"{gain:.2f} times the throughput, {predicted:.2f} simulated "
        f"({100 * (predicted / gain - 1):+.0f} %).",
        "",
    ]


def _tail_lines(model: str, rows: pd.DataFrame, kept_up: dict[str, str]) -> list[str]:
    cells = []
    for title, base in kept_up.items():
        plain, winner = _pair(rows[rows.quantity == "output_throughput"], base)
        ttft, ours = _pair(rows[rows.quantity == "p99_ttft_ms"], base)
        for slots in winner.index.intersection(plain.index):
            tails = [_mean_of_both(part)[slots] for part in (ttft, ours)]
            cells.append(
                [f"{title}, {slots} slots"]
                + [number(_mean_of_both(part)[slots]) for part in (plain, winner)]
                + [*map(number, tails), f"{tails[0] / tails[1]:.1f}"]
                + [f"{ttft.simulated[slots] / ours.simulated[slots]:.1f}"]
            )
    head = ["", "plain, tokens/s", "winner", "plain, p99 TTFT, ms", "winner", "times less", "simulated"]
    return [f"### {model}, tail latency in open loops", "", *markdown_table(head, cells), ""] if cells else []
