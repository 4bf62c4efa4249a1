"""Settings that change nothing in a workload's mode are named, in every place where warnings are read."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import conf
from sim.workload import WorkloadConfig, traffic
from sim.workload.without_effect import CONCURRENCY, without_effect

OPEN = {
    "mode": "open",
    "request_rate": 5.0,
    "duration_s": 1.0,
    "popularity": {"kind": "uniform"},
    "input_length": 8,
    "output_length": 2,
}
CLOSED = OPEN | {"mode": "closed", "request_rate": None, "concurrency": 3}
LOOP = "workload.mode=closed keeps workload.concurrency=3 requests in flight"


def said(values: dict[str, Any]) -> list[str]:
    config = WorkloadConfig.from_mapping(values)
    return without_effect(config, traffic(config, 0))


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (CLOSED, []),
        (CLOSED | {"request_rate": 8.0}, [f"workload.request_rate=8 is without effect: {LOOP}"]),
        (
            CLOSED | {"arrivals": {"kind": "gamma", "cv": 2.0}},
            [f"workload.arrivals.kind=gamma is without effect: {LOOP}"],
        ),
        (OPEN | {"concurrency": CONCURRENCY}, []),
        (
            OPEN | {"concurrency": 8},
            ["workload.concurrency=8 is without effect: workload.mode=open takes requests as they come"],
        ),
        (OPEN | {"until_done": True}, []),
        (
            OPEN | {"until_done": True, "duration_s": None, "num_requests": 3},
            ["workload.until_done=true is without effect: workload.duration_s=null ends no run"],
        ),
        (
            OPEN | {"format": "azure", "on_bad_line": "skip"},
            [
                "workload.format=azure is without effect: workload.path=null names no file",
                "workload.on_bad_line=skip is without effect: workload.path=null names no file",
            ],
        ),
    ],
)
def test_what_a_mode_leaves_no_part(values: dict[str, Any], texts: list[str]) -> None:
    assert said(values) == texts


@pytest.mark.parametrize("named", [True, False])
def test_what_a_trace_says_itself(named: bool, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    line = {"timestamp": 0, "input_length": 8, "output_length": 2} | ({"adapter": "a"} if named else {})
    path.write_text(json.dumps(line))
    lengths = {"input_length": None, "output_length": None, "request_rate": None}
    found = said(OPEN | lengths | {"path": str(path), "base_model_share": 0.5, "arrivals": {"kind": "gamma"}})
    texts = [f"workload.arrivals.kind=gamma is without effect: {path} has arrival times of its own"]
    if named:
        texts.append(f"workload.base_model_share=0.5 is without effect: {path} names every request's adapter")
    assert found == texts


def test_what_is_shipped_warns_of_nothing() -> None:
    """`concurrency` stands in the shipped workloads, also in those that are open."""
    folder = Path(conf.__file__).parent / "workload"
    values = [yaml.safe_load(file.read_text()) for file in folder.glob("*.yaml")]
    assert {each["concurrency"] for each in values if "concurrency" in each} == {CONCURRENCY}
