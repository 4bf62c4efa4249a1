"""Gaps between the tokens of a request, counted."""

from array import array

import numpy as np
from numpy.typing import NDArray

from sim.costs import FS_PER_NS
from sim.fast_forward import DecodeRun

Histogram = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Values, ascending, and how often each occurs."""

COLUMNS = 6


class TokenGaps:
    """How often which gap occurs, in ns. Those of a run of steps are held in closed form until asked for."""

    def __init__(self) -> None:
        self._gaps_ns, self._counts = array("q"), array("q")
        self._runs = array("q")

    def append(self, gap_ns: int, count: int) -> None:
        """Count a gap."""
        self._gaps_ns.append(gap_ns)
        self._counts.append(count)

    def extend(self, gaps_ns: "array[int]", counts: "array[int]") -> None:
        """Count gaps, each as often as its count says."""
        self._gaps_ns.extend(gaps_ns)
        self._counts.extend(counts)

    def append_run(self, run: DecodeRun, count: int) -> None:
        """Count the gaps between the turns of a run, each `count` times."""
        if not count:
            return
        num_regular = run.num_steps - run.offset
        if run.offset == 2 and run.num_steps > 1:
            self.append(run.turn_ns(2) - run.turn_ns(1), count)
        if num_regular > 0:
            gpu = (run.gpu_fs, run.growth_fs, run.carry_fs) if run.paced_by_gpu else (0, 0, 0)
            self._runs.extend((num_regular, count, run.period_ns, *gpu))

    def add(self, other: "TokenGaps") -> None:
        """Add the gaps that another has counted."""
        self._gaps_ns.extend(other._gaps_ns)
        self._counts.extend(other._counts)
        self._runs.extend(other._runs)

    def histogram(self) -> Histogram:
        """Return all gaps."""
        of_runs, counts_of_runs = self._expanded()
        gaps_ns = np.concatenate([np.array(self._gaps_ns, dtype=np.int64), of_runs])
        counts = np.concatenate([np.array(self._counts, dtype=np.int64), counts_of_runs])
        values, places = np.unique(gaps_ns, return_inverse=True)
        totals = np.zeros(len(values), dtype=np.int64)
        np.add.at(totals, places, counts)
        return values, totals

    def _expanded(self) -> Histogram:
        """The gaps of the runs, in order of time, with their counts."""
        runs = np.array(self._runs, dtype=np.int64).reshape(-1, COLUMNS)
        lengths = runs[:, 0]
        first = np.repeat(np.cumsum(lengths) - lengths, lengths)
        _, counts, period_ns, gpu_fs, growth_fs, carry_fs = np.repeat(runs, lengths, axis=0).T
        number = np.arange(len(first)) - first

        def gpu_ns(num_steps: NDArray[np.int64]) -> NDArray[np.int64]:
            growing = growth_fs * (num_steps * (num_steps - 1) // 2)
            return np.asarray((carry_fs + num_steps * gpu_fs + growing) // FS_PER_NS)

        return period_ns + gpu_ns(number + 1) - gpu_ns(number), counts
