"""What a setting is judged by: one metric of ``summary.json``, and which way is better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from sim.errors import UserError
from sim.fields import as_mapping, build

DIRECTIONS = ("maximize", "minimize")
_LESS_IS_BETTER = (
    *("num_preemptions", "adapter_loads", "adapter_activations", "gateway.lost_output_tokens"),
    *("counts.rejected", "counts.degraded", "counts.failed"),
)


@dataclass(frozen=True)
class Objective:
    """``conf/objective``: a metric by the name it has in ``sweep.csv`` (``fairness.jain_index``)."""

    metric: str
    direction: str

    @classmethod
    def from_mapping(cls, values: object) -> Self:
        """Build from the resolved ``objective`` section; raises UserError."""
        return build(cls, as_mapping(values, "objective"), "objective")

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            accepted = ", ".join(DIRECTIONS)
            raise UserError(f"objective.direction={self.direction!r}: expected one of {accepted}")

    def check_metric(self) -> None:
        """Raise UserError for what is no metric of a run."""
        # Here and not above: a sweep's processes need no names, which are known to the simulator alone.
        from sim.sweep.metric_names import metric_names  # noqa: PLC0415

        accepted = metric_names()
        if self.metric not in accepted:
            raise UserError(f"objective.metric={self.metric!r}: expected one of {', '.join(accepted)}")

    def check_direction(self, sweeper: Mapping[str, Any]) -> None:
        """Raise UserError for a Hydra sweeper that would search the worst."""
        direction = sweeper.get("direction", self.direction)
        direction = str(getattr(direction, "name", direction))
        if direction != self.direction:
            raise UserError(
                f"hydra.sweeper.direction={direction}: objective {self.metric} is to {self.direction}; "
                "expected hydra/sweeper=tune, which takes it from the objective"
            )

    def value(self, summary: Mapping[str, Any]) -> float | None:
        """Return the metric of a run; None where the run failed or has nothing to say."""
        return metric(summary, self.metric)


def metric(summary: Mapping[str, Any], name: str) -> float | None:
    """Return a number of ``summary.json``, ``group.key`` for one inside a group; None if it has none."""
    found: Any = summary
    for key in name.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) else None


def higher_is_better(name: str) -> bool:
    """Say which way a metric of ``summary.json`` is better: times, swaps and bills low, the rest high."""
    less_is_better = name.endswith(("_ms", "_preemptions", "_usd")) or "_evictions" in name
    return not less_is_better and name not in _LESS_IS_BETTER
