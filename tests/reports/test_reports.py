"""The report on a sweep: what the page holds, which setting it recommends, what it says about bad input."""

import csv
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from reports import __main__ as command
from reports import numbers
from reports.limits import NOT_MODELLED
from reports.sweep import choose, finding
from reports.sweep.evidence import ERRORS_FILE, PREDICTIONS_FILE, SWAPS_FILE, Check
from reports.sweep.evidence_plots import grade
from reports.sweep.load import Row, load_sweep
from sim import results
from tests.refusal import refused

SECTIONS = [
    "recommendation",
    "sweep",
    "time",
    "finding",
    "results",
    "calibration",
    "hardware",
    "limits",
    "settings",
]
CONFIG: dict[str, Any] = {
    "seed": 0,
    "engine": {"max_loras": 4, "max_cpu_loras": None, "async_scheduling": True},
    "model": {"name": "org/model"},
    "profile": {"kind": "fitted", "provenance": {"gpu": "NVIDIA H100", "versions": {"vllm": "0.25.1"}}},
    "workload": {
        "mode": "closed",
        "concurrency": 64,
        "duration_s": 30,
        "num_adapters": 1000,
        "popularity": {"kind": "uniform"},
        "input_length": 256,
        "output_length": 128,
    },
}
OOM = "engine.max_loras=64: 3.1 GiB short <&>"


def summary(traffic: str, max_loras: Any, throughput: float | None, p99_ms: float | None) -> dict[str, Any]:
    """Return a run's summary; a throughput of None is a run that failed."""
    popularity = {"kind": "uniform"} if traffic == "uniform" else {"kind": "zipf", "exponent": 1.0}
    config = {
        **CONFIG,
        "engine": {**CONFIG["engine"], "max_loras": max_loras},
        "workload": {**CONFIG["workload"], "popularity": popularity},
    }
    version = {"schema_version": results.SCHEMA_VERSION, "config": config}
    if throughput is None:
        return {**version, "status": "oom", "message": OOM}
    shares = {"compute": 0.5, "loading": 0.3, "activation": 0.1, "host": 0.1, "idle": 0.0}
    return {
        **version,
        "status": "ok",
        "message": "",
        "output_throughput": throughput,
        "completed": 100,
        "p99_ttft_ms": p99_ms,
        "median_ttft_ms": 123.4,
        "adapter_loads": 50,
        "adapter_activations": 250,
        "time_share": shares,
        "vllm_serve_command": f"vllm serve org/model --max-loras {max_loras}",
        "profile": {"name": "h100", "sha256": "abc123", "outside_range": []},
    }


def write_sweep(folder: Path, runs: list[tuple[dict[str, Any], dict[str, Any]]]) -> Path:
    """Write a sweep of (overrides, summary)."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (overrides, run) in enumerate(runs):
        (folder / str(number)).mkdir(exist_ok=True)
        (folder / str(number) / "summary.json").write_text(json.dumps(run))
        rows.append({**overrides, "status": run["status"], "message": run["message"], "path": str(number)})
    with (folder / "sweep.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def run_of(traffic: str, size: int, throughput: float | None, p99_ms: float | None) -> tuple[Any, Any]:
    return {"engine.max_loras": size, "workload": traffic}, summary(traffic, size, throughput, p99_ms)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    runs = [
        *(run_of("uniform", 4, 300.0, 9000.0), run_of("zipf", 4, 700.0, 5000.0)),
        *(run_of("uniform", 16, 800.0, 2000.0), run_of("zipf", 16, 2000.0, 900.0)),
        *(run_of("uniform", 32, 700.0, 1900.0), run_of("zipf", 32, 1800.0, 800.0)),
        *(run_of("uniform", 64, None, None), run_of("zipf", 64, None, None)),
    ]
    runs[0][1]["profile"]["outside_range"] = ["max_loras=4 is outside the measured 8 to 64"]
    runs[1][1]["warnings"] = ["workload.request_rate=8 is without effect"]
    return write_sweep(tmp_path / "sweep", runs)


@pytest.fixture
def fit(tmp_path: Path) -> Path:
    folder = tmp_path / "fit"
    folder.mkdir()
    steps = [
        ("a", regime, quantity, split, 10.0 + i, 10.5 + i, 8, 2)
        for regime in ("decode, full graph", "mixed, no graph")
        for quantity in ("gpu_ms", "step")
        for split in ("train", "heldout")
        for i in range(300)
    ]
    columns = [
        "run",
        "regime",
        "quantity",
        "split",
        "predicted_ms",
        "measured_ms",
        "num_tokens",
        "num_adapters",
    ]
    pd.DataFrame(steps, columns=columns).to_parquet(folder / PREDICTIONS_FILE)
    errors = [
        ("decode, full graph", "gpu_ms", "heldout", 300, 1.2, 4.5),
        ("host", "update_ms", "train", 9, 6.1, 21.0),
    ]
    columns = ["regime", "quantity", "split", "count", "median_abs_pct", "p90_abs_pct"]
    pd.DataFrame(errors, columns=columns).to_csv(folder / ERRORS_FILE, index=False)
    swaps = [("load_growing", 16, 40, 30.0, 60.0, 120.0, 205.0), ("activate", 16, 80, 9.0, 11.0, 15.0, 22.0)]
    columns = ["kind", "rank", "count", "p10_ms", "median_ms", "p90_ms", "max_ms"]
    pd.DataFrame(swaps, columns=columns).to_csv(folder / SWAPS_FILE, index=False)
    return folder


@pytest.fixture
def check(tmp_path: Path) -> Path:
    file = tmp_path / "check.csv"
    file.write_text(
        "workload,quantity,measured,measured_again,simulated,error_pct,hardware_spread_pct,"
        "simulated_given_host,error_given_host_pct\n"
        "closed,output_throughput,1893,1851,1921,1.5,2.2,1890,-0.2\n"
        "open,p99_ttft_ms,600,,730,21.7,,620,3.3\n"
    )
    return file


@pytest.fixture
def words(sweep: Path, fit: Path, check: Path) -> list[str]:
    """Return the options that name all three inputs."""
    return [f"dir={sweep}", f"fit={fit}", f"check={check}"]


def report(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["reports", *options])
    command.main()


class Page(HTMLParser):
    """What a test asks about a page: text of its elements, its tables' rows, what it would load."""

    VOID = ("meta", "link", "br", "use", "path", "rect")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.sections: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.svg_titles: list[str] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"]] if given.get("id") else []
        self.loads += [str(given[key]) for key in ("src", "href", "data", "poster", "srcset") if key in given]
        if tag == "section":
            self.sections.append(str(given["id"]))
        if tag == "tr":
            self.rows.setdefault(self.sections[-1], []).append([])
        if tag in ("td", "th"):
            self.rows[self.sections[-1]][-1].append("")
        if tag not in self.VOID:
            self.open.append((tag, given))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if tags[-2:] == ["svg", "title"]:
            self.svg_titles.append(data)
        if {"td", "th"} & set(tags):
            self.rows[self.sections[-1]][-1][-1] += data.strip()


def test_page_has_every_section_in_a_readers_order(
    monkeypatch: pytest.MonkeyPatch, sweep: Path, words: list[str]
) -> None:
    report(monkeypatch, *words)
    html = (sweep / "report.html").read_text()
    page = Page(html)
    assert page.sections == SECTIONS
    assert "<h1>max_loras 16 serves 1,000 LoRA adapters best</h1>" in html
    assert len(page.ids) == len(set(page.ids))
    assert page.svg_titles == [
        "Output throughput over max_loras",
        "Time to first token over max_loras",
        "Share of time per run",
        "Adapter loads and activations over max_loras",
        "Predicted against measured: whole step",
        "Residuals by regime",
        "Cost of an adapter swap",
        "Predicted against measured: GPU work",
        "Simulated against measured",
    ]
    assert html.count("<svg") == html.count("<desc") == len(page.svg_titles)
    for what, _ in NOT_MODELLED:
        assert what in html


def test_page_loads_nothing(monkeypatch: pytest.MonkeyPatch, sweep: Path, words: list[str]) -> None:
    report(monkeypatch, *words)
    html = (sweep / "report.html").read_text()
    assert not re.search(r"https?:|//\w|@import|<script", html)
    assert all(url.startswith("#") or url == "data:," for url in Page(html).loads)
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)", html))


def test_every_row_is_there_and_a_failed_one_with_its_message(
    monkeypatch: pytest.MonkeyPatch, sweep: Path
) -> None:
    report(monkeypatch, f"dir={sweep}")
    html = (sweep / "report.html").read_text()
    _, *rows = Page(html).rows["results"]
    ok = [row[:4] for row in rows if row[2] == "ok"]
    assert ok == [
        *(["uniform", "4", "ok", "300"], ["uniform", "16", "ok", "800"], ["uniform", "32", "ok", "700"]),
        *(["zipf", "4", "ok", "700"], ["zipf", "16", "ok", "2,000"], ["zipf", "32", "ok", "1,800"]),
    ]
    assert [row for row in rows if row[2] != "ok"] == [
        [name, "64", "oom", OOM] for name in ("uniform", "zipf")
    ]
    assert "2 of 8 runs failed" in html
    assert "max_loras=4 is outside the measured 8 to 64 (1 of 8 runs: max_loras 4 under uniform)" in html
    assert "workload.request_rate=8 is without effect (1 of 8 runs: max_loras 4 under zipf)" in html


def test_words_come_from_the_numbers(monkeypatch: pytest.MonkeyPatch, sweep: Path) -> None:
    report(monkeypatch, f"dir={sweep}")
    html = (sweep / "report.html").read_text()
    assert "Throughput is 2.50 times as high under zipf as under uniform traffic" in html
    assert "reports 2.45 times (2,167 against 884 tokens/s)" in html
    assert "uniform: 800 tokens/s at max_loras 16, at 32 12\u202f% less" in html
    rows = load_sweep(sweep)
    assert [claim.verdict for claim in finding.claims(rows, choose.recommend(rows))] == ["agrees"] * 3


def test_finding_that_differs_is_said_so(tmp_path: Path) -> None:
    runs = [run_of(traffic, size, 900.0 + size, 50.0) for size in (4, 8) for traffic in ("uniform", "zipf")]
    rows = load_sweep(write_sweep(tmp_path / "same", runs))
    assert [claim.verdict for claim in finding.claims(rows, choose.recommend(rows))] == ["differs"] * 3
    runs[0] = run_of("uniform", 4, 500.0, 2000.0)
    rows = load_sweep(write_sweep(tmp_path / "some", runs))
    verdicts = ["partly", "partly", "differs"]
    assert [claim.verdict for claim in finding.claims(rows, choose.recommend(rows))] == verdicts


def test_missing_data_names_the_command_that_makes_it(monkeypatch: pytest.MonkeyPatch, sweep: Path) -> None:
    report(monkeypatch, f"dir={sweep}")
    html = (sweep / "report.html").read_text()
    for words in ("python -m calibrate.fit", "python -m calibrate.replay"):
        assert words in html


def test_command_prints_the_choice_and_writes_the_same_bytes_each_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sweep: Path, words: list[str]
) -> None:
    outs = [sweep.parent / name for name in ("new/a.html", "b.html")]
    for out in outs:
        report(monkeypatch, *words, f"out={out}")
    assert outs[0].read_bytes() == outs[1].read_bytes()
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split()[:4] == ["uniform", "max_loras", "16", "800"]
    assert shown[-3:] == ["vllm serve org/model --max-loras 16", "", f"Report: {outs[1]}"]


def test_sweep_without_any_success_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    failed = {"engine.max_loras": "x", "workload": "zipf"}, summary("zipf", "x", None, None)
    report(monkeypatch, f"dir={write_sweep(tmp_path, [failed])}", f"out={tmp_path / 'out.html'}")
    page = Page((tmp_path / "out.html").read_text())
    assert page.sections == SECTIONS
    assert page.svg_titles == []
    assert page.rows["results"][1:] == [["zipf", "x", "oom", OOM]]
    assert "No run succeeded" in capsys.readouterr().out


def test_other_overrides_are_part_of_the_setting_and_seeds_of_the_traffic(tmp_path: Path) -> None:
    runs = [
        (
            {"engine.max_loras": 8, "workload": "zipf", "seed": seed, "admission": policy, "eviction": "lru"},
            summary("zipf", 8, throughput, 10.0),
        )
        for seed, policy, throughput in ((0, "a", 100.0), (0, "b", 90.0), (1, "a", 50.0), (1, "b", 90.0))
    ]
    rows = load_sweep(write_sweep(tmp_path, runs))
    assert choose.traffics(rows) == ["zipf, seed 0", "zipf, seed 1"]
    choice = choose.recommend(rows)
    assert choice is not None
    assert choice.setting == "max_loras 8, admission b"


def row(traffic: str, size: int, throughput: float | None, p99_ms: float | None) -> Row:
    return Row(traffic, size, str(size), (), "0", summary(traffic, size, throughput, p99_ms))


@pytest.mark.parametrize(
    ("runs", "per_shape", "for_all"),
    [
        pytest.param([("u", 4, 100, 9), ("u", 8, 99.1, 5)], {"u": 8}, 4, id="within 1 %: lower p99 TTFT"),
        pytest.param([("u", 4, 100, 9), ("u", 8, 98.9, 5)], {"u": 4}, 4, id="below 1 %: throughput"),
        pytest.param([("u", 4, 100, 9), ("u", 8, 99.96, 5)], {"u": 8}, 8, id="equal losses: lower p99 TTFT"),
        pytest.param([("u", 4, 100, None), ("u", 8, 100, 5)], {"u": 8}, 8, id="no first token is worst"),
        pytest.param([("u", 4, 100, 5), ("u", 8, None, None)], {"u": 4}, 4, id="failed run is not chosen"),
        pytest.param([("u", 8, None, None)], {"u": None}, None, id="nothing ran"),
        pytest.param(
            [
                ("u", 4, 100, 5),
                ("u", 8, 90, 5),
                ("u", 16, 50, 5),
                ("z", 4, 50, 5),
                ("z", 8, 92, 5),
                ("z", 16, 100, 5),
            ],
            {"u": 4, "z": 16},
            8,
            id="smallest worst loss",
        ),
        pytest.param(
            [("u", 4, 100, 5), ("u", 8, 70, 5), ("z", 4, None, None), ("z", 8, 100, 5)],
            {"u": 4, "z": 8},
            8,
            id="a failure loses all",
        ),
        pytest.param(
            [("u", 4, 100, 5), ("u", 8, 90, 5), ("z", 4, None, None), ("z", 8, None, None)],
            {"u": 4, "z": None},
            4,
            id="a shape under which all fail says nothing",
        ),
    ],
)
def test_choice(runs: list[tuple[Any, ...]], per_shape: dict[str, int | None], for_all: int | None) -> None:
    rows = [row(*run) for run in runs]
    found = {traffic: choose.best(rows, traffic) for traffic in choose.traffics(rows)}
    assert {traffic: it.max_loras if it else None for traffic, it in found.items()} == per_shape
    choice = choose.recommend(rows)
    assert (choice.row.max_loras if choice else None) == for_all


@pytest.mark.parametrize(
    ("error_pct", "spread_pct", "expected"),
    [(4.9, None, "good"), (-7, 8, "good"), (-7, 2, "fair"), (15.1, None, "poor"), (None, 3, "none")],
)
def test_grade(error_pct: float | None, spread_pct: float | None, expected: str) -> None:
    nan = float("nan")
    values = (nan if value is None else value for value in (error_pct, spread_pct))
    assert grade(Check("closed", "completed", 1, 1, 1, *values, 1, 0)) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (1234.5, "1,234"),
        (0.0, "0"),
        (12.345, "12.3"),
        (9.999, "10.0"),
        (0.01234, "0.0123"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert numbers.number(value) == text


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Return a function that holds the command to one line with ``message``, and to write nothing."""

    def refuse(options: list[str], message: str) -> None:
        line = refused(monkeypatch, capsys, tmp_path, options, main=command.main, prog="reports")
        assert re.search(message, line), line

    return refuse


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def edit(old: str, new: str) -> Any:
    return lambda file: file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize(
    "case",
    [
        ("sweep/sweep.csv", Path.unlink, r"sweep\.csv: no such file; `lorasim -m .*` writes one"),
        ("sweep/sweep.csv", edit("path", "where"), r"sweep\.csv: no column 'path'"),
        ("sweep/sweep.csv", lambda file: file.write_text("status,path\n"), r"sweep\.csv: no rows"),
        ("sweep/sweep.csv", edit("ok,,0", "ok"), r"sweep\.csv: a row has not as many cells"),
        (
            "sweep/sweep.csv",
            lambda file: file.write_bytes(b"\xff\xfe\x00"),
            r"sweep\.csv: cannot be read as CSV",
        ),
        ("sweep/0/summary.json", Path.unlink, r"0/summary\.json: cannot be read"),
        ("sweep/0/summary.json", truncate, r"0/summary\.json: cannot be read"),
        (
            "sweep/0/summary.json",
            edit('"schema_version": 1', '"schema_version": 9'),
            "schema_version 9, expected 1",
        ),
        ("sweep/0/summary.json", edit('"config"', '"configuration"'), r"summary\.json: .* no config in it"),
        ("sweep/0/summary.json", edit("vllm_serve", "serve"), r"summary\.json: no vllm_serve_command in it"),
        ("fit/predictions.parquet", truncate, r"predictions\.parquet: cannot be read as parquet"),
        (
            "fit/predictions.parquet",
            Path.unlink,
            r"predictions\.parquet: no such file; expected .*predicted_ms",
        ),
        (
            "fit/errors.csv",
            edit("regime", "region"),
            r"errors\.csv: no column 'regime'; expected regime, quantity",
        ),
        ("fit/swaps.csv", edit("205.0", "long"), r"swaps\.csv: column 'max_ms', row 1: 'long' is no number"),
        ("fit/swaps.csv", lambda file: file.write_text(""), r"swaps\.csv: cannot be read as csv"),
        ("check.csv", edit("1921", "fast"), r"check\.csv: column 'simulated', row 1: .* is no number"),
        ("check.csv", lambda file: file.write_bytes(b"\xff\xfe\x00,"), r"check\.csv: cannot be read as csv"),
    ],
)
def test_bad_file_is_one_line_and_no_page(
    tmp_path: Path, words: list[str], refuse: Any, case: tuple[str, Any, str]
) -> None:
    file, spoil, message = case
    spoil(tmp_path / file)
    refuse(words, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "dir: not given; expected dir=<folder of a sweep>"),
        (["dir=none"], "dir=none: no such folder"),
        (["dir={sweep}", "fit=none"], "fit=none: no such folder"),
        (["dir={sweep}", "check=none.csv"], r"none\.csv: no such file"),
        (["dir={sweep}", "out={sweep}"], "out=.*: is a folder"),
        (["directory=x"], "directory.*accepted: dir, fit, check, out"),
    ],
)
def test_bad_option_is_one_line(sweep: Path, refuse: Any, options: list[str], message: str) -> None:
    refuse([option.format(sweep=sweep) for option in options], message)


def test_runs_without_a_first_token_have_a_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = [run_of("uniform", size, 0.5, None) for size in (4, 8)]
    for _, summary_ in runs:
        summary_["median_ttft_ms"] = None
    folder = write_sweep(tmp_path / "short", runs)
    report(monkeypatch, f"dir={folder}")
    assert "Time to first token" in (folder / "report.html").read_text()


def test_interrupted_while_writing_leaves_the_earlier_page(
    monkeypatch: pytest.MonkeyPatch, sweep: Path
) -> None:
    page = sweep / "report.html"
    page.write_text("earlier")

    def interrupt(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(SystemExit) as exit_:
        report(monkeypatch, f"dir={sweep}")
    assert exit_.value.code == 130
    assert page.read_text() == "earlier"
    assert [file.name for file in sweep.iterdir() if file.name.startswith(".")] == []
