"""The tables of the page: heads and rows of finished cells."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from reports.numbers import NONE, duration, exact, number, percent, signed, whole
from reports.sweep.answer import best_per_shape
from reports.sweep.choose import Recommendation, traffics
from reports.sweep.evidence import Check, Error, Fit, Swap
from reports.sweep.evidence_plots import (
    MEDIAN_TARGET_PCT,
    P90_TARGET_PCT,
    grade,
    quantities,
    quantity_label,
    swap_label,
)
from reports.sweep.load import Row, mapping
from reports.table import Table


def best_table(rows: Sequence[Row], choice: Recommendation | None) -> Table:
    """Return the best ``max_loras`` for each traffic shape, and what the one setting for all loses."""
    head = ["traffic", "best setting", "output tokens/s", "p99 TTFT", "lost with the setting for all"]
    body = []
    for traffic, row in best_per_shape(rows).items():
        loss = choice.losses.get(traffic) if choice else None
        if row is None:
            body.append([traffic, "none ran", NONE, NONE, NONE])
        else:
            reached = whole(row.metric("output_throughput")), duration(row.metric("p99_ttft_ms"))
            body.append([traffic, row.setting, *reached, percent(loss)])
    return Table(head, body, labels=2)


_RESULTS: Sequence[tuple[str, str, Callable[[float | None], str]]] = (
    ("output tokens/s", "output_throughput", whole),
    ("requests/s", "request_throughput", number),
    ("completed", "completed", whole),
    ("median TTFT", "median_ttft_ms", duration),
    ("p99 TTFT", "p99_ttft_ms", duration),
    ("median TPOT", "median_tpot_ms", duration),
    ("p99 ITL", "p99_itl_ms", duration),
    ("adapter loads", "adapter_loads", whole),
    ("activations", "adapter_activations", whole),
    ("slot hits", "adapters.slot_hit_rate", percent),
    ("host-cache hits", "adapters.host_cache_hit_rate", percent),
    ("compute", "time_share.compute", percent),
    ("loading", "time_share.loading", percent),
    ("activation", "time_share.activation", percent),
    ("host", "time_share.host", percent),
    ("idle", "time_share.idle", percent),
    ("preemptions", "num_preemptions", whole),
    ("KV blocks", "kv_blocks", whole),
)


def result_table(rows: Sequence[Row]) -> Table:
    """Return every run with its main metrics; one that failed with its message in their place."""
    others = [key for key, _ in rows[0].others]
    shown = [row for traffic in traffics(rows) for row in rows if row.traffic == traffic]
    body = [
        [
            *(row.traffic, row.max_loras_given, *(value for _, value in row.others), row.summary["status"]),
            *(write(row.metric(name)) for _, name, write in _RESULTS),
        ]
        for row in shown
    ]
    labels = 3 + len(others)
    return Table(
        ["traffic", "max_loras", *others, "status", *(head for head, _, _ in _RESULTS)],
        body,
        labels,
        {(index, labels - 1): "good" if row.ok else "poor" for index, row in enumerate(shown)},
        {index: str(row.summary.get("message", "")) for index, row in enumerate(shown) if not row.ok},
    )


def error_table(fit: Fit) -> Table:
    """Return the held-out errors (the fitted ones where nothing was held out) by quantity and regime."""
    body: list[list[str]] = []
    classes: dict[tuple[int, int], str] = {}
    for error in _of_interest(fit):
        values = (error.median_abs_pct, MEDIAN_TARGET_PCT), (error.p90_abs_pct, P90_TARGET_PCT)
        grades = ["good" if value <= target else "poor" for value, target in values]
        classes |= {(len(body), 4 + column): grade for column, grade in enumerate(grades)}
        cells = [f"{value:.1f} {'✓' if value <= target else '✗'}" for value, target in values]
        split = "held out" if error.split == "heldout" else "fitted"
        body.append([quantity_label(error.quantity), error.regime, split, whole(error.count), *cells])
    targets = f"median, % (≤ {MEDIAN_TARGET_PCT:g})", f"p90, % (≤ {P90_TARGET_PCT:g})"
    return Table(["duration", "regime", "steps", "count", *targets], body, 3, classes)


def _of_interest(fit: Fit) -> list[Error]:
    """Return one line for each quantity and regime, the whole step first."""
    order = quantities(fit)
    found: dict[tuple[str, str], Error] = {}
    for error in sorted(fit.errors, key=lambda error: order.index(error.quantity)):
        if error.split == "heldout" or (error.quantity, error.regime) not in found:
            found[error.quantity, error.regime] = error
    return list(found.values())


def swap_table(swaps: Sequence[Swap]) -> Table:
    """Return the measured costs of a swap."""
    body = [
        [
            *(swap_label(swap), whole(swap.count)),
            *(duration(value) for value in (swap.p10_ms, swap.median_ms, swap.p90_ms, swap.max_ms)),
        ]
        for swap in swaps
    ]
    return Table(["swap", "count", "p10", "median", "p90", "longest"], body)


def check_table(checks: Sequence[Check]) -> Table:
    """Return measured against simulated, with the error and the hardware's own spread."""
    body = [
        [
            *(check.workload, check.quantity),
            *(number(value) for value in (check.measured, check.measured_again, check.simulated)),
            *(signed(check.error_pct), number(check.hardware_spread_pct)),
            *(number(check.simulated_given_host), signed(check.error_given_host_pct)),
        ]
        for check in checks
    ]
    head = [
        "workload",
        "quantity",
        "measured",
        "measured again",
        "simulated",
        "error, %",
        "hardware's spread, %",
        "given its host",
        "error, %",
    ]
    return Table(head, body, 2, {(index, 5): grade(check) for index, check in enumerate(checks)})


def settings_table(rows: Sequence[Row], chosen: Row) -> Table:
    """Return the settings of the chosen run, and all values of those that vary over the sweep."""
    flat = [dict(_flat(row.summary["config"], "")) for row in rows]
    own = dict(_flat(chosen.summary["config"], ""))
    body = []
    for key, value in own.items():
        tried = list(dict.fromkeys(exact(other[key]) for other in flat if key in other))
        body.append([key, exact(value), ", ".join(tried) if len(tried) > 1 else ""])
    profile = {key: chosen.profile[key] for key in ("name", "sha256") if key in chosen.profile}
    body += [[f"profile {key}", str(value), ""] for key, value in profile.items()]
    body += [[f"profile {key}", exact(value), ""] for key, value in _provenance(chosen)]
    return Table(["setting", "recommended run", "values in the sweep"], body, labels=3)


def _flat(group: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the settings under dotted names; the profile is long and stands by itself."""
    for key, value in group.items():
        if isinstance(value, Mapping):
            if prefix + key != "profile":
                yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _provenance(row: Row) -> list[tuple[str, Any]]:
    found = mapping(row.config("profile").get("provenance"))
    return [(key, value) for key, value in _flat(found, "") if not isinstance(value, list)]
