"""The laboratory's page: what goes into the template, and the HTML that comes out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from reports import limits
from reports.html import html
from reports.lab import answer
from reports.lab.data import Lab, Sensitivity
from reports.lab.plots import heat_map, pareto_plots, sensitivity_plot
from reports.lab.simulated import settings_table
from reports.svg import Plot
from reports.table import Table

OTHER = "Policies and traffic shapes, another grid"


@dataclass(frozen=True)
class Page:
    """A page about one grid of policies, and what belongs to it."""

    lab: Lab
    beside: Lab | None
    """One more grid, under another traffic."""
    sensitivity: Sequence[Sensitivity]
    timelines: Sequence[Plot]
    overlap: Table | None = None

    def plots(self) -> list[Plot]:
        """Return all plots of the page, in its order."""
        others = [] if self._other_heat is None else [self._other_heat]
        axes = [plot for plot, _ in self._axes]
        return [self._heat, *self._pareto, *others, *axes, *self.timelines]

    def html(self) -> str:
        """Return the page as HTML that needs nothing else."""
        lab = self.lab
        return html(
            "lab.html.j2",
            objective=lab.objective,
            baseline=lab.baseline,
            headline=answer.headline(lab),
            about=" · ".join(row[1] for row in settings_table(lab.runs).rows[:2]),
            sentences=answer.sentences(lab),
            losses=answer.losses(lab),
            commands=answer.commands(lab),
            warnings=answer.warnings(lab, self.sensitivity),
            winners=answer.winners_table(lab),
            gap=answer.gap_table(lab) if any(map(lab.bound, lab.traffics)) else None,
            has_ceiling=any(map(lab.ceiling, lab.traffics)),
            results=answer.result_table(lab),
            heat=self._heat,
            pareto=self._pareto,
            beside=self._beside(),
            sensitivity=self._axes,
            timelines=self.timelines,
            overlap=self.overlap,
            settings=settings_table(lab.runs),
            not_modelled=limits.NOT_MODELLED,
        )

    def _beside(self) -> dict[str, object] | None:
        lab = self.beside
        return None if lab is None else {
            "headline": answer.headline(lab),
            "sentences": [*answer.sentences(lab), *answer.losses(lab), *answer.warnings(lab)],
            "heat": self._other_heat,
            "winners": answer.winners_table(lab),
            "results": answer.result_table(lab),
            "settings": settings_table(lab.runs),
        }  # fmt: skip

    @cached_property
    def _heat(self) -> Plot:
        return heat_map(self.lab)

    @cached_property
    def _other_heat(self) -> Plot | None:
        return None if self.beside is None else heat_map(self.beside, OTHER)

    @cached_property
    def _pareto(self) -> list[Plot]:
        return pareto_plots(self.lab)

    @cached_property
    def _axes(self) -> list[tuple[Plot, list[str]]]:
        return [
            (sensitivity_plot(it.lab, it.axis, it.values), answer.dependence(it)) for it in self.sensitivity
        ]
