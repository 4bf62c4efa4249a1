"""Which models of the server a run asks for."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from calibrate.bench.client import ServedModel
from calibrate.bench.dataset import DatasetLine
from sim.errors import UserError
from sim.workload import WorkloadConfig, adapter_name, traffic

BASELINE, MULTI = "baseline", "multi"
SHOWN = 5


@dataclass(frozen=True)
class Names:
    """The server's names of what a workload asks for."""

    adapters: Sequence[str] = field(default_factory=tuple)
    """What the workload's own names stand for: `adapter-0000` for the first, and so on; none: for
    themselves."""
    base: str | None = None
    """Asked for where a request wants no adapter."""
    baseline: str | None = None
    """The one adapter of all requests in baseline mode."""

    def of(self, spec_adapter: str | None, line: DatasetLine | None, mode: str) -> str | None:
        """Return the adapter of a request; None: the base model."""
        if mode == BASELINE:
            return self.baseline
        if line is not None and line.adapter is not None:
            return line.adapter
        return None if spec_adapter is None else self.own(spec_adapter)

    def own(self, name: str) -> str:
        """Return the server's name of an adapter of the workload's."""
        return self._own.get(name, name)

    @cached_property
    def _own(self) -> dict[str, str]:
        return {adapter_name(index): name for index, name in enumerate(self.adapters)}


def resolve(
    workload: WorkloadConfig,
    given: Sequence[str] | None,
    names: Names,
    served: Sequence[ServedModel] | None,
    seed: int,
) -> tuple[WorkloadConfig, Names]:
    """Return the workload with no more adapters than there are names, and `names` with those filled in.

    Where none are `given`, a workload whose own names the server lists keeps them; else they stand for the
    adapters that it lists (those with a parent, as vLLM's do). The base model is the first without a parent.
    """
    listed = list(served or ())
    base = names.base or next((model.name for model in listed if model.parent is None), None)
    adapters = list(given or ())
    if not adapters and not _all_listed(workload, listed, seed):
        adapters = [model.name for model in listed if model.parent is not None]
    if adapters and workload.num_adapters > len(adapters):
        workload = replace(workload, num_adapters=len(adapters))
    return workload, Names(adapters, base, names.baseline)


def asked_for(
    mode: str, workload: WorkloadConfig, seed: int, lines: Sequence[DatasetLine], names: Names
) -> list[str]:
    """Return every model that a run may ask for, by name. Raises UserError where baseline mode has none."""
    if mode == BASELINE:
        if names.baseline is None:
            raise UserError(
                "baseline_adapter: not given; expected the model that all baseline requests ask for"
            )
        return [names.baseline]
    named = dict.fromkeys(line.adapter for line in lines if line.adapter is not None)
    if not lines or any(line.adapter is None for line in lines):
        named |= dict.fromkeys(names.own(name) for name in traffic(workload, seed).ranks)
    return list(named)


def refuse_unknown(asked: Sequence[str], served: Sequence[ServedModel] | None) -> None:
    """Raise UserError for models that the server does not list; one without a list may serve anything."""
    if served is None:
        return
    listed = {model.name for model in served}
    unknown = [name for name in asked if name not in listed]
    if unknown:
        raise UserError(
            f"adapters: the server does not list {_some(unknown)}; it lists {_some(sorted(listed))} "
            "(check_models=false asks for them all the same)"
        )


def _all_listed(workload: WorkloadConfig, listed: Sequence[ServedModel], seed: int) -> bool:
    names = {model.name for model in listed}
    return all(name in names for name in traffic(workload, seed).ranks)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown or "none"
