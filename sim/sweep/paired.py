"""The difference between two settings, pair by pair: of one metric, or of what holds or does not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """Means over the pairs, and the mean difference with its interval.

    The interval is Student's for the mean of paired differences: mean +- t(0.975, n - 1) * s / sqrt(n). With
    common random numbers the pairs are far more alike than two runs of different seeds. None with one pair.
    """

    num_pairs: int
    baseline: float
    mean: float
    difference: float
    """`mean` - `baseline`."""
    low: float | None
    high: float | None

    @property
    def relative(self) -> float | None:
        """The difference as a fraction of the baseline; None where that is 0."""
        return self.difference / self.baseline if self.baseline else None

    def verdict(self, higher_is_better: bool) -> str:
        """Return better, worse, alike (the interval holds 0) or unknown (one pair)."""
        if self.low is None or self.high is None:
            return "unknown"
        if self.low <= 0 <= self.high:
            return "alike"
        return "better" if (self.difference > 0) == higher_is_better else "worse"


def paired_difference(baseline: Sequence[float], values: Sequence[float]) -> PairedDifference:
    """Return what ``values`` are above ``baseline``, pair by pair. Raises ValueError for none."""
    if not baseline or len(baseline) != len(values):
        raise ValueError(f"{len(baseline)} and {len(values)} values: expected pairs")
    differences = np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    mean, num_pairs = float(np.mean(differences)), len(differences)
    low = high = None
    if num_pairs > 1:
        error = float(np.std(differences, ddof=1)) / num_pairs**0.5
        reach = float(special.stdtrit(num_pairs - 1, (1 + CONFIDENCE) / 2)) * error
        low, high = mean - reach, mean + reach
    return PairedDifference(num_pairs, float(np.mean(baseline)), float(np.mean(values)), mean, low, high)


def mcnemar_p(gained: int, lost: int) -> float:
    """Return how likely a difference as large, or larger, is by chance: McNemar's exact test, two-sided.

    Of the pairs that differ, `gained` hold in the second setting alone and `lost` in the first alone; where
    the settings are alike, each is as likely as the other. Psychometrika 12 (1947). Raises ValueError.
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"gained={gained}, lost={lost}: must not be negative")
    return min(1.0, 2 * float(special.bdtr(min(gained, lost), gained + lost, 0.5)))
