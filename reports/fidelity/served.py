"""The same comparison through vLLM's OpenAI server, by clients that are not ours."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from reports.experiments.document import markdown_table
from reports.numbers import number
from sim.errors import UserError

TITLES = {
    "output_throughput": "output throughput, tokens/s",
    "median_ttft_ms": "TTFT p50, ms",
    "p99_ttft_ms": "TTFT p99, ms",
    "median_tpot_ms": "TPOT p50, ms",
}


def served_section(folder: str | None) -> list[str]:
    """Return what `vllm bench serve` measured beside what is simulated, and what else was asked of the
    server. Raises UserError.
    """
    if folder is None:
        return []
    root = Path(folder)
    path = root / "check.csv"
    try:
        rows = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no comparison there ({error}); make it with calibrate.served") from error
    lines = []
    for quantity, title in TITLES.items():
        cells = [title]
        for _, part in rows[rows.quantity == quantity].groupby("policy", sort=False):
            cells += [number(part.measured.iloc[0]), number(part.simulated.iloc[0])]
        lines.append(cells)
    head = [""]
    for policy in dict.fromkeys(rows.policy):
        head += [f"{policy}, measured", "simulated"]
    return [
        "## Through the OpenAI server, with `vllm bench serve`",
        "",
        "The client draws one of 200 adapters for each of 250 requests, 32 at a time (`conf/served.yaml` has "
        "the commands). A server's front end is not simulated. "
        + _equal(root, list(dict.fromkeys(rows.policy))),
        "",
        *markdown_table(head, lines),
        "",
        *_parity(root / "parity.json"),
        *_bad_adapters(root / "bad_adapters.json"),
    ]


def _equal(root: Path, policies: list[str]) -> str:
    texts = [_json(root / f"bench_serve_{policy}.json")["generated_texts"] for policy in policies]
    equal = sum(len(set(answers)) == 1 for answers in zip(*texts, strict=True))
    several = len(set(texts[0]))
    return f"Generated texts are equal in {equal} of {len(texts[0])} requests ({several} different ones)."


def _parity(path: Path) -> list[str]:
    if not path.exists():
        return []
    gate = _json(path)
    lines = [
        [row["adapter"], str(row["prompts"]), f"{row['repeatable']:.2%}", f"{row['equal']:.2%}"]
        for row in gate["adapters"]
    ]
    return [
        "`python -m calibrate.parity` asked the server the same prompts in batches of one adapter, of all "
        f"four, and of one again; at most {gate['gate_pct']} % may differ more than by repetition: "
        f"{'passed' if gate['passed'] else 'not passed'}.",
        "",
        *markdown_table(["", "prompts", "repeated answers equal", "mixed answers equal"], lines),
        "",
    ]


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
