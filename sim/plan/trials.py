"""Trials of a plan: settings simulated in processes, against targets."""

import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from tqdm import tqdm

from sim.caveats import caveats_of
from sim.cli import is_users, one_line
from sim.errors import DoesNotFit
from sim.plan.grid import SearchConfig, Setting
from sim.plan.targets import Target
from sim.sweep.workers import shield_workers


@dataclass
class Trial:
    """A setting with so many replicas: what each target reaches, the worst over the seeds."""

    setting: Setting
    replicas: int
    margins: dict[str, float] = field(default_factory=dict)
    reached_ms: dict[str, float] = field(default_factory=dict)
    status: str = "ok"
    """Or ``oom``, or ``error``, where one seed was enough for that."""
    message: str = ""
    serve_command: str = ""
    policies: Mapping[str, Any] | None = None
    """For vLLM, where they are not its own (sim.policy.bridged)."""
    warnings: list[str] = field(default_factory=list)

    @property
    def margin(self) -> float:
        """The smallest of the margins."""
        return min(self.margins.values(), default=float("-inf"))

    @property
    def meets(self) -> bool:
        """Whether every target is met."""
        return self.status == "ok" and self.margin >= 0


def try_all(
    settings: Sequence[Setting],
    replicas: int,
    search: SearchConfig,
    targets: Sequence[Target],
    bar: "tqdm[Any]",
) -> list[Trial]:
    """Simulate each setting with each seed, in processes, and return a trial for each setting."""
    bar.total = (bar.total or 0) + len(settings) * len(search.seeds)
    bar.set_postfix(replicas=replicas, refresh=False)
    shield_workers()
    trials = [Trial(setting, replicas) for setting in settings]
    work = [(number, seed) for number in range(len(settings)) for seed in search.seeds]
    run = delayed(_outcome)
    for number, outcome in Parallel(n_jobs=search.processes, return_as="generator_unordered")(
        run(number, {**settings[number].values, "replicas": replicas, "seed": seed}, targets)
        for number, seed in work
    ):
        _add(trials[number], outcome, targets)
        bar.update()
    return trials


@dataclass(frozen=True)
class _Outcome:
    """What one run says."""

    status: str
    message: str = ""
    reached_ms: Mapping[str, float] = field(default_factory=dict)
    serve_command: str = ""
    policies: Mapping[str, Any] | None = None
    warnings: Sequence[str] = ()


def _outcome(number: int, values: Mapping[str, Any], targets: Sequence[Target]) -> tuple[int, _Outcome]:
    """Simulate one run, maybe in another process. ``number`` says whose it is."""
    from sim import simulation  # noqa: PLC0415

    try:
        result = simulation.simulate(values)
    except DoesNotFit as error:
        return number, _Outcome("oom", str(error))
    except Exception as error:  # A policy of the user's, say: the other settings have their answers.
        return number, _Outcome("error", _message(error))
    start_s, window_s = float(values["warmup_s"]), result.summary["duration_s"]
    reached = {
        target.name: target.reached_ms(result.requests, start_s, start_s + window_s) for target in targets
    }
    command, warnings = result.summary["vllm_serve_command"], caveats_of(result.summary)
    return number, _Outcome("ok", "", reached, command, result.policies, warnings)


def _message(error: Exception) -> str:
    """Return what a failed run says in one line, and where, if no user can mend it."""
    if is_users(error):
        return one_line(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{what} ({Path(last.filename).name}, line {last.lineno})"


def _add(trial: Trial, outcome: _Outcome, targets: Sequence[Target]) -> None:
    """Add a seed's outcome to its trial, whose worst seed counts."""
    trial.serve_command = outcome.serve_command or trial.serve_command
    trial.policies = outcome.policies or trial.policies
    trial.warnings += [text for text in outcome.warnings if text not in trial.warnings]
    if outcome.status != "ok":
        trial.status, trial.message = outcome.status, outcome.message
    for target in targets:
        if target.name in outcome.reached_ms:
            worst = max(outcome.reached_ms[target.name], trial.reached_ms.get(target.name, 0.0))
            trial.reached_ms[target.name], trial.margins[target.name] = worst, target.margin(worst)


def trial_row(trial: Trial, targets: Sequence[Target]) -> dict[str, Any]:
    """Return a row of ``plan.csv``."""
    return {
        "replicas": trial.replicas,
        "max_loras": trial.setting.max_loras,
        "max_cpu_loras": trial.setting.max_cpu_loras or trial.setting.max_loras,
        **trial.setting.choices,
        "status": trial.status,
        "message": trial.message,
        "meets": trial.meets,
        **{target.name: trial.reached_ms.get(target.name) for target in targets},
        "margin": trial.margin if trial.margins else None,
        "vllm_serve_command": trial.serve_command,
        # As JSON, which is YAML too: what a policy.yaml for this row's command has in it.
        "policies": None if trial.policies is None else json.dumps(trial.policies),
    }
