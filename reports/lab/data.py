"""A sweep over policies, traffic shapes and seeds, with its bounds: what the laboratory's page is about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sim.errors import UserError
from sim.results import POLICY_FILE
from sim.sweep.objective import higher_is_better, metric
from sim.sweep.paired import PairedDifference, paired_difference
from sim.sweep.runs import Run, load_runs
from sim.sweep.settings import is_of_traffic, varying

POLICY_GROUPS = ("admission", "eviction", "host_eviction", "prefetch", "routing")
BOUND = "bound"
"""Column of ``sweep.csv``: null or blank for a policy's run, else which bound the run computes."""
NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Case:
    """A policy under one kind of traffic, at its own best engine settings: a run for each seed."""

    policy: str
    traffic: str
    tuned: str
    """The engine settings that serve it best, of those that were tried; empty where none varies."""
    runs: Mapping[str, Run]
    """By seed."""

    @property
    def serve_command(self) -> str:
        """The complete ``vllm serve`` command; the file of its policies, if any, lies in a run's folder."""
        run = next(iter(self.runs.values()))
        command = str(run.summary["vllm_serve_command"])
        return command.replace(f"={POLICY_FILE} ", f"={run.path / POLICY_FILE} ", 1)

    def values(self, name: str) -> dict[str, float]:
        """Return a metric by seed, of the runs that have it."""
        found = {seed: metric(run.summary, name) for seed, run in self.runs.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def mean(self, name: str) -> float | None:
        """Return the mean of a metric over the seeds."""
        values = list(self.values(name).values())
        return float(np.mean(values)) if values else None


@dataclass(frozen=True)
class Lab:
    """The cases of a sweep by traffic and policy, and the bounds by traffic."""

    objective: str
    baseline: str
    traffics: Sequence[str]
    policies: Sequence[str]
    cases: Mapping[tuple[str, str], Case]
    """By (traffic, policy); a policy all of whose runs failed under a traffic is not there."""
    bounds: Mapping[str, Case]
    """By traffic: the bound that speaks to the objective."""
    num_failed: int
    num_runs: int

    def case(self, traffic: str, policy: str) -> Case | None:
        """Return a case, or None where all of its runs failed."""
        return self.cases.get((traffic, policy))

    def against_baseline(self, traffic: str, policy: str) -> PairedDifference | None:
        """Return the objective's difference from the baseline over the seeds that both have."""
        return self.difference(self.case(traffic, self.baseline), self.case(traffic, policy), self.objective)

    @staticmethod
    def difference(one: Case | None, other: Case | None, name: str) -> PairedDifference | None:
        """Return the difference of a metric over the seeds that both cases have; None without any."""
        if one is None or other is None:
            return None
        before, after = one.values(name), other.values(name)
        seeds = [seed for seed in before if seed in after]
        return paired_difference([before[s] for s in seeds], [after[s] for s in seeds]) if seeds else None

    def winner(self, traffic: str) -> Case | None:
        """Return the case with the best mean objective under a traffic."""
        cases = [case for (shape, _), case in self.cases.items() if shape == traffic]
        return best_of(cases, self.objective)

    def share_closed(self, traffic: str, policy: str) -> "Share | None":
        """Return what share of the gap from baseline to bound a policy closes; None without a bound."""
        cases = (self.case(traffic, self.baseline), self.case(traffic, policy), self.bounds.get(traffic))
        known = [case.values(self.objective) for case in cases if case is not None]
        if len(known) < 3:
            return None
        seeds = [seed for seed in known[0] if all(seed in values for values in known)]
        return share([[values[seed] for seed in seeds] for values in known]) if seeds else None


@dataclass(frozen=True)
class Share:
    """A share of a gap with its 95 % interval, which is None with one seed or where resamples have no gap."""

    share: float
    low: float | None
    high: float | None


def share(values: Sequence[Sequence[float]]) -> Share | None:
    """Return (policy - baseline) / (bound - baseline) of the means over seeds; None where there is no gap.

    The interval is a percentile bootstrap over seeds, drawn with a fixed seed.
    """
    baseline, policy, bound = (np.asarray(side, dtype=np.float64) for side in values)
    gap = float(np.mean(bound - baseline))
    if not gap:
        return None
    found = float(np.mean(policy - baseline)) / gap
    count = len(baseline)
    if count < 2:
        return Share(found, None, None)
    draws = np.random.default_rng(0).integers(0, count, (NUM_RESAMPLES, count))
    gaps = np.mean((bound - baseline)[draws], axis=1)
    if np.any(gaps * gap <= 0):
        return Share(found, None, None)
    low, high = np.percentile(np.mean((policy - baseline)[draws], axis=1) / gaps, [2.5, 97.5])
    return Share(found, float(low), float(high))


@dataclass(frozen=True)
class Sensitivity:
    """A sweep over one numeric setting: its values take the place of traffic shapes."""

    axis: str
    values: Sequence[float]
    lab: Lab


def load_sensitivity(folder: Path, objective: str | None = None, baseline: str | None = None) -> Sensitivity:
    """Read a sweep in which, beside policies, seeds and bounds, one number varies. Raises UserError."""
    columns = varying([run.columns for run in load_runs(folder)])
    axes = [name for name in columns if name.partition(".")[0] not in (*POLICY_GROUPS, "seed", BOUND)]
    if len(axes) != 1:
        found = ", ".join(axes) or "none"
        raise UserError(
            f"{folder}: expected one setting that varies beside policies and seeds; found: {found}"
        )
    lab = load_lab(folder, objective, baseline, axes[0])
    try:
        values = [float(text) for text in lab.traffics]
    except ValueError as error:
        raise UserError(f"{folder}: {axes[0]} has values that are no numbers: {error}") from error
    order = sorted(range(len(values)), key=values.__getitem__)
    traffics = [lab.traffics[index] for index in order]
    return Sensitivity(axes[0], [values[index] for index in order], replace(lab, traffics=traffics))


def load_lab(
    folder: Path,
    objective: str | None = None,
    baseline: str | None = None,
    axis: str | None = None,
    *,
    more: Sequence[Path] = (),
) -> Lab:
    """Read the sweep in ``folder``, and those in ``more`` as if they were one with it. Raises UserError.

    ``axis``: a column whose values are the traffic shapes.
    ``objective``: a metric of ``summary.json``; None: goodput where the runs have it, else throughput.
    ``baseline``: a policy as the page names it; None: vLLM's own where it is there, else the first.
    """
    runs = [run for sweep in (folder, *more) for run in load_runs(sweep)]
    if not any(run.columns for run in runs):
        raise UserError(f"{folder}: one run; expected the folder of a sweep over policies")
    good = [run for run in runs if run.ok]
    if not good:
        raise UserError(f"{folder}: no run succeeded")
    metric_name = objective or _default_objective(good)
    if not any(metric(run.summary, metric_name) is not None for run in good):
        raise UserError(f"metric={metric_name}: no run of {folder} has this metric")
    columns = varying([run.columns for run in runs])
    names = _Names(columns, axis)
    cases = _cases([run for run in good if not is_bound(run)], names, metric_name)
    policies = list(dict.fromkeys(policy for _, policy in cases))
    return Lab(
        objective=metric_name,
        baseline=_baseline(policies, baseline, cases),
        traffics=list(dict.fromkeys(names.traffic(run) for run in good)),
        policies=policies,
        cases=cases,
        bounds=_bounds([run for run in good if is_bound(run)], names, metric_name),
        num_failed=len(runs) - len(good),
        num_runs=len(runs),
    )


def is_bound(run: Run) -> bool:
    """Say whether a run computes a bound instead of simulating an engine."""
    return run.columns.get(BOUND, "null") not in ("null", "")


def best_of(cases: Sequence[Case], name: str) -> Case | None:
    """Return the case with the best mean of a metric."""
    sign = 1 if higher_is_better(name) else -1
    known = [(case, mean) for case in cases if (mean := case.mean(name)) is not None]
    return max(known, key=lambda pair: sign * pair[1])[0] if known else None


class _Names:
    """What a run's columns say: of its policies, its traffic, its engine."""

    def __init__(self, columns: Sequence[str], axis: str | None) -> None:
        self._axis = axis
        self._policies = [name for name in columns if name.partition(".")[0] in POLICY_GROUPS]
        self._traffic = [name for name in columns if is_of_traffic(name) and name != "seed"]
        ignored = {*self._policies, *self._traffic, "seed", BOUND, "experiment", axis}
        self._engine = [name for name in columns if name not in ignored]

    def policy(self, run: Run) -> str:
        """Return ``fcfs_skip + lru``, with parameters where they vary."""
        groups = [name for name in self._policies if "." not in name]
        chosen = [run.columns[name] for name in groups if run.columns.get(name) not in (None, "", "none")]
        parameters = [name for name in self._policies if "." in name and run.columns.get(name)]
        words = [f"{name.partition('.')[2]}={run.columns[name]}" for name in parameters]
        title = " + ".join(chosen) or run.columns.get("admission", "one policy")
        return f"{title} ({', '.join(words)})" if words else title

    def traffic(self, run: Run) -> str:
        """Return the traffic shape with what varies of it."""
        if self._axis is not None:
            return run.columns[self._axis]
        words = [f"{name.removeprefix('workload.')} {run.columns[name]}" for name in self._traffic
                 if name != "workload" and run.columns.get(name)]  # fmt: skip
        return ", ".join([run.columns.get("workload") or "traffic", *words])

    def engine(self, run: Run) -> str:
        """Return the engine settings that vary."""
        return ", ".join(f"{name.removeprefix('engine.')} {run.columns[name]}" for name in self._engine)


def _cases(runs: Sequence[Run], names: _Names, objective: str) -> dict[tuple[str, str], Case]:
    """Return each policy under each traffic, with the engine settings that serve it best there."""
    found: dict[tuple[str, str], dict[str, dict[str, Run]]] = {}
    for run in runs:
        tuned = found.setdefault((names.traffic(run), names.policy(run)), {})
        tuned.setdefault(names.engine(run), {})[run.settings.get("seed", "0")] = run
    cases = {}
    for (traffic, policy), tunings in found.items():
        best = best_of([Case(policy, traffic, tuned, seeds) for tuned, seeds in tunings.items()], objective)
        if best is not None:
            cases[traffic, policy] = best
    return cases


def _bounds(runs: Sequence[Run], names: _Names, objective: str) -> dict[str, Case]:
    """Return, for each traffic, the best of the bound runs that speak to the objective."""
    kind = "throughput" if higher_is_better(objective) else "latency"
    cases = _cases([run for run in runs if run.columns[BOUND] == kind], names, objective)
    by_traffic: dict[str, list[Case]] = {}
    for (traffic, _), case in cases.items():
        by_traffic.setdefault(traffic, []).append(case)
    found = {traffic: best_of(some, objective) for traffic, some in by_traffic.items()}
    return {traffic: case for traffic, case in found.items() if case is not None}


def _default_objective(runs: Sequence[Run]) -> str:
    has_goodput = any("request_goodput" in run.summary for run in runs)
    return "request_goodput" if has_goodput else "output_throughput"


def _baseline(policies: Sequence[str], wanted: str | None, cases: Mapping[tuple[str, str], Case]) -> str:
    if wanted is not None:
        if wanted not in policies:
            raise UserError(f"baseline={wanted!r}: no such policy; accepted: {'; '.join(policies)}")
        return wanted
    one_run = {case.policy: next(iter(case.runs.values())) for case in cases.values()}
    own = [policy for policy, run in one_run.items() if run.plain_vllm]
    return own[0] if own else policies[0]
