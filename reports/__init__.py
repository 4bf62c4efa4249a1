"""Turns result files into tables, plots and one self-contained HTML page."""
