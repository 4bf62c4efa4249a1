"""Opens a trace file, compressed with gzip or not."""

import gzip
import zlib
from pathlib import Path
from typing import BinaryIO, cast

MAGIC = b"\x1f\x8b"
"""How a file begins that gzip has compressed."""
BROKEN = (gzip.BadGzipFile, EOFError, zlib.error)
"""What reading raises where the compressed data are cut off or damaged."""


def open_trace(path: Path) -> BinaryIO:
    """Open for reading, decompressed where the first bytes say so. Raises OSError."""
    with path.open("rb") as file:
        compressed = file.read(len(MAGIC)) == MAGIC
    return cast("BinaryIO", gzip.open(path, "rb")) if compressed else path.open("rb")


def suffix(path: Path) -> str:
    """Return the suffix of what is in the file: ``.jsonl`` of ``trace.jsonl.gz``."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix
