"""Traces: requests that somebody recorded. One file per format; FORMATS is the only list of them.

A row that is not a possible request is a bad line: by default the first one ends the program, named by file,
line and field; with ``on_bad_line: skip`` bad lines are left out, counted and reported. Bad are what is not
of its format, a missing field, a length below 1, a negative or non-finite time, a time before that of the
row before it (unless the closed loop ignores times), a ``request_id`` that occurred before, a second rank
for one adapter, or a rank where the row does not say the adapter (that of the base model, null, is passed
over). A file without any request is an error. Rows with equal times keep their order. Files may be compressed
with gzip, all but parquet.
"""

from sim.workload.traces.read import FORMATS, Trace, read_trace

__all__ = ["FORMATS", "Trace", "read_trace"]
