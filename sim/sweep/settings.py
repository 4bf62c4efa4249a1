"""A run's configuration as flat settings that can be told apart and named."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Settings = Mapping[str, str]

_WHOLE = ("admission", "eviction", "host_eviction", "prefetch", "routing", "profile", "model")
"""Groups that are one setting: a policy with its parameters, a profile, a model."""


def flat_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of a resolved configuration: ``{"engine.max_loras": "8", "seed": "0", ...}``.

    A policy, a profile or a model is one setting, by all its contents.
    """
    return dict(_flat(config, ""))


def varying(runs: Sequence[Settings]) -> list[str]:
    """Return the settings that are not the same in all runs, in order of first appearance."""
    names = dict.fromkeys(name for run in runs for name in run)
    return [name for name in names if len({run.get(name) for run in runs}) > 1]


def is_of_traffic(name: str) -> bool:
    """Say whether a setting is what is asked of the server; a seed is one more draw of that."""
    return name in ("workload", "seed") or name.startswith("workload.")


def label(settings: Settings, names: Iterable[str]) -> str:
    """Return what a user would set: ``max_loras 16, admission TimeSlice(min_quantum_ms=200)``."""
    return ", ".join(
        f"{name.removeprefix('engine.')} {_short(settings[name])}" for name in names if name in settings
    )


def _flat(group: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in group.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and name not in _WHOLE:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value if isinstance(value, str) else json.dumps(value)


def _short(text: str) -> str:
    """Return a policy as a call of its class, a profile or a model as its name, anything else as it is."""
    if not text.startswith("{"):
        return text
    values = json.loads(text)
    if "_target_" not in values:
        return str(values.get("name") or values.get("kind") or text)
    parameters = [f"{key}={value}" for key, value in values.items() if key != "_target_"]
    name = str(values["_target_"]).rpartition(".")[2]
    return f"{name}({', '.join(parameters)})" if parameters else name
