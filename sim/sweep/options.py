"""The ``sweep`` section: how a sweep goes about its runs."""

from dataclasses import dataclass

from sim.fields import require_processes


@dataclass(frozen=True)
class SweepConfig:
    """``processes``: runs at the same time, -1 for as many as there are cores. ``resume``: whether a result
    that is there already, and up to date, is taken up.
    """

    processes: int
    resume: bool

    def __post_init__(self) -> None:
        require_processes("sweep.processes", self.processes)
