"""Sums of non-negative terms, fitted to measured durations."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import nnls

from sim.terms import TERMS

Floats = NDArray[np.float64]
REPLICATES = 200


def design(steps: pd.DataFrame, terms: Sequence[str]) -> Floats:
    """Return the counts of each term in each step: an array of shape (steps, terms)."""
    return np.column_stack([np.asarray(TERMS[term].count(steps), dtype=float) for term in terms])


def fit(counts: Floats, durations: Floats) -> Floats:
    """Return non-negative coefficients that minimise the squared relative errors; shape (terms,).

    Errors of durations below half the median count relative to that: a host's shortest moments say little.

    Non-negative least squares (Lawson and Hanson 1974) keeps a cost from falling as any count grows, inside
    the measured range and beyond it.
    """
    scale = counts.max(axis=0)
    scale[scale == 0] = 1.0
    tolerance = np.maximum(durations, np.median(durations) / 2)
    coefficients, _ = nnls(counts / scale / tolerance[:, None], durations / tolerance)
    return np.asarray(coefficients / scale)


def intervals(counts: Floats, durations: Floats, groups: pd.Series, seed: int) -> Floats:
    """Return 95 % bootstrap intervals of the coefficients, shape (terms, 2).

    Whole groups of steps (a cell of a run) are drawn with replacement: steps of a cell are not independent.
    """
    rng = np.random.default_rng(seed)
    codes, names = pd.factorize(groups)
    members = [np.flatnonzero(codes == code) for code in range(len(names))]
    draws = []
    for _ in range(REPLICATES):
        chosen = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        draws.append(fit(counts[chosen], durations[chosen]))
    return np.asarray(np.quantile(draws, [0.025, 0.975], axis=0).T)


def relative_errors(predicted: Floats, measured: Floats) -> Floats:
    """Return |predicted / measured - 1|."""
    return np.asarray(np.abs(predicted / measured - 1))
