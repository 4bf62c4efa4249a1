"""Markov-modulated Poisson arrivals: quiet times and bursts."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from sim.errors import UserError
from sim.workload.arrivals.whole_ns import whole_ns


@dataclass(frozen=True)
class Mmpp:
    """A Poisson process whose rate jumps from state to state, in turn.

    State i lasts an exponential time with mean ``dwell_s[i]``. ``rates[i]`` is its rate relative to those of
    the other states: all are scaled so that the mean over time is the workload's ``request_rate``.
    """

    rates: list[float] = field(default_factory=lambda: [1.0, 10.0])
    dwell_s: list[float] = field(default_factory=lambda: [60.0, 10.0])

    def __post_init__(self) -> None:
        if len(self.rates) < 2 or len(self.rates) != len(self.dwell_s):
            raise UserError(
                f"workload.arrivals.rates has {len(self.rates)} states and workload.arrivals.dwell_s "
                f"{len(self.dwell_s)}: expected the same number, two or more"
            )
        if min(self.rates) < 0 or not any(self.rates):
            raise UserError(f"workload.arrivals.rates={self.rates}: expected none below 0, and one above")
        if min(self.dwell_s) <= 0:
            raise UserError(f"workload.arrivals.dwell_s={self.dwell_s}: must be greater than 0")

    def times_ns(self, request_rate: float, rng: np.random.Generator) -> Iterator[int]:
        """Yield arrival times in ns; the first state is drawn, so the process is stationary from 0 on."""
        time_shares = np.array(self.dwell_s) / sum(self.dwell_s)
        rates = np.array(self.rates) * (request_rate / (time_shares @ self.rates))
        state = int(rng.choice(len(rates), p=time_shares))
        begin_s = 0.0
        while True:
            length_s = rng.exponential(self.dwell_s[state])
            count = rng.poisson(rates[state] * length_s)
            times_s = np.sort(rng.uniform(begin_s, begin_s + length_s, count))
            yield from whole_ns(times_s * 1e9)
            begin_s += length_s
            state = (state + 1) % len(rates)
