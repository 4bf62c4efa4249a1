"""What somebody reported of a real system, row by row, and why ours differs."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

from sim.errors import UserError
from sim.fields import as_mapping, build

NOT_MEASURED = "not measured yet"
"""The cell of a quantity for which there is no measurement on our GPU."""


@dataclass(frozen=True)
class Reported:
    """Somebody's figures. ``rows`` has them by row and column, ``differences`` says why ours differ, or that
    it is not explained.
    """

    source: str
    rows: Mapping[str, Any]
    differences: Mapping[str, Any]

    @classmethod
    def from_mapping(cls, values: object, rows: Collection[str], columns: Collection[str]) -> Self:
        """Build from the configuration. Raises UserError for a row or a column that our table has not."""
        found = build(cls, as_mapping(values, "reported"), "reported")
        for section in ("rows", "differences"):
            _check_names(getattr(found, section), rows, f"reported.{section}")
        for row, figures in found.rows.items():
            where = f"reported.rows.{row}"
            _check_names(as_mapping(figures, where), columns, where)
            for column, figure in figures.items():
                if not _is_figure(figure):
                    raise UserError(
                        f"{where}.{column}={figure!r}: expected a number, [lowest, highest], or words"
                    )
        return found

    def cell(self, row: str, column: str, write: Callable[[float | None], str]) -> str:
        """Return a figure, a range of them, or words as they are; ``write`` writes a number, and none."""
        figure = self.rows.get(row, {}).get(column)
        if isinstance(figure, list):
            return " to ".join(write(bound) for bound in figure)
        return figure if isinstance(figure, str) else write(figure)

    def notes(self, labels: Mapping[str, str]) -> list[str]:
        """Return the differences in words; a row that was reported and has none says so."""
        unsaid = [row for row in self.rows if row not in self.differences]
        said = [f"{labels[row]}: {text}" for row, text in self.differences.items()]
        return said + [f"{labels[row]}: a difference, if any, is not explained." for row in unsaid]


def _check_names(found: Mapping[str, Any], accepted: Collection[str], where: str) -> None:
    for name in found:
        if name not in accepted:
            raise UserError(f"{where}.{name}: expected one of {', '.join(accepted)}")


def _is_figure(value: object) -> bool:
    numbers = value if isinstance(value, list) and len(value) == 2 else [value]
    return isinstance(value, str) or all(type(number) in (int, float) for number in numbers)
