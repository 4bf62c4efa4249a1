"""Which format a trace has, by its first bytes."""

import json
from pathlib import Path

from sim.errors import UserError
from sim.workload.traces import azure, burstgpt, vllm_bench
from sim.workload.traces.opening import open_trace, suffix


def detect(path: Path) -> str:
    """Return the name of the format. Raises UserError for what is none of them, and for an empty file."""
    with open_trace(path) as file:
        if file.read(4) == b"PAR1":
            return "requests"
        file.seek(0)
        first = next((line for line in file if line.strip()), None)
    if first is None:
        raise UserError(f"{path}: no requests in it")
    text = first.decode("utf-8", errors="replace").lstrip("\ufeff").strip()
    if text.startswith("{"):
        return "vllm_bench" if text == "{" and suffix(path) != ".jsonl" else _kind_of_json(text)
    for name, columns in (("azure", azure.COLUMNS), ("burstgpt", burstgpt.COLUMNS)):
        if all(column in text for column in columns):
            return name
    if suffix(path) == ".jsonl":
        return "jsonl"
    raise UserError(f"{path}: not a trace of a known format, to judge by its first line; see workload.format")


def _kind_of_json(text: str) -> str:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return "jsonl"
    return "vllm_bench" if all(column in record for column in vllm_bench.COLUMNS) else "jsonl"
