"""Columns of Arrow tables, from lists.

`pyarrow.array` does the same, but imports pandas where that is installed, which takes longer than a short
run.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

NUMBERS = {pa.int64(): np.int64, pa.float64(): np.float64}


def table(columns: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Return a table of `columns`, each of which may have None in it."""
    arrays = [column(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return an array of `kind`: strings, 64-bit integers or floats."""
    known = None
    if None in values:
        known = np.fromiter((value is not None for value in values), dtype=bool, count=len(values))
    validity = None if known is None else pa.py_buffer(np.packbits(known, bitorder="little"))
    if kind == pa.string():
        return pa.Array.from_buffers(kind, len(values), [validity, *_text(values)])
    if known is not None:
        values = [0 if value is None else value for value in values]
    numbers = np.array(values, dtype=NUMBERS[kind])
    return pa.Array.from_buffers(kind, len(values), [validity, pa.py_buffer(numbers)])


def _text(values: Sequence[Any]) -> tuple[pa.Buffer, pa.Buffer]:
    """Where each string begins in the text, and the text. Raises ValueError for more than 2 GiB."""
    encoded = [b"" if value is None else str(value).encode() for value in values]
    ends: NDArray[np.int64] = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in encoded], out=ends[1:])
    if ends[-1] > np.iinfo(np.int32).max:
        raise ValueError("a column of more than 2 GiB of text")
    return pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(encoded))
