"""Forty customers on two boxes: what each scenario of the experiment answers, in the write-up's rows."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from reports.experiments.box_lost import losses_of, losses_section
from reports.experiments.callback import ExperimentCallback, Findings
from reports.experiments.document import Section
from reports.experiments.ranks import ranks_of, ranks_section
from reports.experiments.reported import Reported
from reports.experiments.scenario import Scenario
from reports.numbers import duration, number, percent, whole
from reports.parity import parity_section
from sim.errors import UserError
from sim.prices import Prices
from sim.sweep.runs import Run

GROUP = "experiment/forty_customers"
SYSTEM, SEPARATE, ONE_BOX, SATURATED = "two_boxes", "separate", "one_box", "saturated"
WITHOUT_LORA, FREE_SWAPS, SLOT_EACH = "without_lora", "free_swaps", "slot_each"
MIXED, SATURATED_MIXED = "mixed_ranks", "saturated_mixed_ranks"
COLUMNS = ("separate", "multi")
KEEPS_UP = 0.98
"""A box keeps up if it completes this share of what arrives."""

Write = Callable[[Any], str]
ROWS: Mapping[str, tuple[str, Write]] = {
    "gpus": ("GPUs", whole),
    "gpus_that_keep_up": (f"fewest GPUs that complete {KEEPS_UP:.0%} of what arrives", whole),
    "base_copies": ("copies of the base weights", whole),
    "base_gb": ("base weights in GPU memory, all boxes, GB", number),
    "adapter_gb": ("adapters in host memory, a box, GB", number),
    "slots_gb": ("adapter slots in GPU memory, a box, GB", number),
    "usd_per_month": ("idle cost a month (the GPUs are paid, used or not), $", whole),
    "idle_usd_per_month": ("of it for a GPU without any request, $", whole),
    "p50_ms": ("p50 latency (256 tokens)", duration),
    "without_lora_ms": ("p50 latency at the same boxes without LoRA", duration),
    "lora_tax_ms": ("p50 latency that LoRA costs", duration),
    "lora_tax_share": ("the same as a share of it", percent),
    "kernels_ms": ("what it costs if swaps take no time: kernels, and prefills outside of graphs", duration),
    "slot_each_ms": ("p50 latency with a slot for each adapter, and no swaps", duration),
    "p50_ttft_ms": ("p50 time to first token", duration),
    "p99_ttft_ms": ("p99 time to first token", duration),
    "one_box_p99_ttft_ms": ("p99 time to first token with one box", duration),
    "swap_host_ms": ("p50 of a swap, host cache to slot", duration),
    "swap_disk_ms": ("p50 of a swap, disk to host cache", duration),
    "slot_evictions_per_s": ("evictions from slots a second, a box", number),
    "slot_evictions_per_request": ("evictions from slots a request", number),
    "host_evictions_per_s": ("evictions from the host cache a second, a box", number),
    "host_evictions_per_request": ("evictions from the host cache a request", number),
    "mean_active": ("adapters in a step, mean", number),
    "tokens_per_s": ("tokens/s per box at the offered rate, prompts counted", whole),
    "output_tokens_per_s": ("output tokens/s per box at the offered rate", whole),
    "most_tokens_per_s": ("tokens/s per box at most, prompts counted", whole),
    "most_output_tokens_per_s": ("output tokens/s per box at most", whole),
}
"""Rows of the table, with their labels and how a number is written."""


class FortyCustomersCallback(ExperimentCallback):
    """Writes the tables of ``experiment=forty_customers``.

    ``reported`` is what the write-up says, ``prices`` what GPUs cost, ``parity`` a file that
    `calibrate.parity` made on a GPU, where it exists.
    """

    name = "forty_customers"

    def __init__(
        self, reported: Mapping[str, Any], prices: Mapping[str, Any], parity: str | None = None
    ) -> None:
        self.parity = None if parity is None else Path(parity)
        self.reported = Reported.from_mapping(reported, tuple(ROWS), COLUMNS)
        self.prices = Prices.from_mapping(prices)

    def findings(self, runs: Sequence[Run]) -> Findings:
        """Return the tables. Raises UserError where the system itself was not simulated."""
        found = {run.columns.get(GROUP, ""): Scenario(run) for run in runs}
        if SYSTEM not in found:
            raise UserError(f"the sweep has no {GROUP}={SYSTEM}: expected it, all else is compared with that")
        system = found[SYSTEM]
        ours = compared(found, self.prices)
        ranks = {
            name: ranks_of(found[pair[0]], found.get(pair[1])) for name, pair in _rank_pairs(found).items()
        }
        at_s = next((s.failover_at_s for s in found.values() if s.failover_at_s is not None), None)
        losses = {} if at_s is None else losses_of(found, at_s)
        sections = [
            self._comparison(ours, system),
            *([ranks_section(ranks)] if len(ranks) > 1 else []),
            *([losses_section(losses, system, at_s)] if at_s is not None else []),
            *(
                [parity_section(self.parity, "The parity gate on our GPU")]
                if self.parity and self.parity.exists()
                else []
            ),
        ]
        values = {
            "reported": {"source": self.reported.source, "rows": self.reported.rows},
            "simulated": ours,
            "ranks": ranks,
            "box_lost": losses,
            "prices": {"gpu": system.gpu, "usd_per_gpu_hour": self.prices.of(system.gpu)},
        }
        return Findings("Forty customers on two boxes", self._intro(system), sections, values)

    def _intro(self, system: Scenario) -> str:
        price = self.prices.of(system.gpu)
        words = f"{system.gpu or system.profile} at "
        words += "no price that is known" if price is None else f"${price:.2f} an hour"
        outside = "; ".join(system.outside_range)
        return (
            f"Reported: {self.reported.source}. Simulated: profile {system.profile}, {words} "
            f"({self.prices.source}, {self.prices.date}; an assumption); {system.traffic_in_words}."
            + (f" Outside of what the profile measured: {outside}." if outside else "")
        )

    def _comparison(self, ours: Mapping[str, Mapping[str, Any]], system: Scenario) -> Section:
        head = [
            "",
            "reported: 40 separate",
            "reported: 2x A100",
            "simulated: separate",
            f"simulated: {system.replicas} boxes",
        ]
        rows = []
        for row, (label, write) in ROWS.items():
            theirs = [self.reported.cell(row, column, write) for column in COLUMNS]
            simulated = [write(ours[column].get(row)) for column in COLUMNS]
            rows.append([label, *theirs, *simulated])
        labels = {row: label for row, (label, _) in ROWS.items()}
        return Section("Forty deployments against two boxes", head, rows, self.reported.notes(labels))


def compared(found: Mapping[str, Scenario], prices: Prices) -> dict[str, dict[str, float | None]]:
    """Return our figures of ROWS for ``separate`` and ``multi``; what was not simulated is None."""
    multi = _of_system(found, prices)
    separate: dict[str, float | None] = {}
    if SEPARATE in found:
        apart = found[SEPARATE]
        separate = _of_fleet(apart, apart.replicas, prices) | {
            "p50_ms": apart.metric("median_e2el_ms"),
            "p50_ttft_ms": apart.metric("median_ttft_ms"),
            "p99_ttft_ms": apart.metric("p99_ttft_ms"),
            "tokens_per_s": apart.per_box("total_token_throughput"),
            "output_tokens_per_s": apart.per_box("output_throughput"),
        }
    return {"separate": separate, "multi": multi}


def _of_fleet(scenario: Scenario, num_gpus: int, prices: Prices) -> dict[str, float | None]:
    """What so many GPUs cost and hold."""
    usd = scenario.usd_per_month(prices, num_gpus)
    idle = scenario.metric("time_share.idle")
    return {
        "gpus": float(num_gpus),
        "base_copies": float(num_gpus),
        "base_gb": num_gpus * scenario.model.weight_bytes() / 1e9,
        "usd_per_month": usd,
        "idle_usd_per_month": None if usd is None or idle is None else usd * idle,
    }


def _of_system(found: Mapping[str, Scenario], prices: Prices) -> dict[str, float | None]:
    system = found[SYSTEM]
    p50_ms, base_ms = (_metric(found, name, "median_e2el_ms") for name in (SYSTEM, WITHOUT_LORA))
    free_ms, each_ms = (_metric(found, name, "median_e2el_ms") for name in (FREE_SWAPS, SLOT_EACH))
    tax_ms = None if p50_ms is None or base_ms is None else p50_ms - base_ms
    most = found.get(SATURATED)
    adapters = partial(system.metric_of_adapters, per_box=True)
    return _of_fleet(system, system.replicas, prices) | {
        "gpus_that_keep_up": gpus_that_keep_up(found),
        "adapter_gb": system.host_cache_bytes / 1e9,
        "slots_gb": system.slots_bytes / 1e9,
        "p50_ms": p50_ms,
        "without_lora_ms": base_ms,
        "lora_tax_ms": tax_ms,
        "lora_tax_share": None if tax_ms is None or not base_ms else tax_ms / base_ms,
        "kernels_ms": None if free_ms is None or base_ms is None else free_ms - base_ms,
        "slot_each_ms": each_ms,
        "p50_ttft_ms": system.metric("median_ttft_ms"),
        "p99_ttft_ms": system.metric("p99_ttft_ms"),
        "one_box_p99_ttft_ms": _metric(found, ONE_BOX, "p99_ttft_ms"),
        "swap_host_ms": system.p50_of_swaps_ms("activate"),
        "swap_disk_ms": system.p50_of_swaps_ms("load"),
        "slot_evictions_per_s": adapters("slot_evictions_per_s"),
        "slot_evictions_per_request": system.metric_of_adapters("slot_evictions_per_request"),
        "host_evictions_per_s": adapters("host_cache_evictions_per_s"),
        "host_evictions_per_request": system.metric_of_adapters("host_cache_evictions_per_request"),
        "mean_active": system.metric_of_adapters("mean_active"),
        "tokens_per_s": system.per_box("total_token_throughput"),
        "output_tokens_per_s": system.per_box("output_throughput"),
        "most_tokens_per_s": None if most is None else most.per_box("total_token_throughput"),
        "most_output_tokens_per_s": None if most is None else most.per_box("output_throughput"),
    }


def gpus_that_keep_up(found: Mapping[str, Scenario]) -> float | None:
    """Return the fewest boxes, of the numbers that were simulated, that keep up with the offered rate."""
    tried = [found[name] for name in (ONE_BOX, SYSTEM) if name in found]
    return next((float(s.replicas) for s in tried if (s.served_share or 0) >= KEEPS_UP), None)


def _metric(found: Mapping[str, Scenario], name: str, metric: str) -> float | None:
    return found[name].metric(metric) if name in found else None


def _rank_pairs(found: Mapping[str, Scenario]) -> dict[str, tuple[str, str]]:
    pairs = {"uniform": (SYSTEM, SATURATED), "mixed": (MIXED, SATURATED_MIXED)}
    return {name: pair for name, pair in pairs.items() if pair[0] in found}
