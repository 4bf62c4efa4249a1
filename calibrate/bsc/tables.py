"""CSV files of the study, read with errors that say which column or value is missing."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sim.errors import UserError


def read(path: Path, columns: Sequence[str], key: str) -> pd.DataFrame:
    """Return the table at ``path``; ``key`` is the setting that named it. Raises UserError."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{key}={path}: not readable as CSV: {error}") from error
    table.columns = table.columns.str.strip()
    missing = [name for name in columns if name not in table]
    if missing:
        raise UserError(f"{key}={path}: no column {missing[0]}; expected {', '.join(columns)}")
    return table
