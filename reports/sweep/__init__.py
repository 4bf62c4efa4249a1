"""The report: one page about a sweep, for `python -m reports`."""
