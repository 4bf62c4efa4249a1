"""``python -m reports.lab dir=<folder of a sweep over policies>``: one self-contained HTML page about it."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from reports import limits
from reports.html import html
from reports.lab import answer
from reports.lab.data import Lab, load_lab, load_sensitivity
from reports.lab.plots import heat_map, pareto_plots, sensitivity_plot
from reports.lab.timeline import timeline
from reports.svg import Plot, picture
from sim.cli import hydra_entry
from sim.errors import UserError
from sim.files import write_atomically

_MAKE = "lorasim -m admission=fcfs_skip,... workload=uniform,zipf 'seed=range(10)' bound=null,throughput"


def main() -> None:
    """Run ``python -m reports.lab`` with the arguments in ``sys.argv``."""
    hydra_entry(task, "lab", "reports.lab")


def task(config: DictConfig) -> None:
    """Read what ``config`` names, write the page, and print the winners. Raises UserError and OSError."""
    if config.dir is None:
        raise UserError(f"dir: not given; expected dir=<folder of a sweep>, as `{_MAKE}` makes it")
    folder = Path(str(config.dir))
    more = [Path(str(path)) for path in config.more]
    lab = load_lab(folder, config.metric, config.baseline, more=more)
    sensitivity = [
        sensitivity_plot(found.lab, found.axis, found.values)
        for path in config.sensitivity
        for found in [load_sensitivity(Path(str(path)), config.metric, config.baseline)]
    ]
    part = config.timeline
    times = float(part.start_s), float(part.length_s)
    timelines = [timeline(Path(str(path)), *times, int(part.replica)) for path in config.timelines]
    plots = {"heat": [heat_map(lab)], "pareto": pareto_plots(lab), "sensitivity": sensitivity}
    out = folder / "lab.html" if config.out is None else Path(str(config.out))
    write_atomically(out, render(lab, **plots, timelines=timelines).encode())
    if config.pictures is not None:
        for plot in [*(plot for some in plots.values() for plot in some), *timelines]:
            write_atomically(Path(str(config.pictures)) / f"{plot.name}.svg", picture(plot))
    print("\n".join(answer.in_short(lab)))
    print(f"\nReport: {out}")


def render(
    lab: Lab,
    heat: Sequence[Plot],
    pareto: Sequence[Plot],
    sensitivity: Sequence[Plot],
    timelines: Sequence[Plot],
) -> str:
    """Return the page as HTML that needs nothing else."""
    return html(
        "lab.html.j2",
        objective=lab.objective,
        baseline=lab.baseline,
        headline=answer.headline(lab),
        sentences=answer.sentences(lab),
        losses=answer.losses(lab),
        commands=answer.commands(lab),
        warnings=answer.warnings(lab),
        winners=answer.winners_table(lab),
        gap=answer.gap_table(lab) if lab.bounds else None,
        results=answer.result_table(lab),
        heat=heat,
        pareto=pareto,
        sensitivity=sensitivity,
        timelines=timelines,
        not_modelled=limits.NOT_MODELLED,
    )


if __name__ == "__main__":
    main()
