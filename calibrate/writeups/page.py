"""A write-up's answer: tables and notes, on the console and as a Markdown file."""

from collections.abc import Sequence
from pathlib import Path

from sim.files import write_atomically


def show(path: Path, tables: Sequence[str], notes: Sequence[str], files: Sequence[Path]) -> None:
    """Print the tables, the notes and where the files are; tables and notes go to `path` too."""
    fenced = [f"```\n{text}\n```\n" for text in tables]
    listed = [f"* {text}" for text in notes]
    write_atomically(path, "\n".join([*fenced, *listed, ""]).encode())
    print("", *(f"{text}\n" for text in tables), *listed, "", *files, path, sep="\n")
