"""Drift: the popular adapters of now are not those of later."""

from dataclasses import dataclass

from sim.errors import UserError
from sim.fields import require_positive


@dataclass(frozen=True)
class Drift:
    """The ranking of any popularity moves on by ``shift`` adapters once a period.

    A period is ``period_s`` seconds of arrivals or, where arrivals have no time of their own (closed loop),
    ``period_requests`` requests. A ``shift`` of the hot set's size exchanges all of it.
    """

    shift: int = 1
    period_s: float | None = None
    period_requests: int | None = None

    def __post_init__(self) -> None:
        require_positive("workload.drift", self, "shift", "period_s", "period_requests")
        if (self.period_s is None) == (self.period_requests is None):
            raise UserError("workload.drift needs one of period_s and period_requests")

    def offset(self, number: int, arrival_ns: int) -> int:
        """Return how far the ranking has moved when the ``number``-th request (from 0) arrives."""
        if self.period_requests is not None:
            return self.shift * (number // self.period_requests)
        return self.shift * int(arrival_ns // round((self.period_s or 0) * 1e9))
