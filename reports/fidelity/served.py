"""The same comparison through vLLM's OpenAI server, by clients that are not ours."""

import json
from collections.abc import Collection
from itertools import combinations
from operator import eq
from pathlib import Path
from typing import Any

import pandas as pd

from reports.experiments.document import markdown_table
from reports.numbers import number
from reports.parity import parity_lines
from sim.errors import UserError

TITLES = {
    "output_throughput": "output throughput, tokens/s",
    "median_ttft_ms": "TTFT p50, ms",
    "p99_ttft_ms": "TTFT p99, ms",
    "median_tpot_ms": "TPOT p50, ms",
}


def served_section(folders: dict[str, str], weak: Collection[str]) -> list[str]:
    """Return what `vllm bench serve` measured beside what is simulated, and what else was asked of the
    server, on each host. On those of `weak`, adapters changed no output. Raises UserError.
    """
    if not folders:
        return []
    head = [
        "## Through the OpenAI server, with `vllm bench serve`",
        "",
        "The client draws one of 200 adapters for each of 250 requests, 32 at a time (`conf/served.yaml` has "
        "the commands). A server's front end is not simulated.",
        "",
    ]
    parts = [_host(title, Path(folder), title in weak) for title, folder in folders.items()]
    return [*head, *(line for part in parts for line in part)]


def _host(title: str, root: Path, is_weak: bool) -> list[str]:
    path = root / "check.csv"
    try:
        rows = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no comparison there ({error}); make it with calibrate.served") from error
    lines = []
    for quantity, label in TITLES.items():
        cells = [label]
        for _, part in rows[rows.quantity == quantity].groupby("policy", sort=False):
            cells += [number(part.measured.iloc[0]), number(part.simulated.iloc[0])]
        lines.append(cells)
    head = [""]
    for policy in dict.fromkeys(rows.policy):
        head += [f"{policy}, measured", "simulated"]
    weak = "These adapters were too weak to change an answer: equal texts would say nothing."
    return [
        f"### {title}",
        "",
        *markdown_table(head, lines),
        "",
        weak if is_weak else _equal(root, list(dict.fromkeys(rows.policy))),
        "",
        *parity_lines(root / "parity.json"),
        *_bad_adapters(root / "bad_adapters.json"),
    ]


def _equal(root: Path, policies: list[str]) -> str:
    texts = [_json(root / f"bench_serve_{policy}.json")["generated_texts"] for policy in policies]
    equal = [
        f"{first} and {second}, {sum(map(eq, ours, theirs))}"
        for (first, ours), (second, theirs) in combinations(zip(policies, texts, strict=True), 2)
    ]
    return (
        f"Generated texts that are equal, of {len(texts[0])} ({len(set(texts[0]))} different ones): "
        f"{'; '.join(equal)}. What is said of rounding under outputs, below, holds here too."
    )


def _bad_adapters(path: Path) -> list[str]:
    if not path.exists():
        return []
    result = _json(path)
    rows = pd.DataFrame(result["requests"])
    bad = rows[rows.bad.notna()]
    lines = [
        [str(kind), str(len(part)), ", ".join(map(str, sorted(set(part.status))))]
        for kind, part in bad.groupby("bad")
    ]
    good = rows[rows.bad.isna()]
    return [
        f"Adapters that cannot be served, among {len(good)} requests for others at the same time: "
        f"{(good.status == 200).sum()} of those were answered, and so was the next one "
        f"({result['after']['status']}). The server's log names the adapter and the reason; its client is "
        "told of an internal error, which is vLLM's front end's own answer to a request that fails in its "
        "engine.",
        "",
        *markdown_table(["adapter", "requests", "HTTP status"], lines),
        "",
    ]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error
