"""A table of finished cells, for a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Cells of text; the first ``labels`` columns are words, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int = 1
    classes: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """CSS classes by row and column."""
    messages: Mapping[int, str] = field(default_factory=dict)
    """What takes the place of a row's cells after the labels."""
