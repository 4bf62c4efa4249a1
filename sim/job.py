"""One job of a sweep, in whatever process a launcher runs it: from its configuration to its row."""

import os
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from sim.cli import is_users, one_line
from sim.errors import DoesNotFit
from sim.sweep.rows import expect_rows, put_row, sweep_row

TRACEBACK_FILE = "traceback.txt"
_GROUPS = ("workload", "admission", "eviction", "prefetch", "routing")
"""Configuration groups whose choice is a column of sweep.csv, given or not."""


def run_job(values: Mapping[str, Any], hydra: DictConfig, resume: bool) -> dict[str, Any]:
    """Run one job of a sweep, or take up its result where that is up to date, and put its row.

    Returns ``summary.json``. A job that fails has one too: status ``oom`` or ``error`` and what happened; an
    exception that no user can mend leaves its traceback beside it. Raises OSError where nothing can be
    written, which every other job would meet too.
    """
    from sim import results, simulation  # noqa: PLC0415
    from sim.sweep import freshness  # noqa: PLC0415

    out_dir, sweep_dir = Path(hydra.runtime.output_dir), Path(hydra.sweep.dir)
    expect_rows(sweep_dir)
    summary = freshness.up_to_date(out_dir, values) if resume else None
    resumed = summary is not None
    if summary is None:
        (out_dir / TRACEBACK_FILE).unlink(missing_ok=True)
        try:
            result = simulation.simulate(values)
        except Exception as error:
            results.write_failed(out_dir, values, *_status_and_message(error, out_dir))
            summary = results.read_summary(out_dir)
        else:
            results.write(result, out_dir)
            summary = result.summary
        finally:
            # Hydra made the folder; one without results is not left behind.
            with suppress(OSError):
                out_dir.rmdir()
    row = sweep_row(columns(hydra), summary, os.path.relpath(out_dir, sweep_dir))
    put_row(sweep_dir, int(hydra.job.num), row, summary, resumed)
    return summary


def _status_and_message(error: Exception, out_dir: Path) -> tuple[str, str]:
    """Return what a failed run is and says; the traceback of what no user can mend is kept in its folder."""
    if is_users(error):
        return "oom" if isinstance(error, DoesNotFit) else "error", one_line(error)
    (out_dir / TRACEBACK_FILE).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return "error", f"{' '.join(f'{type(error).__name__}: {error}'.split())} (see {TRACEBACK_FILE})"


def columns(hydra: DictConfig) -> dict[str, str]:
    """Return what names a job in ``sweep.csv``: its overrides, and what is chosen of the policies' groups.

    A leading ``+`` is left out, and so are the settings of the sweep itself.
    """
    overrides = {
        override.key_or_group: str(override.get_value_element_as_str())
        for override in OverridesParser.create().parse_overrides(list(hydra.overrides.task))
        if override.key_or_group.partition(".")[0] not in ("sweep", "objective")
    }
    choices = {group: hydra.runtime.choices.get(group) for group in _GROUPS}
    return overrides | {
        group: choice for group, choice in choices.items() if choice is not None and group not in overrides
    }


def import_from_config_dirs(hydra: DictConfig) -> None:
    """Let policies be imported from the folders of ``--config-dir``, where their YAML files are."""
    for source in hydra.runtime.config_sources:
        if source.schema == "file" and source.provider == "command-line":
            folder = unquote(urlparse(f"file://{source.path}").path)
            if folder not in sys.path:
                sys.path.append(folder)
