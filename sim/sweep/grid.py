"""The jobs of a sweep, counted before the first of them begins."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from sim.config import NOT_OF_A_RUN
from sim.errors import UserError
from sim.fields import require_processes


def number_of_jobs(config: DictConfig) -> int:
    """Return the sweeper's own number of trials, or count the jobs as Hydra's sweeper does.

    Raises UserError where there would be none, or where they would differ by what is no part of a run.
    """
    sweeper = config.hydra.sweeper
    params = sweeper.get("params") or {}
    words = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides(words)
    _check_runs_differ(overrides)
    if "n_trials" not in sweeper:
        _check_has_values(overrides)
        return len(BasicSweeper.split_arguments(overrides, None)[0])
    if sweeper.n_trials < 1:
        raise UserError(f"hydra.sweeper.n_trials={sweeper.n_trials}: must be greater than 0")
    require_processes("hydra.sweeper.n_jobs", sweeper.n_jobs)
    return int(sweeper.n_trials)


def _check_runs_differ(overrides: Sequence[Override]) -> None:
    for override in overrides:
        if override.is_sweep_override() and override.key_or_group.split(".")[0] in NOT_OF_A_RUN:
            raise UserError(f"{override.input_line}: is no part of a run; expected one value for a sweep")


def _check_has_values(overrides: Sequence[Override]) -> None:
    for override in overrides:
        if override.is_discrete_sweep() and not any(True for _ in override.sweep_iterator()):
            raise UserError(f"{override.input_line}: has no value; expected one at least")
