"""What was simulated: the settings behind a page, all values of those that vary."""

from collections.abc import Mapping, Sequence
from typing import Any

from reports.lab.data import is_bound
from reports.numbers import bare
from reports.table import Table
from sim.sweep.runs import Run

_SETTINGS = (
    ("model", "model.name"),
    ("GPU that was measured", "profile.provenance.gpu"),
    ("profile", "profile.name"),
    ("traffic", "workload"),
    ("arrivals", "workload.mode"),
    ("requests a second, in the open loop", "workload.request_rate"),
    ("requests in flight, in the closed loop", "workload.concurrency"),
    ("length of the run, s", "workload.duration_s"),
    ("adapters", "workload.num_adapters"),
    ("rank of an adapter (null: max_lora_rank)", "workload.adapter_rank"),
    ("prompt tokens", "workload.input_length"),
    ("output tokens", "workload.output_length"),
    ("max_loras", "engine.max_loras"),
    ("max_cpu_loras", "engine.max_cpu_loras"),
    ("max_lora_rank", "engine.max_lora_rank"),
    ("max_num_seqs", "engine.max_num_seqs"),
    ("max_num_batched_tokens", "engine.max_num_batched_tokens"),
    ("target: time to first token, ms", "slo.ttft_ms"),
    ("target: time per output token, ms", "slo.tpot_ms"),
    ("a load beside the engine's work takes, times", "loader.load_factor"),
    ("meanwhile the engine's host work takes, times", "loader.host_factor"),
    ("replicas", "replicas"),
    ("seeds", "seed"),
)
_UNUSED = {"open": "workload.concurrency", "closed": "workload.request_rate"}


def settings_table(runs: Sequence[Run]) -> Table:
    """Return the settings that bear on the result, as a table of names and of the values that were tried."""
    own = [run for run in runs if not is_bound(run)]
    modes = {_value(run, "workload.mode") for run in own}
    unused = {_UNUSED[mode] for mode in modes if len(modes) == 1 and mode in _UNUSED}
    rows = []
    for title, key in _SETTINGS:
        values = list(dict.fromkeys(_text(value) for run in own if (value := _value(run, key)) is not None))
        if values and key not in unused:
            rows.append([title, ", ".join(values)])
    return Table(["setting", "value"], rows, labels=2)


def _value(run: Run, key: str) -> Any:
    """Return a setting by its dotted name; the traffic by the name that was chosen. None: it has none."""
    if key == "workload":
        return run.columns.get("workload")
    found: Any = run.summary["config"]
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_text(it)}" for key, it in value.items() if it is not None)
    if isinstance(value, list):
        return "/".join(_text(it) for it in value)
    return bare(value)
