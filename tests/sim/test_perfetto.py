"""The adapters' log and Perfetto's trace, read back through its schema: what a run did, and nothing else."""

import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

from sim.errors import UserError
from sim.results import ADAPTERS_SCHEMA, Result, read_adapters
from sim.simulation import run, simulate
from sim.trace import check_perfetto
from tests.sim.test_simulation import ARRIVALS, CLOSED, ENDS, ENGINES, OPEN, config

ALL = {"steps": True, "adapters": True, "trace": True}


class Lanes:
    """A trace by lane: slices as (name, begin, end, depth), instants, counts."""

    def __init__(self, content: bytes) -> None:
        trace = Trace()
        trace.ParseFromString(content)
        descriptors = [it.track_descriptor for it in trace.packet if it.HasField("track_descriptor")]
        names = {it.uuid: it.process.process_name or it.name for it in descriptors}
        assert len(names) == len(descriptors)
        self.names = [
            (names[it.parent_uuid], it.name) if it.parent_uuid else (it.process.process_name,)
            for it in descriptors
        ]
        places = dict(zip((it.uuid for it in descriptors), self.names, strict=True))
        self.slices: dict[Any, list[tuple[str, int, int, int]]] = defaultdict(list)
        self.counts: dict[Any, list[tuple[int, int]]] = defaultdict(list)
        self.instants: dict[Any, list[tuple[str, int]]] = defaultdict(list)
        self.notes: list[dict[str, Any]] = []
        open_slices: dict[Any, list[tuple[str, int]]] = defaultdict(list)
        for packet in trace.packet:
            if packet.HasField("track_event"):
                assert packet.trusted_packet_sequence_id
                self._take(packet, places[packet.track_event.track_uuid], open_slices)
        assert not any(open_slices.values())

    def _take(self, packet: Any, lane: Any, open_slices: Any) -> None:
        event = packet.track_event
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            open_slices[lane].append((event.name, packet.timestamp))
            if event.debug_annotations:
                self.notes.append({note.name: note.int_value for note in event.debug_annotations})
        elif event.type == TrackEvent.TYPE_SLICE_END:
            name, begin = open_slices[lane].pop()
            assert begin <= packet.timestamp
            self.slices[lane].append((name, begin, packet.timestamp, len(open_slices[lane])))
        elif event.type == TrackEvent.TYPE_COUNTER:
            self.counts[lane].append((packet.timestamp, event.counter_value))
        else:
            self.instants[lane].append((event.name, packet.timestamp))


def recorded(workload: dict[str, Any], engine: dict[str, Any] | None = None, **top: Any) -> Result:
    result = simulate(config(workload, engine, record=ALL, **top))
    assert result.trace is not None and result.adapters is not None and result.steps is not None
    return result


def test_lanes_of_two_replicas() -> None:
    result = recorded(OPEN, replicas=2)
    assert result.trace is not None
    lanes = Lanes(result.trace)
    for replica in ("replica 0", "replica 1"):
        own = [name[1] for name in lanes.names if name[0] == replica and len(name) > 1]
        assert own[:3] == ["host thread", "GPU", "loader"]
        assert own[-4:] == ["slot 0", "slot 1", "slot 2", "slot 3"]
    assert result.adapters is not None
    assert result.adapters.schema.names == [*ADAPTERS_SCHEMA.names, "replica"]


@settings(deadline=None, max_examples=40)
@given(ENGINES, ARRIVALS, ENDS, st.integers(0, 3))
def test_a_trace_is_what_the_tables_say(
    engine: dict[str, Any], arrivals: dict[str, Any], ends: dict[str, Any], seed: int
) -> None:
    result = recorded(arrivals | ends, engine, seed=seed)
    assert result.trace is not None and result.steps is not None and result.adapters is not None
    lanes = Lanes(result.trace)
    steps = {row["step"]: (row["start_s"], row["end_s"]) for row in result.steps.to_pylist()}
    shown = [(begin / 1e9, end / 1e9) for _, begin, end, _ in lanes.slices["replica 0", "GPU"]]
    assert shown == list(steps.values())
    assert [note["step"] for note in lanes.notes] == list(steps)
    requests = [value for _, value in lanes.counts["replica 0", "requests in the batch"]]
    rows = result.steps.column("step").to_pylist()
    assert requests == [rows.count(step) for step in steps]
    _check_slots(lanes, result.adapters.to_pylist(), engine["max_loras"])


def _check_slots(lanes: Lanes, moves: list[dict[str, Any]], num_slots: int) -> None:
    """No slot holds two adapters at once, nor an adapter two slots; all that is activated is shown."""
    shown = []
    for slot in range(num_slots):
        slices = lanes.slices["replica 0", f"slot {slot}"]
        assert all(one[2] <= other[1] for one, other in pairwise(slices))
        assert all(depth == 0 for *_, depth in slices)
        shown += [(name, slot) for name, *_ in slices]
    activations = [(move["adapter"], move["slot"]) for move in moves if move["kind"] == "activate"]
    assert sorted(shown) == sorted(activations)


def test_events_and_counts_of_the_summary_agree() -> None:
    result = recorded(OPEN, {"max_loras": 2, "max_cpu_loras": 3})
    assert result.adapters is not None
    kinds = result.adapters.column("kind").to_pylist()
    counted = result.summary["adapters"]
    assert kinds.count("load") == result.summary["adapter_loads"] > 0
    assert kinds.count("activate") == result.summary["adapter_activations"] > 0
    assert kinds.count("evict_host") == counted["host_cache_evictions"] > 0
    assert kinds.count("evict_slot") == counted["slot_evictions"] > 0
    times = result.adapters.column("time_s").to_pylist()
    assert times == sorted(times)


def test_logs_change_nothing_and_need_no_steps_one_by_one() -> None:
    plain = simulate(config(CLOSED))
    fast = recorded(CLOSED)
    slow = recorded(CLOSED, {"fast_forward": False})
    assert fast.requests == plain.requests
    assert fast.adapters == slow.adapters
    assert fast.trace == slow.trace
    metrics = set(plain.summary) - {"config"}
    assert {name: plain.summary[name] for name in metrics} == {name: fast.summary[name] for name in metrics}


def test_what_has_a_slot_from_the_start_is_shown() -> None:
    warm = {"initial_host_cache": ["adapter-0001", "adapter-0007"], "initial_slots": ["adapter-0007"]}
    result = recorded(OPEN, warm)
    assert result.adapters is not None and result.trace is not None
    assert result.adapters.to_pylist()[0] == {
        "time_s": 0.0, "duration_ms": 0.0, "kind": "activate", "adapter": "adapter-0007", "slot": 0,
    }  # fmt: skip
    name, begin, _, _ = Lanes(result.trace).slices["replica 0", "slot 0"][0]
    assert (name, begin) == ("adapter-0007", 0)


def test_files_are_written_on_request_and_go_with_the_result(tmp_path: Path) -> None:
    run(config(OPEN, record=ALL), tmp_path)
    assert (tmp_path / "trace.pftrace").read_bytes() == recorded(OPEN).trace
    assert read_adapters(tmp_path).schema == ADAPTERS_SCHEMA
    run(config(OPEN, record={}), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"summary.json", "requests.parquet"}


def test_a_missing_package_is_named_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "perfetto.protos.perfetto.trace", None)
    with pytest.raises(UserError, match=r"record\.trace=true: .*pip install 'lorasim\[trace\]'"):
        check_perfetto()


def test_swaps_lie_inside_the_host_threads_steps() -> None:
    """With a fitted profile, whose loads and activations take time."""
    conf = Path(__file__).resolve().parents[2] / "conf"
    shipped = {
        name: yaml.safe_load((conf / name / file).read_text(encoding="utf-8"))
        for name, file in (("profile", "h100_llama_3_1_8b.yaml"), ("model", "llama_3_1_8b.yaml"))
    }
    engine = {"max_loras": 2, "max_cpu_loras": 4, "max_num_seqs": 8, "max_model_len": 1024}
    result = recorded(CLOSED, engine | {"max_num_batched_tokens": 512}, **shipped)
    assert result.trace is not None and result.adapters is not None
    slices = Lanes(result.trace).slices["replica 0", "host thread"]
    steps = [it for it in slices if it[3] == 0]
    swaps = [it for it in slices if it[3] == 1]
    assert len(steps) + len(swaps) == len(slices)
    moves = [move for move in result.adapters.to_pylist() if move["duration_ms"]]
    assert [name for name, *_ in swaps] == [f"{move['kind']} {move['adapter']}" for move in moves]
    assert [(end - begin) / 1e6 for _, begin, end, _ in swaps] == [move["duration_ms"] for move in moves]
    for _, begin, end, _ in swaps:
        assert any(step[1] <= begin and end <= step[2] for step in steps)
