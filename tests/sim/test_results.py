"""A folder holds a complete result or none."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sim import results
from sim.errors import UserError
from sim.results import REQUESTS_SCHEMA, STEPS_SCHEMA, Result


def make(seed: int = 0, steps: bool = True) -> Result:
    summary = {"schema_version": results.SCHEMA_VERSION, "status": "ok", "message": "", "seed": seed}
    return Result(summary, REQUESTS_SCHEMA.empty_table(), STEPS_SCHEMA.empty_table() if steps else None)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def interrupt(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    results.write(make(seed=3), tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert names(folder) == {"summary.json", "requests.parquet", "steps.parquet"}
    assert (
        results.read_summary(folder) == results.read_summary(folder / "summary.json") == make(seed=3).summary
    )
    assert results.read_requests(folder).schema == REQUESTS_SCHEMA
    assert results.read_steps(folder).schema == STEPS_SCHEMA


def test_a_new_result_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    results.write(make(seed=1), tmp_path)
    results.write(make(seed=2, steps=False), tmp_path)
    assert names(tmp_path) == {"summary.json", "requests.parquet"}
    results.write_failed(tmp_path, {"seed": 5}, "oom", "1.0 GiB short")
    assert names(tmp_path) == {"summary.json"}
    assert results.read_summary(tmp_path)["status"] == "oom"


def test_interrupted_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    results.write(make(seed=1), old)
    monkeypatch.setattr(results, "to_json", interrupt)
    for folder in (new, old):
        with pytest.raises(KeyboardInterrupt):
            results.write(make(seed=2), folder)
    assert names(new) == set()
    assert results.read_summary(old)["seed"] == 1
    assert names(old) == {"summary.json", "requests.parquet", "steps.parquet"}


@pytest.mark.parametrize("at", [0, 1, 2])
def test_interrupted_while_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    rename, calls = Path.replace, iter(range(3))

    def interrupted_rename(self: Path, target: Path) -> Path:
        if next(calls) == at:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", interrupted_rename)
    with pytest.raises(KeyboardInterrupt):
        results.write(make(), tmp_path)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"schema_version": 99}', "\x00"])
def test_a_bad_summary_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(UserError, match=r"summary\.json: ") as raised:
        results.read_summary(tmp_path)
    assert "\n" not in str(raised.value)


def test_bad_tables_are_named(tmp_path: Path) -> None:
    for content in (None, b"PAR1 cut off"):
        if content is not None:
            (tmp_path / "requests.parquet").write_bytes(content)
        with pytest.raises(UserError, match=r"requests\.parquet: ") as raised:
            results.read_requests(tmp_path)
        assert "\n" not in str(raised.value)
    pq.write_table(pa.table({"step": [1]}), tmp_path / "steps.parquet")
    with pytest.raises(UserError, match=r"steps\.parquet: columns \['step'\], expected"):
        results.read_steps(tmp_path)


def test_a_summary_has_no_number_that_json_lacks() -> None:
    assert json.loads(results.to_json({"mean_ttft_ms": None})) == {"mean_ttft_ms": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.to_json({"mean_ttft_ms": float("nan")})
