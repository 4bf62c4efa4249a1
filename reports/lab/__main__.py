"""``python -m reports.lab dir=<folder of a sweep over policies>``: one self-contained HTML page about it."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from reports.lab import answer
from reports.lab.data import load_lab, load_sensitivity
from reports.lab.overlap import overlap_table
from reports.lab.page import Page
from reports.lab.timeline import timeline
from reports.svg import picture
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
    how = config.metric, config.baseline
    lab = load_lab(folder, *how, more=_folders(config.more))
    others = _folders(config.beside)
    beside = load_lab(others[0], *how, more=others[1:]) if others else None
    sensitivity = [load_sensitivity(path, *how) for path in _folders(config.sensitivity)]
    part = config.timeline
    times = float(part.start_s), float(part.length_s)
    page = Page(
        lab,
        beside,
        sensitivity,
        [timeline(path, *times, int(part.replica)) for path in _folders(config.timelines)],
        None if config.overlap is None else overlap_table(Path(str(config.overlap))),
    )
    out = folder / "lab.html" if config.out is None else Path(str(config.out))
    write_atomically(out, page.html().encode())
    if config.pictures is not None:
        for plot in page.plots():
            write_atomically(Path(str(config.pictures)) / f"{plot.name}.svg", picture(plot))
    print("\n".join(answer.in_short(lab)))
    print(f"\nReport: {out}")


def _folders(paths: Sequence[object]) -> list[Path]:
    return [Path(str(path)) for path in paths]


if __name__ == "__main__":
    main()
