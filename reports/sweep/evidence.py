"""Reading what was measured: the tables of ``calibrate.fit`` and the table of a hardware check."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd
import pyarrow as pa

from sim.errors import UserError

PREDICTIONS_FILE = "predictions.parquet"
ERRORS_FILE = "errors.csv"
SWAPS_FILE = "swaps.csv"
MAY_BE_EMPTY = (
    *("measured", "measured_again", "simulated", "error_pct", "hardware_spread_pct"),
    *("simulated_given_host", "error_given_host_pct"),
)


@dataclass(frozen=True)
class Prediction:
    """A measured duration of an engine step and what the fit says; only the names of the columns are used."""

    run: str
    regime: str
    quantity: str
    split: str
    predicted_ms: float
    measured_ms: float
    num_tokens: float
    num_adapters: float


@dataclass(frozen=True)
class Error:
    """Absolute errors of one quantity in one regime; ``split`` is train or heldout."""

    regime: str
    quantity: str
    split: str
    count: float
    median_abs_pct: float
    p90_abs_pct: float


@dataclass(frozen=True)
class Swap:
    """Measured host time of one kind of adapter swap."""

    kind: str
    rank: float
    count: float
    p10_ms: float
    median_ms: float
    p90_ms: float
    max_ms: float


@dataclass(frozen=True)
class Check:
    """One quantity of a workload on the real engine and in the simulator; NaN where MAY_BE_EMPTY."""

    workload: str
    quantity: str
    measured: float
    measured_again: float
    simulated: float
    error_pct: float
    hardware_spread_pct: float
    simulated_given_host: float
    """The same simulation with the host's speed in the replay itself: its mean swaps, and its steps."""
    error_given_host_pct: float


@dataclass(frozen=True)
class Fit:
    """What ``calibrate.fit`` says about its fit."""

    predictions: pd.DataFrame
    """Columns as Prediction."""
    errors: list[Error]
    swaps: list[Swap]


def load_fit(folder: Path) -> Fit:
    """Read the tables of ``calibrate.fit``. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"fit={folder}: no such folder; accepted: the tables of `python -m calibrate.fit`")
    errors = _read(folder / ERRORS_FILE, get_type_hints(Error), pd.read_csv)
    swaps = _read(folder / SWAPS_FILE, get_type_hints(Swap), pd.read_csv)
    return Fit(
        _read(folder / PREDICTIONS_FILE, get_type_hints(Prediction), pd.read_parquet),
        [Error(*values) for values in errors.itertuples(index=False, name=None)],
        [Swap(*values) for values in swaps.itertuples(index=False, name=None)],
    )


def load_check(file: Path) -> list[Check]:
    """Read the CSV of a hardware check. Raises UserError."""
    table = _read(file, get_type_hints(Check), pd.read_csv)
    return [Check(*values) for values in table.itertuples(index=False, name=None)]


def _read(file: Path, columns: Mapping[str, type], read: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
    """Return the table in ``file`` with these columns and types. Raises UserError."""
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected a table with the columns {', '.join(columns)}")
    try:
        table = read(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        kind = file.suffix.removeprefix(".")
        raise UserError(f"{file}: cannot be read as {kind}: {str(error).splitlines()[0]}") from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise UserError(f"{file}: no column {missing[0]!r}; expected {', '.join(columns)}")
    return pd.DataFrame({name: _typed(file, table, name, kind) for name, kind in columns.items()})


def _typed(file: Path, table: pd.DataFrame, name: str, kind: type) -> "pd.Series[Any]":
    if kind is str:
        return table[name].astype(str)
    values = pd.to_numeric(table[name], errors="coerce").astype(float)
    bad = values.isna() if name not in MAY_BE_EMPTY else values.isna() & table[name].notna()
    if bad.any():
        row = bad.to_list().index(True)
        raise UserError(f"{file}: column {name!r}, row {row + 1}: {table[name].iloc[row]!r} is no number")
    return values
