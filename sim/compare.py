"""``lorasim-compare A B``, also ``python -m sim.compare``: paired differences between two result folders."""

import json
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from sim.cli import hydra_entry
from sim.errors import UserError
from sim.files import write_atomically
from sim.sweep.comparison import compare_folders, compare_settings, in_words
from sim.sweep.rows import write_csv
from sim.sweep.runs import load_runs

PROG = "lorasim-compare"


def main() -> None:
    """Run ``lorasim-compare`` with the arguments in ``sys.argv``."""
    hydra_entry(task, "compare", PROG, _named)


def task(config: DictConfig) -> None:
    """Compare what ``config`` names, print a table, write what is asked for. Raises UserError and OSError."""
    if config.a is None:
        raise UserError("no result folder given; expected: lorasim-compare A [B]")
    metrics = [str(name) for name in config.metrics]
    runs = load_runs(Path(str(config.a)))
    if config.b is None:
        baseline = None if config.baseline is None else str(config.baseline)
        found = compare_settings(runs, metrics, baseline)
    else:
        found = compare_folders(runs, load_runs(Path(str(config.b))), metrics)
    if not found.differences:
        raise UserError(" ".join(["nothing to compare:", *found.left_out]))
    print(in_words(found, metrics))
    rows = [difference.row() for difference in found.differences]
    if config.csv is not None:
        write_csv(rows, Path(str(config.csv)))
    if config.json is not None:
        write_atomically(Path(str(config.json)), (json.dumps(rows, indent=2) + "\n").encode())


def _named(words: list[str]) -> list[str]:
    """Return the arguments with folders, which have no name, as ``a=...`` and ``b=...``. Raises UserError."""
    names = iter(("a", "b"))
    return [_as_override(word, names) if _is_folder(word) else word for word in words]


def _is_folder(word: str) -> bool:
    return not word.startswith("-") and ("=" not in word or Path(word).exists())


def _as_override(word: str, names: Iterator[str]) -> str:
    name = next(names, None)
    if name is None:
        raise UserError(f"{word!r}: a third folder; expected at most two: {PROG} A [B]")
    quoted = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"{name}='{quoted}'"


if __name__ == "__main__":
    main()
