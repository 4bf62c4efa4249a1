"""What a sweep says, in words; every sentence comes from the numbers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from reports.numbers import bare, duration, listed, percent, with_unit
from reports.sweep.choose import Recommendation, best, traffics
from reports.sweep.load import Row, mapping, popularity


def headline(rows: Sequence[Row], choice: Recommendation | None) -> str:
    """Return the page's main heading."""
    if choice is None:
        return "No run of this sweep succeeded"
    adapters = {bare(row.config("workload").get("num_adapters")) for row in rows if row.ok}
    count = f"{adapters.pop()} LoRA adapters" if len(adapters) == 1 else "these LoRA adapters"
    return f"{choice.setting} serves {count} best"


def answer(rows: Sequence[Row], choice: Recommendation | None) -> str:
    """Return what to set, and what each traffic shape gets and loses with it."""
    if choice is None:
        return "Every run failed, so there is nothing to recommend; the messages are below."
    return " ".join([_loss(choice), *_per_shape(choice)])


def _loss(choice: Recommendation) -> str:
    if len(choice.losses) == 1:
        return f"{choice.setting} is the setting to use under {next(iter(choice.losses))} traffic."
    shapes = "both traffic shapes" if len(choice.losses) == 2 else f"all {len(choice.losses)} traffic shapes"
    if choice.worst_loss < 0.0005:
        return f"{choice.setting} reaches the highest output throughput under {shapes}."
    worst = max(choice.losses, key=lambda traffic: choice.losses[traffic])
    return (
        f"As one setting for {shapes}, {choice.setting} loses least: at worst "
        f"{percent(choice.worst_loss)} of the highest output throughput, under {worst} traffic."
    )


def _per_shape(choice: Recommendation) -> list[str]:
    return [
        f"Under {traffic} traffic it generates {with_unit(row.metric('output_throughput'), 'tokens/s')} "
        f"with a p99 TTFT of {duration(row.metric('p99_ttft_ms'))}; {swap_share(row)}."
        for traffic, row in choice.rows.items()
    ]


def swap_share(row: Row) -> str:
    """Say how much of a run's time goes to the GPU's work and how much to waiting for adapters."""
    waiting = [row.metric(f"time_share.{name}") for name in ("loading", "activation")]
    swaps = sum(share or 0.0 for share in waiting)
    compute = row.metric("time_share.compute")
    return f"the GPU computes {percent(compute)} of the time and waits {percent(swaps)} for adapters"


def best_per_shape(rows: Sequence[Row]) -> dict[str, Row | None]:
    """Return the best run for each traffic shape, None where all have failed."""
    return {traffic: best(rows, traffic) for traffic in traffics(rows)}


def describe_traffic(workload: Mapping[str, Any]) -> str:
    """Return a workload's configuration as a phrase."""
    closed = workload.get("mode") == "closed"
    arrivals = (
        f"closed loop, {bare(workload.get('concurrency'))} requests in flight"
        if closed
        else f"open loop, {bare(workload.get('request_rate'))} requests/s, {_arrivals(workload)}"
    )
    exponent = mapping(workload.get("popularity")).get("exponent")
    popular = f"{popularity({'workload': workload})} popularity" + (
        f" (exponent {exponent:g})" if exponent else ""
    )
    adapters = f"{bare(workload.get('num_adapters'))} adapters with {popular}"
    lengths = (
        f"{_length(workload.get('input_length'))} tokens in, {_length(workload.get('output_length'))} out"
    )
    ends = [(bare(workload[key]), unit) for key, unit in _ENDS if workload.get(key) is not None]
    return ", ".join([arrivals, adapters, lengths, *(f"{value} {unit}" for value, unit in ends)])


_ENDS = (("duration_s", "s"), ("num_requests", "requests"))


def _arrivals(workload: Mapping[str, Any]) -> str:
    """Return the arrival process as a phrase; a trace without settings has its own times."""
    kind = mapping(workload.get("arrivals")).get("kind", "poisson")
    return "Poisson arrivals" if kind == "poisson" else f"{kind} arrivals"


def _length(length: Any) -> str:
    """Return a fixed length, or the kind of its distribution."""
    return str(length.get("kind", "several")) if isinstance(length, Mapping) else bare(length)


def warnings(rows: Sequence[Row], choice: Recommendation | None) -> list[str]:
    """Return what a reader must know before trusting the page, most important first."""
    found = []
    failed = [row for row in rows if not row.ok]
    if failed:
        found.append(
            f"{len(failed)} of {len(rows)} runs failed and count as a loss of 100\u202f%: "
            f"{listed([f'{row.setting} under {row.traffic}' for row in failed])}. All results says why."
        )
    for text, where in _said_of(rows, lambda row: row.summary.get("warnings")).items():
        found.append(f"{text} ({_where(where, rows)}).")
    for text, where in _said_of(rows, lambda row: row.profile.get("outside_range")).items():
        found.append(
            f"Outside what was measured: {text} ({_where(where, rows)}). The cost there is extrapolated."
        )
    rejected = [row for row in rows if row.metric("counts.rejected")]
    if rejected:
        count = sum(row.metric("counts.rejected") or 0 for row in rejected)
        found.append(f"{count:,.0f} requests that can never fit were rejected ({_where(rejected, rows)}).")
    return found + _edge(rows, choice)


def _said_of(rows: Sequence[Row], texts: Callable[[Row], Iterable[str] | None]) -> dict[str, list[Row]]:
    """Return the texts, each with the runs that it is about."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        for text in texts(row) or ():
            found.setdefault(str(text), []).append(row)
    return found


def _where(some: Sequence[Row], rows: Sequence[Row]) -> str:
    if len(some) == len(rows):
        return "all runs"
    return (
        f"{len(some)} of {len(rows)} runs: {listed([f'{row.setting} under {row.traffic}' for row in some])}"
    )


def _edge(rows: Sequence[Row], choice: Recommendation | None) -> list[str]:
    """Say so where the recommended ``max_loras`` is the smallest or the largest that was tried."""
    sizes = sorted({row.max_loras for row in rows if row.ok and row.max_loras})
    if choice is None or len(sizes) < 2 or choice.row.max_loras not in (sizes[0], sizes[-1]):
        return []
    end, beyond = ("smallest", "smaller") if choice.row.max_loras == sizes[0] else ("largest", "larger")
    return [f"The recommended max_loras is the {end} that ran: try {beyond} ones too."]
