"""The files of a benchmark: JSON, a CSV with a row a request, and plots, each there whole or not at all."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calibrate.bench.metrics import improvements, measure
from calibrate.bench.plots import comparison_png, run_png
from calibrate.bench.record import Run
from sim.files import write_atomically
from sim.results import to_json

COLUMNS = (
    *("mode", "request_id", "adapter", "arrival_s", "sent_s", "first_token_s", "finish_s", "input_length"),
    *("num_generated_tokens", "status", "message", "ttft_ms", "tpot_ms", "e2el_ms"),
)
"""As in `requests.parquet` of a simulation, as far as a client knows them."""


def write_run(out: Path, name: str, run: Run, about: Mapping[str, Any]) -> list[Path]:
    """Write `benchmark_<mode>_<name>.json`, `benchmark_<name>.csv` and `benchmark_<name>_plot.png`.

    `about` is what else the JSON says of the run. Returns the paths; raises OSError.
    """
    content = {"mode": run.mode, **about, "metrics": measure(run)}
    return _write(
        {
            out / f"benchmark_{run.mode}_{name}.json": to_json(content).encode(),
            out / f"benchmark_{name}.csv": _csv([run]),
            out / f"benchmark_{name}_plot.png": run_png(run),
        }
    )


def write_comparison(out: Path, name: str, baseline: Run, multi: Run, about: Mapping[str, Any]) -> list[Path]:
    """Write `comparison_<name>.json`, `comparison_<name>_plot.png` and `benchmark_<name>.csv` with both runs.

    As `write_run`. In the JSON a plus in `improvement_pct` is a gain of `multi` over `baseline`.
    """
    measured = measure(baseline), measure(multi)
    gains = improvements(*measured)
    content = {"mode": "compare", **about, "baseline": measured[0], "multi": measured[1]}
    return _write(
        {
            out / f"comparison_{name}.json": to_json(content | {"improvement_pct": gains}).encode(),
            out / f"benchmark_{name}.csv": _csv([baseline, multi]),
            out / f"comparison_{name}_plot.png": comparison_png(measured[0], measured[1], gains),
        }
    )


def _write(contents: Mapping[Path, bytes]) -> list[Path]:
    for path, content in contents.items():
        write_atomically(path, content)
    return list(contents)


def _csv(runs: Sequence[Run]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run in runs:
        for record in run.records:
            values = (getattr(record, name) for name in COLUMNS[1:])
            writer.writerow([run.mode, *(_cell(value) for value in values)])
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    """Times to the microsecond, or in ms to the nanosecond: more than a client's clock is good for."""
    return round(value, 6) if isinstance(value, float) else value
