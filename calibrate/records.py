"""What a run on the real engine leaves behind: its tables and, last, the `meta.json` that completes it."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from sim.files import write_atomically


def write_records(folder: Path, tables: dict[str, pd.DataFrame], meta: dict[str, Any]) -> None:
    """Write each table to `<name>.parquet`, but for rows of phase `setup`, then `meta.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        kept = table[table["phase"] != "setup"] if "phase" in table else table
        compact(kept).to_parquet(folder / f"{name}.parquet", compression="zstd")
    write_atomically(folder / "meta.json", json.dumps(meta, indent=1, sort_keys=True).encode())


def compact(table: pd.DataFrame) -> pd.DataFrame:
    """Round times to microseconds, which is what the clocks are good for and compresses to a third."""
    return table.round({column: 6 for column in table.columns if column.endswith("_s")})
