"""The laboratory: one page about a sweep over policies, for `python -m reports.lab`."""
