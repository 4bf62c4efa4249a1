"""The grid of `experiment=thousand_adapters`: who asks, how many adapters there are, slots, host cache."""

from collections.abc import Sequence
from typing import Any

from reports.experiments.scenario import Scenario
from sim.errors import UserError
from sim.sweep.runs import Run

GROUP = "experiment/thousand_adapters"
UNIFORM, SKEWED, ACTIVE = "uniform", "skewed", "active_"
AS_SLOTS = "as_slots"
SHOWN = 32
"""Slots with which total and active adapters are compared, or the nearest number that there is."""


def cache_in_words(cache: str) -> str:
    """Return how many adapters the host cache holds."""
    return (
        "host cache as the slots (vLLM's default)" if cache == AS_SLOTS else f"host cache of {int(cache):,}"
    )


class Point:
    """One run of the grid."""

    def __init__(self, run: Run) -> None:
        scenario = Scenario(run)
        engine = scenario.config.engine
        self.traffic = run.columns.get(GROUP, "")
        self.total = scenario.config.workload.num_adapters
        self.max_loras = engine.max_loras
        self.cache = AS_SLOTS if engine.max_cpu_loras is None else str(engine.max_cpu_loras)
        """How many adapters the host cache holds: a number, or AS_SLOTS."""
        self.profile = scenario.profile
        self.outside_range = scenario.outside_range
        self.tokens_per_s = scenario.metric("output_throughput") or 0.0
        self.median_ttft_ms = scenario.metric("median_ttft_ms")
        self.mean_active = scenario.metric_of_adapters("mean_active")
        self.slot_evictions_per_s = scenario.metric_of_adapters("slot_evictions_per_s")

    @property
    def active(self) -> int | None:
        """How many adapters have most of the requests; None where that is not how they are asked for."""
        return int(self.traffic.removeprefix(ACTIVE)) if self.traffic.startswith(ACTIVE) else None

    def to_mapping(self) -> dict[str, Any]:
        """Return what the JSON file has of it."""
        names = ("traffic", "total", "max_loras", "cache", "tokens_per_s", "median_ttft_ms", "mean_active")
        return {name: getattr(self, name) for name in (*names, "slot_evictions_per_s")}


class Grid:
    """All points. Raises UserError where the comparison of uniform and skewed is not complete."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.points = sorted(points, key=lambda point: (point.total, point.max_loras))
        self.totals = sorted({point.total for point in points})
        self.caches = sorted({point.cache for point in points}, key=lambda c: 0 if c == AS_SLOTS else int(c))
        self.actives = sorted({point.active for point in points if point.active is not None})
        for cache in self.caches:
            slots = [
                [point.max_loras for point in self.over_slots(traffic, cache)]
                for traffic in (UNIFORM, SKEWED)
            ]
            if not slots[0] or slots[0] != slots[1]:
                raise UserError(
                    f"the sweep's runs with {cache_in_words(cache)}: expected {GROUP}={UNIFORM},{SKEWED} "
                    f"with the same engine.max_loras; found {slots[0]} and {slots[1]}"
                )

    @property
    def total(self) -> int:
        """The most adapters of any run."""
        return self.totals[-1]

    @property
    def profile(self) -> str:
        """The profile's name."""
        return self.points[0].profile

    @property
    def outside_range(self) -> list[str]:
        """Where some run left what the profile has measured."""
        return list(dict.fromkeys(text for point in self.points for text in point.outside_range))

    @property
    def max_loras_shown(self) -> int:
        """The slots with which total and active adapters are compared."""
        tried = {point.max_loras for point in self.points if point.active is not None}
        return min(tried, key=lambda max_loras: (abs(max_loras - SHOWN), max_loras))

    def over_slots(self, traffic: str, cache: str) -> list[Point]:
        """Return the runs with the most adapters and so much host cache, by slots."""
        return [p for p in self.points if (p.traffic, p.cache, p.total) == (traffic, cache, self.total)]

    def over_totals(self, active: int, cache: str) -> list[Point]:
        """Return the runs with so many active adapters, by all that there are. Raises UserError."""
        wanted = active, cache, self.max_loras_shown
        found = [p for p in self.points if (p.active, p.cache, p.max_loras) == wanted]
        if [point.total for point in found] != self.totals:
            raise UserError(
                f"the sweep's runs {GROUP}={ACTIVE}{active} with engine.max_loras={self.max_loras_shown}: "
                f"expected one for each workload.num_adapters={','.join(map(str, self.totals))}"
            )
        return found
