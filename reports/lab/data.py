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
"""Column of ``sweep.csv``: null or blank for a policy's run, else which reference the run computes."""
FREE_ADAPTERS, FREE_SWAPS = "throughput", "latency"
"""The references, as ``bound`` names them (sim.bounds)."""
NOT_SETTINGS = ("seed", BOUND, "experiment", "policy_set")
"""Columns that are neither traffic, nor policy, nor engine."""
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
    num_tried: int = 1
    """How many engine settings it is the best of."""

    @property
    def serve_command(self) -> str:
        """The complete ``vllm serve`` command; it names a file of policies, where they are not its own."""
        return str(self._one_run.summary["vllm_serve_command"])

    @property
    def policy_file(self) -> str | None:
        """What is in that file; None where the policies are vLLM's own."""
        return self.policy_path.read_text(encoding="utf-8") if self.policy_path.is_file() else None

    @property
    def policy_path(self) -> Path:
        """Where that file lies, beside the run's result."""
        return self._one_run.path / POLICY_FILE

    @property
    def knows_the_future(self) -> bool:
        """Whether it can only be simulated: no server could run it."""
        return "Belady" in "".join(
            self._one_run.settings.get(name, "") for name in ("eviction", "host_eviction")
        )

    @property
    def _one_run(self) -> Run:
        return next(iter(self.runs.values()))

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
    """The cases of a sweep by traffic and policy, all of the same seeds, and the references by traffic."""

    objective: str
    baseline: str
    traffics: Sequence[str]
    policies: Sequence[str]
    cases: Mapping[tuple[str, str], Case]
    """By (traffic, policy); a policy all of whose runs failed under a traffic is not there."""
    references: Mapping[tuple[str, str], Case]
    """By (traffic, which): engines to which adapters cost less than they do."""
    seeds: Mapping[str, Sequence[str]]
    """By traffic: the seeds that all cases and references have; no other is looked at."""
    left_out: Mapping[str, Sequence[str]]
    """By traffic: the seeds that only some have."""
    failed: Sequence[Run]
    runs: Sequence[Run]
    """All, failed ones and references included."""

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

    def verdict(self, one: Case | None, other: Case | None) -> str:
        """Return whether ``other`` is better than ``one`` by the objective, worse, alike or unknown."""
        found = self.difference(one, other, self.objective)
        return "unknown" if found is None else found.verdict(higher_is_better(self.objective))

    def best(self, traffic: str) -> Case | None:
        """Return the case with the best mean objective under a traffic, shown to be better or not."""
        return best_of(self._of(traffic), self.objective)

    def winner(self, traffic: str) -> Case | None:
        """Return the best of those that are shown to be better than the baseline at its own best settings."""
        base = self.case(traffic, self.baseline)
        shown = [case for case in self._of(traffic) if self.verdict(base, case) == "better"]
        return best_of(shown, self.objective)

    def ties(self, traffic: str) -> list[Case]:
        """Return the cases whose difference from the winner may be chance, the best mean first."""
        winner = self.winner(traffic)
        if winner is None:
            return []
        others = [case for case in self._of(traffic) if case.policy != winner.policy]
        alike = [case for case in others if self.verdict(winner, case) in ("alike", "unknown")]
        sign = -1 if higher_is_better(self.objective) else 1
        return sorted(alike, key=lambda case: sign * (case.mean(self.objective) or 0.0))

    def _of(self, traffic: str) -> list[Case]:
        """Return what could be served with."""
        cases = [case for (shape, _), case in self.cases.items() if shape == traffic]
        return [case for case in cases if not case.knows_the_future]

    def reference(self, traffic: str, which: str | None = None) -> Case | None:
        """Return a reference; without ``which`` the one that speaks to the objective."""
        own = FREE_ADAPTERS if higher_is_better(self.objective) else FREE_SWAPS
        return self.references.get((traffic, which or own))

    def ceiling(self, traffic: str, name: str | None = None) -> dict[str, float]:
        """Return by seed what nothing can exceed in the objective, or ``name``; empty: that is not known."""
        case = self.reference(traffic, FREE_ADAPTERS)
        return {} if case is None else case.values(f"ceiling.{name or self.objective}")

    def bound(self, traffic: str) -> dict[str, float]:
        """Return by seed what a policy is measured against: the ceiling, else the reference."""
        reference = self.reference(traffic)
        own = {} if reference is None else reference.values(self.objective)
        return self.ceiling(traffic) or own

    def share_closed(self, traffic: str, policy: str) -> "Share | None":
        """Return what share of the gap from baseline to bound a policy closes; None without a bound."""
        cases = self.case(traffic, self.baseline), self.case(traffic, policy)
        known = [case.values(self.objective) for case in cases if case is not None]
        known.append(self.bound(traffic))
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
    axes = [name for name in columns if name.partition(".")[0] not in (*POLICY_GROUPS, *NOT_SETTINGS)]
    # Each policy stands at its own best engine settings, if anything else varies.
    axes = [name for name in axes if not name.startswith("engine.")] or axes
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
    names = _Names(varying([run.columns for run in runs]), axis)
    seeds = {traffic: _seeds(good, names, traffic) for traffic in dict.fromkeys(map(names.traffic, good))}
    common = [run for run in good if _seed(run) in seeds[names.traffic(run)].common]
    cases = _cases([run for run in common if not is_bound(run)], names, metric_name)
    policies = list(dict.fromkeys(policy for _, policy in cases))
    return Lab(
        objective=metric_name,
        baseline=_baseline(policies, baseline, cases),
        traffics=list(seeds),
        policies=policies,
        cases=cases,
        references=_references([run for run in common if is_bound(run)], names, metric_name),
        seeds={traffic: found.common for traffic, found in seeds.items()},
        left_out={traffic: found.others for traffic, found in seeds.items() if found.others},
        failed=[run for run in runs if not run.ok],
        runs=runs,
    )


@dataclass(frozen=True)
class _Seeds:
    common: Sequence[str]
    others: Sequence[str]


def _seeds(runs: Sequence[Run], names: "_Names", traffic: str) -> _Seeds:
    """Return the seeds that every setting and reference has under a traffic, and the others.

    Means over different seeds are not to be compared. Raises UserError where there is no common one.
    """
    found: dict[tuple[str, str, str], dict[str, None]] = {}
    for run in runs:
        if names.traffic(run) == traffic:
            which = run.columns.get(BOUND, "null")
            found.setdefault((names.policy(run), names.engine(run), which), {})[_seed(run)] = None
    every = list(dict.fromkeys(seed for some in found.values() for seed in some))
    common = [seed for seed in every if all(seed in some for some in found.values())]
    if not common:
        fewest = min(found, key=lambda key: len(found[key]))
        raise UserError(
            f"{traffic} traffic: no seed that all ran with; {', '.join(filter(None, fewest[:2]))} has "
            f"{', '.join(found[fewest])} of {', '.join(every)}; expected the same seeds everywhere"
        )
    return _Seeds(common, [seed for seed in every if seed not in common])


def _seed(run: Run) -> str:
    return run.settings.get("seed", "0")


def is_bound(run: Run) -> bool:
    """Say whether a run computes a reference instead of simulating an engine."""
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
        ignored = {*self._policies, *self._traffic, *NOT_SETTINGS, axis}
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
        tuned.setdefault(names.engine(run), {})[_seed(run)] = run
    cases = {}
    for (traffic, policy), tunings in found.items():
        best = best_of(
            [Case(policy, traffic, tuned, seeds, len(tunings)) for tuned, seeds in tunings.items()], objective
        )
        if best is not None:
            cases[traffic, policy] = best
    return cases


def _references(runs: Sequence[Run], names: _Names, objective: str) -> dict[tuple[str, str], Case]:
    """Return, for each traffic and reference, its best case, of whatever policy it was run with."""
    found: dict[tuple[str, str], Case] = {}
    for which in dict.fromkeys(run.columns[BOUND] for run in runs):
        cases = _cases([run for run in runs if run.columns[BOUND] == which], names, objective)
        for traffic in dict.fromkeys(shape for shape, _ in cases):
            best = best_of([case for (shape, _), case in cases.items() if shape == traffic], objective)
            if best is not None:
                found[traffic, which] = best
    return found


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
