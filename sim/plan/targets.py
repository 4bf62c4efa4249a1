"""Latency targets: a percentile or the mean of TTFT, TPOT or end-to-end latency, and what a run reaches."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa

from sim.errors import UserError

_NAME = re.compile(r"(ttft|tpot|e2el)_(mean|p(\d+(?:\.\d+)?))_ms")
_MS_PER_S = 1000.0


@dataclass(frozen=True)
class Target:
    """At most ``limit_ms``, for the statistic that ``name`` names: ``ttft_p99_ms``, ``tpot_mean_ms``."""

    name: str
    limit_ms: float

    @classmethod
    def all_from_mapping(cls, values: Mapping[str, Any]) -> list[Self]:
        """Build from the resolved ``slo`` section of a plan; raises UserError."""
        for name, value in values.items():
            found = _NAME.fullmatch(name)
            if not found or (found[3] and not 0 < float(found[3]) <= 100):
                raise UserError(
                    f"slo.{name}: expected ttft, tpot or e2el, and mean or p1 to p100: ttft_p99_ms"
                )
            if value is not None and (not isinstance(value, int | float) or value <= 0):
                raise UserError(f"slo.{name}={value}: expected ms, greater than 0")
        targets = [cls(name, float(value)) for name, value in values.items() if value is not None]
        if not targets:
            raise UserError("no target given; expected slo.ttft_p99_ms=2000, slo.tpot_p50_ms=50 or the like")
        return targets

    def reached_ms(self, requests: pa.Table, start_s: float, end_s: float) -> float:
        """Return the statistic over the requests that arrived in the window; infinite where it has no value.

        A percentile is the smallest value with as many at or below it. A request that has not got that far
        when the run ends counts with its time so far, if that is over the limit already; one that was
        rejected or given up counts as infinite. So an overloaded server does not look fast by those it
        never served.
        """
        latency, statistic = self.name.removesuffix("_ms").split("_")
        values = _latencies_ms(requests, latency, start_s, end_s, self.limit_ms)
        if not len(values):
            return float("inf")
        if statistic == "mean":
            return float(np.mean(values))
        return float(np.percentile(values, float(statistic[1:]), method="inverted_cdf"))

    def margin(self, reached_ms: float) -> float:
        """Return the fraction of the limit that is left; below 0 it is missed."""
        return 1 - reached_ms / self.limit_ms


def _latencies_ms(
    requests: pa.Table, latency: str, start_s: float, end_s: float, limit_ms: float
) -> Sequence[float]:
    columns = (f"{latency}_ms", "arrival_s", "status")
    known, arrivals_s, statuses = (requests.column(name).to_pylist() for name in columns)
    values = []
    for value_ms, arrival_s, status in zip(known, arrivals_s, statuses, strict=True):
        if arrival_s < start_s:
            continue
        if value_ms is not None:
            values.append(value_ms)
        elif status in ("rejected", "aborted", "failed"):
            values.append(float("inf"))
        elif latency != "tpot" and (so_far_ms := (end_s - arrival_s) * _MS_PER_S) > limit_ms:
            values.append(so_far_ms)
    return values
