"""What an engine tells of its steps, and to whom."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sim.adapters import AdapterEvent
from sim.costs import StepCost, StepShape
from sim.scheduler import StepPlan


class GpuIdle(NamedTuple):
    """Why the GPU did nothing between the step before and this one, in ns."""

    loading_ns: int
    """The host thread loaded adapters from disk."""
    activation_ns: int
    """The host thread copied adapters to GPU slots."""
    host_ns: int
    """The host thread scheduled, prepared inputs or took over results."""
    no_work_ns: int
    """There was nothing to schedule."""


def gpu_idle(waited_ns: int, loading_ns: int, activation_ns: int, no_work_ns: int) -> GpuIdle:
    """Return why the GPU did nothing for so long; what nothing else explains, the host thread does."""
    host_ns = waited_ns - loading_ns - activation_ns - no_work_ns
    # For every step: at half the price of the class's own `__new__`.
    return tuple.__new__(GpuIdle, (loading_ns, activation_ns, host_ns, no_work_ns))


@dataclass(slots=True)
class StepRecord:
    """One step; all of it is known when it is scheduled. Times are ns of simulated time."""

    step: int
    """Counts the engine's steps from 0."""
    plan: StepPlan
    shape: StepShape
    cost: StepCost
    events: list[AdapterEvent]
    schedule_ns: int
    """When it is scheduled."""
    load_ns: int
    activate_ns: int
    launch_end_ns: int
    """When the host thread is free again."""
    gpu_start_ns: int
    gpu_end_ns: int
    gpu_idle: GpuIdle

    def with_plan(self, plan: StepPlan) -> "StepRecord":
        """Return the record with another plan of the same step."""
        return StepRecord(
            self.step,
            plan,
            self.shape,
            self.cost,
            self.events,
            self.schedule_ns,
            self.load_ns,
            self.activate_ns,
            self.launch_end_ns,
            self.gpu_start_ns,
            self.gpu_end_ns,
            self.gpu_idle,
        )


class StepObserver(Protocol):
    """What is told of steps, at the instant when the engine itself knows."""

    def on_step(self, record: StepRecord) -> None:
        """A step is scheduled."""
        ...

    def on_tokens(self, plan: StepPlan, now_ns: int) -> None:
        """Each request in `plan.sampled` has one more token. The `last_token_ns` of `plan.sampled_chunks` and
        `plan.joined` is still the one before; the others had theirs with the step before.
        """
        ...
