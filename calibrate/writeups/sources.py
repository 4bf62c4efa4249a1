"""What a simulation's figures rest on, said beside them."""

from collections.abc import Mapping
from typing import Any

from sim.sweep.runs import Run


def profile_source(summary: Mapping[str, Any]) -> str:
    """Return the name of a run's profile and where that comes from: its own `source`, or the GPU."""
    profile: Mapping[str, Any] = summary["config"]["profile"]
    name = summary["profile"]["name"]
    if profile.get("source"):
        return f"{name} ({profile['source']})"
    gpu = (profile.get("provenance") or {}).get("gpu")
    return f"{name} (measured: {gpu})" if gpu else f"{name} (assumed)"


def warnings(runs: list[Run]) -> list[str]:
    """Return what the runs say of measured ranges that they left, each sentence once."""
    return list(dict.fromkeys(text for run in runs for text in run.summary["profile"]["outside_range"]))
