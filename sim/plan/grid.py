"""What a plan searches: the grid of settings under ``search``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from hydra import compose

from sim.config import run_values
from sim.errors import UserError
from sim.fields import require_processes

_POLICIES = ("admission", "eviction", "prefetch", "routing")
_OF_THE_PLAN = ("slo", "search", "prices")


@dataclass(frozen=True)
class SearchConfig:
    """``search``: the grid. ``policies`` are choices of configuration groups."""

    max_loras: list[int]
    max_cpu_loras: list[int | None]
    policies: list[Mapping[str, Any]]
    max_replicas: int
    seeds: list[int]
    processes: int

    def __post_init__(self) -> None:
        for name in ("max_loras", "max_cpu_loras", "policies", "seeds"):
            if not getattr(self, name):
                raise UserError(f"search.{name}=[]: expected one value at least")
        require_processes("search.processes", self.processes)
        for number, max_loras in enumerate(self.max_loras):
            if max_loras < 1:
                raise UserError(f"search.max_loras[{number}]={max_loras}: must be greater than 0")
        for number, max_cpu_loras in enumerate(self.max_cpu_loras):
            if max_cpu_loras is not None and max_cpu_loras < 1:
                raise UserError(f"search.max_cpu_loras[{number}]={max_cpu_loras}: must be greater than 0")
        for number, seed in enumerate(self.seeds):
            if seed < 0:
                raise UserError(f"search.seeds[{number}]={seed}: must not be negative")
        if self.max_replicas < 1:
            raise UserError(f"search.max_replicas={self.max_replicas}: must be greater than 0")
        for number, policies in enumerate(self.policies):
            for group in policies:
                if group not in _POLICIES:
                    accepted = ", ".join(_POLICIES)
                    raise UserError(f"search.policies[{number}].{group}: expected one of {accepted}")


@dataclass(frozen=True)
class Setting:
    """One point of the grid, replicas apart."""

    max_loras: int
    max_cpu_loras: int | None
    choices: Mapping[str, str]
    """Of the policies' groups."""
    values: Mapping[str, Any]
    """The resolved configuration, for one replica."""

    def __str__(self) -> str:
        """Return what a user would set."""
        words = [f"max_loras {self.max_loras}", f"max_cpu_loras {self.max_cpu_loras or self.max_loras}"]
        return ", ".join([*words, *(f"{group} {choice}" for group, choice in self.choices.items())])


def settings_of(search: SearchConfig, overrides: Sequence[str]) -> list[Setting]:
    """Return the grid, composed by Hydra; what fits the host cache poorly is no setting."""
    found = []
    for policies in search.policies:
        words = [*overrides, *(f"{group}={choice}" for group, choice in policies.items())]
        composed = compose("plan", words, return_hydra_config=True)
        chosen = composed.hydra.runtime.choices
        choices = {group: chosen[group] for group in _POLICIES if group in chosen}
        values = run_values(composed, *_OF_THE_PLAN)
        for max_loras, max_cpu_loras in product(search.max_loras, search.max_cpu_loras):
            if max_cpu_loras is None or max_cpu_loras >= max_loras:
                engine = {**values["engine"], "max_loras": max_loras, "max_cpu_loras": max_cpu_loras}
                found.append(Setting(max_loras, max_cpu_loras, choices, {**values, "engine": engine}))
    if not found:
        raise UserError("search.max_cpu_loras: every value is below every value of search.max_loras")
    return found
