"""What a sweep adds to its runs: a progress bar, ``sweep.csv``, a table and comparisons."""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from sim.cli import at_end
from sim.errors import UserError
from sim.fields import as_mapping, build, plain_values
from sim.sweep.grid import number_of_jobs
from sim.sweep.objective import Objective
from sim.sweep.options import SweepConfig
from sim.sweep.rows import SWEEP_FILE, JobRow, are_expected, clear_rows, expect_rows, take_rows, write_csv
from sim.sweep.runs import load_runs
from sim.tables import aligned, cell

if TYPE_CHECKING:
    from tqdm import tqdm

TABLE_METRICS = ("output_throughput", "p99_ttft_ms", "median_tpot_ms", "adapter_loads", "adapter_activations")
COMPARISON_FILE = "comparison.csv"
POLL_S = 0.2
WRITE_EVERY_S = 2.0


class SweepCallback(Callback):
    """Hydra callback that follows a sweep's jobs, whatever launcher runs them, and reports on all."""

    def __init__(self) -> None:
        self.follower: Follower | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Go to the jobs' processes without the thread."""
        return {"follower": None}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Begin to follow; the ``sweep.csv`` of an earlier sweep in the same folder goes."""
        # Here, so that a single run, for which Hydra makes the callback too, need not import joblib.
        from sim.sweep.workers import shield_workers  # noqa: PLC0415

        _check_each_override_once()
        shield_workers()
        build(SweepConfig, as_mapping(plain_values(config.sweep), "sweep"), "sweep")
        self.objective = Objective.from_mapping(plain_values(config.objective))
        self.objective.check_metric()
        self.objective.check_direction(config.hydra.sweeper)
        sweep_dir = Path(config.hydra.sweep.dir)
        (sweep_dir / SWEEP_FILE).unlink(missing_ok=True)
        clear_rows(sweep_dir)
        _make_absolute(config, sweep_dir)
        self.follower = Follower(sweep_dir, number_of_jobs(config))
        at_end(self.follower.close)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write ``sweep.csv`` whole and print the table. Raises UserError where no job has succeeded."""
        assert self.follower is not None
        self.follower.finish()
        _report(self.follower, self.objective)


def _check_each_override_once() -> None:
    """Let Hydra check a grid by a few of its jobs, in which every override occurs.

    It would compose every job once more before the first of them runs, one after another, which takes as long
    as simulating them. A combination that is impossible only as such becomes a row with its error.
    """
    check_all = BasicSweeper.validate_batch_is_legal

    def check_few(sweeper: BasicSweeper, batch: Sequence[Sequence[str]]) -> None:
        seen: set[str] = set()
        few = []
        for job in batch:
            if not seen.issuperset(job):
                few.append(job)
                seen.update(job)
        check_all(sweeper, few)
        if sweeper.config is not None:
            # Who waits sees a bar while the processes start, which takes longer than many a run.
            expect_rows(Path(sweeper.config.hydra.sweep.dir))

    if check_all.__module__ != __name__:
        setattr(BasicSweeper, "validate_batch_is_legal", check_few)  # noqa: B010


class Follower:
    """Collects the rows of jobs as they are put, in a thread: progress bar, ``sweep.csv`` so far.

    The bar appears once Hydra has found every job of the sweep valid, or else when the first job begins.
    """

    def __init__(self, sweep_dir: Path, num_jobs: int) -> None:
        self.sweep_dir = sweep_dir
        self.num_jobs = num_jobs
        self.rows: dict[int, JobRow] = {}
        self._bar: tqdm[Any] | None = None
        self._num_written = 0
        self._began_s = time.time()
        self._ended = Event()
        self._complete = False
        self._thread = Thread(target=self._follow, daemon=True)
        self._thread.start()

    @property
    def csv(self) -> Path:
        """The file of the rows."""
        return self.sweep_dir / SWEEP_FILE

    def finish(self) -> None:
        """All jobs are done: take the last rows and write the file. Raises OSError."""
        self._complete = True
        self._stop()

    def close(self) -> None:
        """However the sweep ended: leave what there is on disk, and say how to go on."""
        if not self._ended.is_set():
            self._stop()
        clear_rows(self.sweep_dir)
        if not self._complete and self.rows:
            from tqdm import tqdm  # noqa: PLC0415

            tqdm.write(
                f"lorasim: {len(self.rows)} of {self.num_jobs} runs are done: {self.csv}\n"
                f"lorasim: the same command with hydra.sweep.dir={self.sweep_dir} goes on from there",
                file=sys.stderr,
            )

    def _stop(self) -> None:
        self._ended.set()
        self._thread.join()
        self._take()
        self._write()
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()

    def _follow(self) -> None:
        waited_s = 0.0
        while not self._ended.wait(POLL_S):
            self._take()
            waited_s += POLL_S
            if waited_s >= WRITE_EVERY_S:
                # What cannot be written now is written at the end, or fails there for all to see.
                with suppress(OSError):
                    self._write()
                waited_s = 0.0

    def _take(self) -> None:
        num_shown = -1 if self._bar is None else len(self.rows)
        self.rows = take_rows(self.sweep_dir, self.rows)
        if self._bar is None and are_expected(self.sweep_dir):
            # Here, so that a single run, for which Hydra makes the callback too, need not import it.
            from tqdm import tqdm  # noqa: PLC0415

            # Without smoothing: the time left is by the mean of all runs that were made now.
            self._bar = tqdm(
                total=self.num_jobs, unit="run", desc="simulating", leave=False, smoothing=0, delay=1e-9
            )
            self._bar.start_t = self._began_s
        if self._bar is not None:
            self._bar.initial = sum(row.resumed for row in self.rows.values())
            self._bar.n = len(self.rows)
            if sys.stderr.isatty() or len(self.rows) != num_shown:
                self._bar.refresh()

    def _write(self) -> None:
        if len(self.rows) > self._num_written:
            write_csv([row.cells for row in self.rows.values()], self.csv)
            self._num_written = len(self.rows)


def _report(follower: Follower, objective: Objective) -> None:
    """Print what a complete sweep found. Raises UserError where no job has succeeded."""
    rows = [row.cells for row in follower.rows.values()]
    print(table(rows, objective))
    for warning in dict.fromkeys(text for row in follower.rows.values() for text in row.warnings):
        print(f"lorasim: warning: {warning}", file=sys.stderr)
    resumed = sum(row.resumed for row in follower.rows.values())
    if resumed:
        print(f"lorasim: {resumed} of {len(rows)} runs were there already", file=sys.stderr)
    print(f"\n{follower.csv}")
    _compare(follower, objective)
    failed = [row for row in rows if row["status"] != "ok"]
    if failed and len(failed) == len(rows):
        raise UserError(f"{follower.csv}: no run succeeded; the first: {failed[0]['message']}")
    if failed:
        print(f"lorasim: warning: {len(failed)} of {len(rows)} runs failed", file=sys.stderr)


def _compare(follower: Follower, objective: Objective) -> None:
    """Where there are several seeds, compare the settings with the first one, in words and as a file."""
    # Here and not above: every process of a job imports this module, and scipy takes longer than short runs.
    from sim.sweep.comparison import METRICS, compare_settings, in_words, without_repeated_bounds  # noqa: PLC0415

    metrics = tuple(dict.fromkeys((objective.metric, *METRICS)))
    try:
        found = compare_settings(without_repeated_bounds(load_runs(follower.sweep_dir)), metrics)
    except UserError:
        # Nothing to compare: one setting alone.
        return
    if any(difference.paired.num_pairs > 1 for difference in found.differences):
        path = follower.sweep_dir / COMPARISON_FILE
        write_csv([difference.row() for difference in found.differences], path)
        print(f"\n{in_words(found, [objective.metric])}\n\n{path}")


def table(rows: Sequence[Mapping[str, Any]], objective: Objective) -> str:
    """Return an aligned plain-text table of a sweep: what varies of its columns, status, the main metrics.

    What a job that did not run said follows below, a line each.
    """
    names = list(rows[0])[: list(rows[0]).index("status")] if rows else []
    varying = [name for name in names if len({row.get(name) for row in rows}) > 1]
    head = [*varying, "status", *dict.fromkeys((objective.metric, *TABLE_METRICS))]
    text = aligned(head, [[cell(row.get(name)) for name in head] for row in rows])
    text += [f"{row['path']}: {row['message']}" for row in rows if row["status"] != "ok"]
    return "\n".join(text)


def _make_absolute(config: DictConfig, sweep_dir: Path) -> None:
    """Name the sweep's folder to its jobs so that they find it from whatever folder they work in."""
    path = str(sweep_dir.absolute())
    quoted = path.replace("\\", "\\\\").replace("'", "\\'")
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = path
        # Jobs compose their configuration anew, from these.
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")
