"""``python -m reports dir=<folder of a sweep>``: one self-contained HTML page about it."""

from pathlib import Path

from omegaconf import DictConfig

from reports.svg import picture
from reports.sweep.choose import Recommendation, recommend
from reports.sweep.evidence import load_check, load_fit
from reports.sweep.load import MAKE_SWEEP, Row, load_sweep
from reports.sweep.page import render
from reports.sweep.plots import sweep_plots
from reports.sweep.tables import best_table
from sim.cli import hydra_entry
from sim.errors import UserError
from sim.files import write_atomically
from sim.tables import aligned


def main() -> None:
    """Run ``python -m reports`` with the arguments in ``sys.argv``."""
    hydra_entry(task, "report", "reports")


def task(config: DictConfig) -> None:
    """Read what ``config`` names, write the page, and print the answer. Raises UserError and OSError."""
    if config.dir is None:
        raise UserError(f"dir: not given; expected dir=<folder of a sweep>, as `{MAKE_SWEEP}` makes it")
    folder = Path(str(config.dir))
    rows = load_sweep(folder)
    fit = None if config.fit is None else load_fit(Path(str(config.fit)))
    check = None if config.check is None else load_check(Path(str(config.check)))
    out = folder / "report.html" if config.out is None else Path(str(config.out))
    if out.is_dir():
        raise UserError(f"out={out}: is a folder; expected the name of the HTML file to write")
    write_atomically(out, render(rows, fit, check).encode())
    if config.pictures is not None:
        for plot in sweep_plots(rows):
            write_atomically(Path(str(config.pictures)) / f"{plot.name}.svg", picture(plot))
    print(in_short(rows, recommend(rows)))
    print(f"\nReport: {out}")


def in_short(rows: list[Row], choice: Recommendation | None) -> str:
    """Return the best setting for each traffic shape as a table, and the recommended command line."""
    table = best_table(rows, choice)
    text = aligned(table.head, table.rows, table.labels)
    command = ["No run succeeded, so no setting is recommended; the report has the messages."]
    if choice is not None:
        command = [f"Recommended for all traffic shapes: {choice.setting}", "", choice.serve_command]
    return "\n".join([*text, "", *command])


if __name__ == "__main__":
    main()
