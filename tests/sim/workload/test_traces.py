"""Traces: what each format says, what is bad about a line, and the runs that play them."""

import gzip
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.errors import UserError
from sim.workload import RequestSpec, WorkloadConfig, requests, traffic
from sim.workload.prefixes import prefix_hashes
from sim.workload.traces import read_trace

SETTINGS: dict[str, Any] = {
    "mode": "open",
    "popularity": {"kind": "uniform"},
    "input_length": None,
    "output_length": None,
    "num_adapters": 10,
}


def workload(path: Path, **changes: Any) -> WorkloadConfig:
    return WorkloadConfig.from_mapping(SETTINGS | {"path": str(path)} | changes)


def play(path: Path, **changes: Any) -> list[RequestSpec]:
    return list(requests(workload(path, **changes), seed=3))


def line(
    timestamp: float | None = 0, input_length: Any = 10, output_length: Any = 2, **more: Any
) -> dict[str, Any]:
    """A line of JSON; a field that is `...` is left out."""
    fields = {
        "timestamp": timestamp,
        "adapter": "x",
        "input_length": input_length,
        "output_length": output_length,
    }
    return {key: value for key, value in (fields | more).items() if value is not ...}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_lines(*lines: dict[str, Any] | str | bytes, name: str = "T.jsonl") -> Path:
        encoded = [json.dumps(item).encode() if isinstance(item, dict) else item for item in lines]
        content = b"\n".join(item.encode() if isinstance(item, str) else item for item in encoded) + b"\n"
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write_lines


def test_jsonl_says_everything(write: Callable[..., Path]) -> None:
    path = write(
        line(request_id="a"),
        "",
        line(1.5, request_id=7, adapter=None, priority=-2, abort_ms=30, hash_ids=[3, 4], turn=1),
        line(1.5, 600, rank=8, hash_ids=None),
    )
    assert play(path) == [
        RequestSpec("a", 0, "x", 10, 2),
        RequestSpec("7", 1_500_000, None, 10, 2, -2, 30_000_000, (3, 4)),
        RequestSpec("request-000002", 1_500_000, "x", 600, 2),
    ]
    found = traffic(workload(path), 3)
    assert (found.num_requests, found.ranks) == (3, {"x": 8})


def test_mooncakes_own_lines_get_adapters_from_the_popularity(write: Callable[..., Path]) -> None:
    mooncake = {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}
    specs = play(write(mooncake, mooncake | {"timestamp": 30535}))
    assert [spec.arrival_ns for spec in specs] == [27_482_000_000, 30_535_000_000]
    synthetic = WorkloadConfig.from_mapping(
        SETTINGS | {"input_length": 1, "output_length": 1, "request_rate": 1.0, "num_requests": 2}
    )
    assert [spec.adapter for spec in specs] == [spec.adapter for spec in requests(synthetic, 3)]


def test_adapters_of_a_trace_drift_too(write: Callable[..., Path]) -> None:
    path = write(*(line(1000.0 * second, adapter=...) for second in range(20)))
    still, moving = play(path), play(path, drift={"period_s": 10, "shift": 1})
    moved = [
        (int(str(b.adapter)[-4:]) - int(str(a.adapter)[-4:])) % 10 for a, b in zip(still, moving, strict=True)
    ]
    assert moved == [0] * 10 + [1] * 10


AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:18:03.9799601,110,27
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 23:59:59.930000+00:00,2162,5
2024-05-11 00:00:01+00:00,2399,6
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,GPT-4,1087,230,1317,API log
"""
BENCH = {"date": "20260101", "input_lens": [30, 10, 20], "output_lens": [3, 1, 2], "ttfts": [0.1] * 3}


def shape(path: Path, **changes: Any) -> list[tuple[int, int, int]]:
    return [(spec.arrival_ns, spec.input_length, spec.output_length) for spec in play(path, **changes)]


def test_azure(write: Callable[..., Path]) -> None:
    path = write(AZURE, name="a.csv")
    assert shape(path) == [(0, 4808, 10), (52_000_000, 3180, 8), (60_000_000_100, 110, 27)]
    assert shape(write(AZURE_2024, name="b.csv")) == [(0, 2162, 5), (1_070_000_000, 2399, 6)]


def test_burstgpt(write: Callable[..., Path]) -> None:
    path = write(BURSTGPT.replace("\n", "\r\n"), name="b.csv")
    assert shape(path) == [(5_000_000_000, 472, 18), (45_500_000_000, 1087, 230)]


@pytest.mark.parametrize("indent", [None, 2])
def test_vllm_bench_is_sorted_by_start(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(BENCH | {"start_times": [102.5, 100.0, 101.0]}, indent=indent))
    assert shape(path) == [(0, 10, 1), (10**9, 20, 2), (2_500_000_000, 30, 3)]


def test_vllm_bench_without_times_takes_them_from_the_arrivals(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(BENCH))
    specs = play(path, request_rate=5.0)
    assert [(spec.input_length, spec.output_length) for spec in specs] == [(30, 3), (10, 1), (20, 2)]
    synthetic = WorkloadConfig.from_mapping(
        SETTINGS | {"input_length": 1, "output_length": 1, "request_rate": 5.0, "num_requests": 3}
    )
    assert [spec.arrival_ns for spec in specs] == [spec.arrival_ns for spec in requests(synthetic, 3)]
    with pytest.raises(UserError, match=r"workload.request_rate is null: .*result.json has no arrival times"):
        play(path)


def test_requests_of_a_run_play_again_to_the_nanosecond(tmp_path: Path) -> None:
    arrivals = np.cumsum(np.random.default_rng(0).integers(0, 10**9, 200)).tolist()
    columns = {
        "request_id": [f"r{n}" for n in range(200)],
        "adapter": [None if n % 3 else "x" for n in range(200)],
        "arrival_s": [arrival / 1e9 for arrival in arrivals],
        "input_length": [10] * 200,
        "output_length": [2] * 200,
    }
    pq.write_table(pa.table(columns), tmp_path / "requests.parquet")
    specs = play(tmp_path / "requests.parquet")
    assert [spec.arrival_ns for spec in specs] == arrivals
    assert [spec.adapter for spec in specs] == columns["adapter"]
    assert [spec.request_id for spec in specs] == columns["request_id"]


@pytest.mark.parametrize(
    ("name", "text", "format_name"),
    [
        ("T.jsonl", json.dumps(line(0)), "jsonl"),
        ("T.csv", AZURE, "azure"),
        ("T.csv", BURSTGPT, "burstgpt"),
        (
            "T.json",
            json.dumps({"input_lens": [1], "output_lens": [2], "start_times": [3]}, indent=1),
            "vllm_bench",
        ),
    ],
)
def test_a_compressed_file_is_as_the_file_itself(
    tmp_path: Path, name: str, text: str, format_name: str
) -> None:
    (tmp_path / name).write_text(text)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert play(packed) == play(tmp_path / name)
    found = traffic(workload(packed), 3).trace
    assert found is not None
    assert found.format == format_name


def test_format_overrides_what_the_file_looks_like(write: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"T.jsonl, line 1: no column TIMESTAMP; expected TIMESTAMP, Context"):
        play(write(line()), format="azure")
    with pytest.raises(UserError, match=r"workload.format='csv': expected one of jsonl, azure, burstgpt, "):
        play(write(line()), format="csv")


BAD_LINES = {
    "no JSON": ("{", "not JSON"),
    "no object": ("[1]", "expected a JSON object"),
    "nothing but a number": ("3", "expected a JSON object"),
    "no text": (b"\xff\xfe{", "not UTF-8 text"),
    "too deep": ("[" * 100_000, "not JSON"),
    "no input": (line(9, ...), "input_length is missing"),
    "null": (line(9, None), "input_length is missing"),
    "zero input": (line(9, 0), "input_length=0: must be at least 1"),
    "zero output": (line(9, 10, 0), "output_length=0: must be at least 1"),
    "negative": (line(9, -3), "input_length=-3: must be at least 1"),
    "half a token": (line(9, 2.5), "input_length=2.5: expected a whole number"),
    "yes": (line(9, True), "input_length=True: expected a whole number"),
    "word": (line(9, "many"), "input_length='many': expected a whole number"),
    "endless": (line(9, 10**30), "input_length=1" + 30 * "0" + ": expected a smaller number"),
    "no time": (line(...), "timestamp is missing"),
    "time before the start": (line(-1), "timestamp=-1: expected a time of 0 or more"),
    "not a time": (
        '{"timestamp": NaN, "input_length": 1, "output_length": 1}',
        "timestamp=nan: expected a time",
    ),
    "time goes back": (line(3), "the time goes back, by 1.5 ms, from line 2"),
    "adapter": (line(9, adapter=3), "adapter=3: expected text or null"),
    "empty adapter": (line(9, adapter=""), "adapter='': expected text or null"),
    "id": (line(9, request_id=[1]), "request_id=[1]: expected text or null"),
    "id again": (line(9, request_id="a"), "request_id='a' occurs in line 1 already"),
    "priority": (line(9, priority="high"), "priority='high': expected a whole number"),
    "rank": (line(9, rank=0), "rank=0: must be at least 1"),
    "another rank": (line(9, rank=16), "rank=16: x has rank 8 above"),
    "rank of nobody": (line(9, adapter=..., rank=8), "rank=8: the line has no adapter"),
    "abort": (line(9, abort_ms=-1), "abort_ms=-1: expected a time of 0 or more"),
    "hashes": (line(9, hash_ids=[1.5]), "hash_ids: expected a list of whole numbers"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named_or_skipped_and_counted(
    write: Callable[..., Path], bad: dict[str, Any] | str | bytes, message: str
) -> None:
    path = write(line(0, request_id="a", rank=8), line(4.5), bad, line(5))
    with pytest.raises(UserError) as raised:
        play(path)
    assert str(raised.value).startswith(f"{path}, line 3: {message}")
    assert str(raised.value).endswith("(workload.on_bad_line=skip leaves such lines out)")
    assert "\n" not in str(raised.value)
    found = traffic(workload(path, on_bad_line="skip"), 3)
    assert [spec.arrival_ns for spec in found.specs] == [0, 4_500_000, 5_000_000]
    assert found.trace is not None
    report = found.trace.report()
    assert (report["requests"], report["skipped_lines"]) == (3, 1)
    assert report["first_skipped_lines"][0].startswith(f"line 3: {message}")


BAD_CSV = {
    "fields": (AZURE + "2023-11-16 18:19:00,1\n", "line 5: 2 fields, the header has 3"),
    "date": (AZURE + "yesterday,1,1\n", "line 5: TIMESTAMP='yesterday': expected date and time"),
    "nothing": (AZURE + "2023-11-16 18:19:00,,1\n", "line 5: ContextTokens is missing"),
    "zero": (BURSTGPT + "46,GPT-4,9,0,9,API log\n", "line 4: Response tokens=0: must be at least 1"),
    "back": (BURSTGPT + "44,GPT-4,9,1,9,API log\n", "line 4: the time goes back, by 1500 ms, from line 3"),
    "number": (BURSTGPT + "x,GPT-4,9,1,9,API log\n", "line 4: Timestamp='x': expected a number"),
}


@pytest.mark.parametrize(("text", "message"), BAD_CSV.values(), ids=BAD_CSV)
def test_a_bad_line_of_csv_is_named(write: Callable[..., Path], text: str, message: str) -> None:
    path = write(text, name="bad.csv")
    with pytest.raises(UserError) as raised:
        play(path)
    assert str(raised.value).startswith(f"{path}, {message}")


BAD_FILES = {
    "empty": ("T.jsonl", b"", "no requests in it"),
    "blank": ("T.jsonl", b"\n \n", "no requests in it"),
    "header alone": ("T.csv", AZURE.splitlines()[0].encode(), "no requests in it"),
    "no format": ("T.txt", b"hello\n", "not a trace of a known format"),
    "no parquet": ("requests.parquet", b"PAR1 but no more", "cannot be read as parquet"),
    "uneven": (
        "r.json",
        b'{"input_lens": [1], "output_lens": []}',
        "output_lens: expected a list with an entry",
    ),
    "no entries": ("r.json", b'{"input_lens": [], "output_lens": []}', "no requests in it"),
    "no lists": ("r.json", b'{"input_lens": 1, "output_lens": 1}', "input_lens: expected a list"),
    "cut": ("r.json", b'{\n"input_lens": [1', "not JSON"),
    "cut gzip": (
        "T.jsonl.gz",
        gzip.compress(bytes(1000))[:-9],
        "cannot be decompressed: Compressed file ended",
    ),
    "damaged gzip": (
        "T.jsonl.gz",
        b"\x1f\x8b and so on, and on",
        "cannot be decompressed: Unknown compression",
    ),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES)
@pytest.mark.parametrize("on_bad_line", ["error", "skip"])
def test_a_bad_file_is_named(
    tmp_path: Path, name: str, content: bytes, message: str, on_bad_line: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        play(tmp_path / name, on_bad_line=on_bad_line, request_rate=None)
    assert str(raised.value).startswith(f"{tmp_path / name}: {message}")


def test_a_file_of_bad_lines_alone_is_empty(write: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"T.jsonl: no requests in it; bad lines skipped: 2"):
        play(write("x", "y"), on_bad_line="skip")


@pytest.mark.parametrize(
    ("first_s", "last_s", "warmup_s", "late"),
    [(1.7e9, 1.7e9 + 100, 0, True), (100, 150, 0, True), (100, 150, 100, False), (100, 300, 0, False)],
)
def test_times_that_begin_late_are_named(
    write: Callable[..., Path], first_s: float, last_s: float, warmup_s: float, late: bool
) -> None:
    trace = read_trace(str(write(line(1e3 * first_s), line(1e3 * last_s))), None, False, timed=True)
    said = trace.late_start(warmup_s)
    assert [f"the first request comes after {first_s:,.0f} s" in text for text in said] == [True] * late


def test_a_closed_loop_ignores_times_and_keeps_the_order(write: Callable[..., Path]) -> None:
    path = write(line(9, 3), line(1, 2), line(..., 1))
    specs = play(path, mode="closed", concurrency=2)
    assert [(spec.arrival_ns, spec.input_length) for spec in specs] == [(0, 3), (0, 2), (0, 1)]


def test_duration_and_num_requests_end_a_trace(write: Callable[..., Path]) -> None:
    path = write(*(line(1000.0 * second) for second in range(10)))
    assert len(play(path, duration_s=4)) == 4
    assert len(play(path, num_requests=3)) == 3
    assert traffic(workload(path, num_requests=3), 0).num_requests == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_length": 5}, "workload.input_length: expected null, "),
        ({"request_rate": 5.0}, "workload.request_rate=5.0: "),
        ({"on_bad_line": "ignore"}, "workload.on_bad_line='ignore': expected one of error, skip"),
        ({"popularity": None}, "workload.popularity is null: it is needed for requests that name no adapter"),
        ({"path": "???"}, "workload.path is missing: the file with the requests"),
        ({"adapters": ["x", 3]}, "workload.adapters[1]=3: expected str"),
        ({"hash_block_size": 0}, "workload.hash_block_size=0: must be greater than 0"),
    ],
)
def test_bad_settings_are_named(write: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    settings = SETTINGS | {"path": str(write(line(adapter=...)))} | changes
    with pytest.raises(UserError) as raised:
        list(requests(WorkloadConfig.from_mapping(settings), seed=3))
    assert str(raised.value).startswith(message)


def test_a_long_trace_is_read_lazily_enough(write: Callable[..., Path]) -> None:
    path = write(*(line(float(n)) for n in range(20_000)))
    assert len(read_trace(str(path), None, False, True).rows) == 20_000
    assert next(islice(requests(workload(path), 0), 19_999, None)).arrival_ns == 19_999 * 10**6


def test_prefixes_of_blocks_by_hand() -> None:
    """Hash blocks of 8 tokens; the prompt of 20 has two and a half of them."""
    unit = 2**24
    assert prefix_hashes((5, 6, 7), 20, 8, 4) == tuple(
        hash_id * unit + block for block, hash_id in enumerate((5, 5, 6, 6, 7))
    )
    # A block of 16 tokens ends in the second hash block; the next one is not full.
    assert prefix_hashes((5, 6, 7), 20, 8, 16) == (6 * unit,)
    assert prefix_hashes((5,), 20, 8, 4) == (5 * unit, 5 * unit + 1)
    assert prefix_hashes((), 20, 8, 4) == ()


@given(
    st.lists(st.integers(0, 3), max_size=6),
    st.lists(st.integers(0, 3), max_size=6),
    st.sampled_from([3, 4, 8, 16, 20]),
)
def test_prompts_share_exactly_the_blocks_that_their_hashes_cover(
    a: list[int], b: list[int], size: int
) -> None:
    """The ids here are made as Mooncake's: each stands for all before it."""
    chained = [[hash(tuple(ids[: end + 1])) % 2**61 for end in range(len(ids))] for ids in (a, b)]
    first, second = (prefix_hashes(ids, 8 * len(ids), 8, size) for ids in chained)
    shared = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    common = next((n for n, (x, y) in enumerate(zip(first, second, strict=False)) if x != y), None)
    assert common in (None, shared * 8 // size)
    assert not set(first[shared * 8 // size :]) & set(second[shared * 8 // size :])
