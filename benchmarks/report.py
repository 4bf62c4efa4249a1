"""Writes what was measured: one JSON file and one page per machine."""

import json
import platform
import pstats
import re
from cProfile import Profile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
TARGETS = {
    "requests/s in the loop": ("loop", "requests_per_s", "at least 25,000"),
    "whole command, s": ("command", "wall_s", "at most 2.5"),
    "one million requests, s": ("million", "wall_s", "at most 60"),
    "one million requests, GiB": ("million", "peak_gib", "under 2"),
}


LOOPS = {
    "loop": "The loop",
    "in_python": "The loop in Python, as for policies that are not vLLM's own",
    "step_by_step": "Step by step in Python (`engine.fast_forward=false`)",
}


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    cpu = names[0] if names else platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": len(names) or None, "python": platform.python_version()}


def write(figures: dict[str, Any]) -> Path:
    """Write `figures`; parts that were not measured now are kept from before. Returns the page."""
    here = machine()
    name = re.sub(r"\W+", "_", f"{here['cpu']} {here['cores']} cores").lower()
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    all_figures = before | figures | {"machine": here}
    file.write_text(json.dumps(all_figures, indent=2, sort_keys=True) + "\n")
    page = file.with_suffix(".md")
    page.write_text(_page(all_figures))
    return page


def where_time_goes(profile: Profile, most: int = 25) -> list[dict[str, Any]]:
    """Return the functions with most time of their own; the profiler itself slows calls down."""
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total_s = sum(own_s for _, _, own_s, _, _ in stats.values())
    rows = []
    for (file, line, name), (_, calls, own_s, all_s, _) in stats.items():
        path = Path(file)
        inside = path.is_relative_to(ROOT) and ".venv" not in path.parts
        place = f"{path.relative_to(ROOT)}:{line} " if inside else f"{path.stem} " if line else ""
        rows.append(
            {
                "function": place + name,
                "calls": calls,
                "own_share": round(own_s / total_s, 4),
                "with_callees": round(all_s / total_s, 4),
            }
        )
    return sorted(rows, key=lambda row: -row["own_share"])[:most]


def num_calls(profile: Profile) -> int:
    """Return how many calls the profiler saw, built-in functions' included: the same on every machine."""
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def _page(figures: dict[str, Any]) -> str:
    here = figures["machine"]
    lines = [
        "# Speed",
        "",
        f"{here['cpu']}, {here['cores']} cores, Python {here['python']}; made by `make bench`.",
        f"SimPy alone does {figures['simpy_time_outs_per_s']:,} time-outs a second there.",
        "",
        "The work: 10,000 requests, Poisson 8/s, 512 tokens in, 128 out, one replica, 1,000 adapters",
        "(Zipf 1.0), `max_loras=32`, `max_cpu_loras=1000`, cold start, the shipped profile.",
        "",
        *_table(["", "measured", "target"], _targets(figures)),
    ]
    for key, title in LOOPS.items():
        if key in figures:
            lines += [f"## {title}", "", *_table(["", ""], [[k, f"{v:,}"] for k, v in figures[key].items()])]
    for key in ("adapters", "max_num_seqs", "load"):
        if key in figures:
            rows = [[value, *(f"{rate:,}" for rate in row.values())] for value, row in figures[key].items()]
            first = next(iter(figures[key].values()))
            lines += [f"## Cost against {key}", "", *_table([key, *first], rows)]
    if "profile" in figures:
        rows = [
            [
                f"`{row['function']}`",
                f"{row['calls']:,}",
                f"{row['own_share']:.1%}",
                f"{row['with_callees']:.1%}",
            ]
            for row in figures["profile"]
        ]
        lines += ["## Where the time goes", ""]
        if "calls_per_request" in figures:
            calls = f"{figures['calls_per_request']:,} Python calls a request."
            lines += [f"{calls} What is compiled counts for SimPy's `core step`, which calls it.", ""]
        lines += _table(["function", "calls", "own", "with callees"], rows)
    return "\n".join(lines).rstrip() + "\n"


def _targets(figures: dict[str, Any]) -> list[list[str]]:
    return [
        [name, f"{figures[part][key]:,}" if part in figures else "not measured", target]
        for name, (part, key, target) in TARGETS.items()
    ]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)] + [""]
