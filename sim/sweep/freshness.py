"""Whether a result that lies in a folder is still what its configuration would give, by the rule of make."""

import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sim.errors import UserError
from sim.results import SUMMARY_FILE, read_summary

_ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("*.py", "*.pyx", "*.pxd", "*.so")
"""Code, compiled or not."""


def up_to_date(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the summary in ``folder`` if a run of ``config`` would write it again, else None.

    It is a result with status ``ok``, of an equal resolved configuration, and nothing that it depends on is
    newer: the simulator, the modules of the policies, the trace. (What such a module imports is not seen.)
    """
    file = folder / SUMMARY_FILE
    try:
        summary, made_at = read_summary(file), file.stat().st_mtime
    except (UserError, OSError):
        return None
    if summary.get("status") != "ok" or not _are_same(summary.get("config"), config):
        return None
    return None if any(source.stat().st_mtime > made_at for source in _sources(config)) else summary


def _are_same(written: object, config: Mapping[str, Any]) -> bool:
    """Say whether a configuration is what was ``written`` as JSON."""
    return json.dumps(written) == json.dumps(config)


def _sources(config: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the files that decide what a run of ``config`` gives."""
    for room in ("sim", "policies"):
        for pattern in SOURCES:
            yield from (_ROOT / room).rglob(pattern)
    for target in _targets(config):
        origin = _origin(target.rpartition(".")[0])
        if origin is not None and origin.is_file():
            yield origin
    path = config.get("workload", {}).get("path")
    if path is not None and Path(path).is_file():
        yield Path(path)


def _targets(config: Mapping[str, Any]) -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _targets(value)
        elif key == "_target_" and isinstance(value, str):
            yield value


def _origin(module: str) -> Path | None:
    """Return the file of a module; None for one that cannot be found or has none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)
