"""What a page says of the parity gate: passed, failed for good, or by what chance makes."""

import json
from pathlib import Path
from typing import Any

import pytest

from reports.parity import parity_lines, parity_section
from sim.errors import UserError


def write(path: Path, answers: list[tuple[str | None, ...]], **total: Any) -> Path:
    row = {"adapter": "all", "prompts": 40, "failed": 0, "repeatable": 0.9, "equal": 0.8} | total
    differing = [dict(zip(("single", "again", "mixed"), them, strict=True), adapter="a") for them in answers]
    gate = {"gate_pct": 0.5, "passed": False, "adapters": [row | {"adapter": "a"}, row]}
    path.write_text(json.dumps(gate | {"differing": differing}))
    return path


def test_a_gate_that_chance_fails_says_so(tmp_path: Path) -> None:
    section = parity_section(write(tmp_path / "parity.json", [("1", "2", "1"), ("1", "1", "2")] * 3), "")
    assert section.rows == [[name, "40", "90.00%", "80.00%", "1.00"] for name in ("a", "all")]
    asked, said = section.notes
    assert "not passed" in asked
    assert said.startswith("That may be chance")


def test_a_gate_that_mixing_fails_says_so(tmp_path: Path) -> None:
    lost = write(tmp_path / "parity.json", [("1", "1", "2")] * 10)
    assert parity_section(lost, "").notes[1].startswith("That is not chance")


def test_prompts_without_an_answer_are_no_evidence_of_mixing(tmp_path: Path) -> None:
    path = write(tmp_path / "parity.json", [("1", "1", None)] * 10, failed=10, repeatable=None, equal=None)
    section = parity_section(path, "")
    assert section.rows[1] == ["all", "40", "–", "–", "1.00"]
    assert section.notes[1] == "10 prompts have no answer in one of the passes."


def test_no_file_is_no_part_of_a_page_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    assert parity_lines(tmp_path / "none.json") == []
    (tmp_path / "wrong.json").write_text("[]")
    with pytest.raises(UserError, match=r"wrong.json: no result of calibrate.parity"):
        parity_lines(tmp_path / "wrong.json")
