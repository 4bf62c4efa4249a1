"""What somebody else reported of the two runs, beside ours."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from calibrate.bench.metrics import COMPARED, improvement_pct
from calibrate.bench.tables import signed_pct, value
from sim.errors import UserError
from sim.fields import as_mapping, build


@dataclass(frozen=True)
class Reported:
    """Somebody's figures. `baseline` and `multi` hold metrics of COMPARED under their keys."""

    source: str
    baseline: Mapping[str, Any]
    multi: Mapping[str, Any]
    differences: list[str]
    """Why ours differ, or that it is not explained."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from the configuration. Raises UserError for metrics that we do not have."""
        found = build(cls, as_mapping(values, "reported"), "reported")
        accepted = [metric.key for metric in COMPARED]
        for side in ("baseline", "multi"):
            for key, number in getattr(found, side).items():
                if key not in accepted:
                    raise UserError(f"reported.{side}.{key}: expected one of {', '.join(accepted)}")
                if not isinstance(number, int | float):
                    raise UserError(f"reported.{side}.{key}={number!r}: expected a number")
        return found

    def to_mapping(self) -> dict[str, Any]:
        """Return the figures as the JSON file has them."""
        return asdict(self)


def reported_table(
    reported: Reported,
    measured: tuple[Mapping[str, Any], Mapping[str, Any]],
    gains: Mapping[str, float | None],
) -> str:
    """Return the reported figures, our own, and the differences in words."""
    head = f"{'':14} {'Reported':>34} {'Simulated':>36}"
    columns = f"{'Metric':14}" + f" {'Baseline':>10} {'Multi':>10} {'Improvement':>12} " * 2
    lines = [f"--- Reported: {reported.source} ---", head, columns.rstrip(), "-" * len(columns.rstrip())]
    for metric in COMPARED:
        pair = [side.get(metric.key) for side in (reported.baseline, reported.multi)]
        if pair != [None, None]:
            gain = improvement_pct(pair[0], pair[1], metric.lower_is_better)
            theirs = [*(value(metric, number) for number in pair), signed_pct(gain)]
            ours = [*(value(metric, side[metric.key]) for side in measured), signed_pct(gains[metric.key])]
            cells = (f" {first:>10} {second:>10} {third:>12} " for first, second, third in (theirs, ours))
            lines.append(f"{metric.label:14}{''.join(cells)}".rstrip())
    return "\n".join([*lines, *(f"* {text}" for text in reported.differences)])
