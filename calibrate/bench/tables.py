"""A run, or two of them side by side, as text on the console."""

from collections.abc import Mapping, Sequence
from typing import Any

from calibrate.bench.metrics import LATENCIES, THROUGHPUTS, TOKEN_TIMES, Compared

NONE = "-"
MOST_ADAPTERS = 10
TITLE_WIDTH = 62
_METRIC, _COLUMN, _COUNT = 20, 15, 30


def value(metric: Compared, measured: float | None) -> str:
    """Return a metric with its unit: latencies in s, times of tokens in ms."""
    if measured is None:
        return NONE
    if metric in LATENCIES:
        return f"{measured / 1e3:.3f}s"
    return f"{measured:.2f}ms" if metric in TOKEN_TIMES else f"{measured:.2f}"


def signed_pct(number: float | None) -> str:
    """Return `+6.32%`."""
    return NONE if number is None else f"{round(number, 2) + 0.0:+.2f}%"


def comparison_table(
    baseline: Mapping[str, Any], multi: Mapping[str, Any], improvement: Mapping[str, float | None]
) -> str:
    """Return the comparison of two runs; a plus is an improvement, also where lower is better."""
    head = f"{'Metric':{_METRIC}} {'Baseline':{_COLUMN}} {'Multi-Adapter':{_COLUMN}} "

    def rows(metrics: Sequence[Compared]) -> list[str]:
        return [
            f"{metric.label:{_METRIC}} {value(metric, baseline[metric.key]):{_COLUMN}} "
            f"{value(metric, multi[metric.key]):{_COLUMN}} {signed_pct(improvement[metric.key])}"
            for metric in metrics
        ]

    improved = f"{head}Improvement"
    return "\n".join(
        [
            *_title("COMPARISON RESULTS"),
            *("--- Latency Comparison ---", improved, "-" * 65, *rows((*LATENCIES, *THROUGHPUTS)), ""),
            *("--- Token Comparison ---", improved, "-" * 65, *rows(TOKEN_TIMES), ""),
            *("--- Request Statistics ---",),
            f"{'Metric':{_COUNT}} {'Baseline':{_COLUMN}} Multi-Adapter",
            "-" * 60,
            *_statistics([baseline, multi]),
            *_failures({"baseline": baseline, "multi": multi}),
            "",
            *_adapters(multi["adapters"]),
        ]
    )


def run_table(mode: str, measured: Mapping[str, Any]) -> str:
    """Return the metrics of one run."""
    metrics = (*LATENCIES, *THROUGHPUTS, *TOKEN_TIMES)
    return "\n".join(
        [
            *_title(f"BENCHMARK RESULTS ({mode})"),
            *(f"{metric.label:{_COUNT}} {value(metric, measured[metric.key])}" for metric in metrics),
            *("", "--- Request Statistics ---"),
            *_statistics([measured]),
            *_failures({mode: measured}),
            "",
            *_adapters(measured["adapters"]),
        ]
    )


def _title(text: str) -> list[str]:
    return ["=" * TITLE_WIDTH, text, "=" * TITLE_WIDTH, ""]


def _statistics(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    def row(label: str, cells: Sequence[str]) -> str:
        *padded, last = cells
        return " ".join([f"{label:{_COUNT}}", *(f"{cell:{_COLUMN}}" for cell in padded), last])

    rates = [run["success_rate"] for run in runs]
    lines = [
        row("Total Requests", [str(run["total_requests"]) for run in runs]),
        row("Successful Requests", [str(run["completed"]) for run in runs]),
        row("Failed Requests", [str(run["failed"]) for run in runs]),
        row("Success Rate", [NONE if rate is None else f"{100 * rate:.2f}%" for rate in rates]),
        row("Total Duration", [f"{run['duration_s']:.2f}s" for run in runs]),
    ]
    if any(run["unfinished"] for run in runs):
        lines.insert(3, row("Unfinished Requests", [str(run["unfinished"]) for run in runs]))
    return lines


def _failures(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each run with failures, what made it end early included."""
    lines = []
    for mode, run in runs.items():
        if run["failures"]:
            kinds = ", ".join(f"{kind} {count}" for kind, count in run["failures"].items())
            lines.append(f"Failures ({mode}): {kinds}")
        if run["end"] != "done":
            lines.append(f"Not complete ({mode}): {run['end']}")
    return lines


def _adapters(adapters: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The busiest adapters and how many more there are."""
    width = max(_METRIC, *(len(name) for name in list(adapters)[:MOST_ADAPTERS]), 0)
    head = f"{'Adapter':{width}}  Requests  Failed  Mean Latency  P99 Latency   Mean TTFT"
    lines = ["--- Adapter Statistics ---", head, "-" * len(head)]
    for name, run in list(adapters.items())[:MOST_ADAPTERS]:
        mean, p99 = (value(LATENCIES[index], run[LATENCIES[index].key]) for index in (0, 3))
        ttft = value(TOKEN_TIMES[0], run["mean_ttft_ms"])
        lines.append(
            f"{name:{width}} {run['total_requests']:>9} {run['failed']:>7} {mean:>13} {p99:>12} {ttft:>11}"
        )
    if len(adapters) > MOST_ADAPTERS:
        lines.append(f"... and {len(adapters) - MOST_ADAPTERS} more")
    return lines
