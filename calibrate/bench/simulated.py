"""Two simulations of a sweep, compared as two runs on a server are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from calibrate.bench.files import write_comparison
from calibrate.bench.metrics import improvements, measure
from calibrate.bench.names import BASELINE, MULTI
from calibrate.bench.record import UNFINISHED, RequestRecord, Run
from calibrate.bench.reported import Reported, reported_table
from calibrate.bench.tables import comparison_table
from sim.errors import UserError
from sim.results import read_requests, read_summary
from sim.sweep.rows import take_rows

NAME = "simulated"
_STATUSES = {"running": UNFINISHED, "waiting": UNFINISHED}


class ComparisonCallback(Callback):
    """Hydra callback that compares a sweep's two jobs: one in which all requests ask for one adapter, and one
    in which they ask for several.

    Writes what `calibrate.bench mode=compare` writes into the sweep's folder, `simulated` in place of the
    time in the files' names. `reported` holds what somebody measured, to be shown beside it.
    """

    def __init__(self, reported: Mapping[str, Any] | None = None) -> None:
        self.reported = None if reported is None else Reported.from_mapping(reported)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the files and print the table. Raises UserError for jobs that are no such pair."""
        sweep_dir = Path(config.hydra.sweep.dir)
        # What the jobs, in processes of their own, have put there.
        rows = take_rows(sweep_dir, {}).values()
        baseline, multi = pair([sweep_dir / row.cells["path"] for row in rows])
        measured = measure(baseline), measure(multi)
        gains = improvements(*measured)
        print(f"\n{comparison_table(*measured, gains)}")
        about: dict[str, Any] = {}
        if self.reported is not None:
            print(f"\n{reported_table(self.reported, measured, gains)}")
            about["reported"] = self.reported.to_mapping()
        paths = write_comparison(sweep_dir, NAME, baseline, multi, about)
        print("", *paths, sep="\n")


def pair(folders: list[Path]) -> tuple[Run, Run]:
    """Return the runs of two result folders, baseline first. Raises UserError."""
    if len(folders) != 2:
        raise UserError(f"the sweep has {len(folders)} jobs: expected two, one of them with one adapter")
    runs = [read_run(folder) for folder in folders]
    singles = [len({record.adapter for record in run.records}) == 1 for run in runs]
    if sum(singles) != 1:
        raise UserError(
            "the sweep's jobs: expected one whose requests all ask for one adapter, as with "
            "workload.num_adapters=1, and one whose requests ask for several"
        )
    baseline, multi = runs if singles[0] else reversed(runs)
    return baseline, Run(MULTI, multi.records, multi.duration_s)


def read_run(folder: Path) -> Run:
    """Return the run of a simulation's result, its warm-up left out. Raises UserError."""
    summary = read_summary(folder)
    if summary["status"] != "ok":
        raise UserError(f"{folder}: {summary['message']}")
    records = [
        RequestRecord(
            row["request_id"],
            row["adapter"],
            row["arrival_s"],
            row["arrival_s"],
            row["first_token_s"],
            row["finish_s"],
            row["input_length"],
            row["num_generated_tokens"],
            status=_STATUSES.get(row["status"], row["status"]),
        )
        for row in read_requests(folder).to_pylist()
    ]
    warmup_s = float(summary["config"]["warmup_s"])
    run = Run(BASELINE, records, summary["duration_s"] + warmup_s)
    return run.after(warmup_s)
