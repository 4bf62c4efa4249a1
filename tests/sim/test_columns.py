"""Columns are those that pyarrow makes."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import columns

VALUES = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): st.text(st.characters(exclude_categories=["Cs"])),
}


@pytest.mark.parametrize("kind", VALUES, ids=str)
@settings(deadline=None)
@given(st.data())
def test_columns_are_pyarrows(kind: pa.DataType, data: Any) -> None:
    values = data.draw(st.lists(st.one_of(VALUES[kind], st.none()), max_size=30))
    found = columns.column(values, kind)
    found.validate(full=True)
    assert found == pa.array(values, kind)
    assert columns.table([values], pa.schema([("x", kind)])).to_pydict() == {"x": values}
