"""The parity gate against a server that answers as it is told."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.parity import main
from calibrate.parity_gate import Passes, differing, first_difference, normal, parities, table
from tests.calibrate.fake_openai import Behaviour, fake_openai, served
from tests.refusal import refused

ADAPTERS = ("a", "b")
Keys = dict[tuple[str, str], str | None]


def answers(adapter: str, texts: str) -> Keys:
    """Return an answer of one character a prompt; `.` stands for a request that failed."""
    return {(adapter, f"p{number}"): None if text == "." else text for number, text in enumerate(texts)}


def passes(single: str, again: str, mixed: str) -> Passes:
    return Passes(answers("a", single), answers("a", again), answers("a", mixed))


def test_shares_and_the_gate_by_hand() -> None:
    # Ten prompts: one answer differs by itself, and two others in the mixed batch.
    (found, total) = parities(passes("xxxxxxxxxx", "yxxxxxxxxx", "xxxxxxxxzz"), 10.0)
    assert (found.repeatable, found.equal, found.passed) == (0.9, 0.8, True)
    assert found.difference_pct == pytest.approx(10)
    assert (total.adapter, total.equal) == ("all", 0.8)
    assert not parities(passes("xxxxxxxxxx", "yxxxxxxxxx", "xxxxxxxxzz"), 9.9)[0].passed


def test_a_failed_request_does_not_pass() -> None:
    (found, _) = parities(passes("xxx.", "xxxx", "xx.x"), 100.0)
    assert (found.prompts, found.failed, found.equal, found.passed) == (4, 2, 1.0, False)
    (nothing, _) = parities(passes("..", "..", ".."), 100.0)
    assert (nothing.equal, nothing.difference_pct, nothing.passed) == (None, None, False)


def test_an_engine_that_repeats_itself_less_than_it_mixes_passes() -> None:
    (found, _) = parities(passes("xxxx", "yyxx", "xxxx"), 0.0)
    assert found.difference_pct == -50
    assert found.passed


def texts_of(size: int) -> st.SearchStrategy[tuple[str, ...]]:
    return st.tuples(*[st.text("xyz.", min_size=size, max_size=size)] * 3)


def test_how_likely_a_difference_is_by_chance() -> None:
    # Six prompts that mixing alone changes, none that repeating alone does: 2 / 2**6.
    (found, total) = parities(passes("xxxxxxxx", "xxxxxxxx", "yyyyyyxx"), 0.5)
    assert found.by_chance == total.by_chance == pytest.approx(1 / 32)
    # As many the one way as the other, and two that change both times.
    assert parities(passes("xxxxxx", "yyyyxx", "yyxxyy"), 0.5)[0].by_chance == 1.0
    assert parities(passes("..", "..", ".."), 0.5)[0].by_chance is None


TEXTS = st.integers(1, 30).flatmap(texts_of)


@given(TEXTS)
def test_all_is_the_sum_of_its_parts(texts: tuple[str, ...]) -> None:
    parts = [answers("a", text) | answers("b", text[::-1]) for text in texts]
    one, two, total = parities(Passes(*parts), 0.5)
    assert total.prompts == one.prompts + two.prompts
    assert total.failed == one.failed + two.failed
    assert one.equal == two.equal == total.equal
    listed = differing(Passes(*parts))
    unlike = sum(len(set(group)) > 1 for group in zip(*texts, strict=True))
    assert len(listed) == 2 * unlike


def test_the_table() -> None:
    rows = parities(passes("xxxx", "xxxx", "xxxy"), 0.5)
    assert (
        table(rows)
        == """\
Adapter  Prompts  Failed  Repeatable  Mixed equal  Difference  By chance  Gate
------------------------------------------------------------------------------
a              4       0     100.00%       75.00%      25.00%       1.00  FAIL
all            4       0     100.00%       75.00%      25.00%       1.00  FAIL

By chance: how likely such a difference, or a larger one, is
where mixing changes nothing (McNemar's exact test)."""
    )


def test_where_answers_part() -> None:
    assert first_difference("abc", "abd") == 2
    assert first_difference("ab", "abc") == 2
    assert first_difference("abc", "abc") is None


def test_the_order_of_keys_does_not_matter_in_json() -> None:
    one, other = '{"name": "f", "args": {"x": 1, "y": 2}}', '{"args":{"y":2,"x":1},"name":"f"}'
    assert normal(one, "json") == normal(other, "json")
    assert normal(one, "text") != normal(other, "text")
    assert normal("no json", "json") == "no json"


@pytest.fixture(scope="module")
def told() -> Iterator[tuple[Behaviour, str]]:
    behaviour = Behaviour(models=served(*ADAPTERS))
    with fake_openai(behaviour) as url:
        yield behaviour, url


@pytest.fixture
def parity(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: tuple[Behaviour, str]
) -> Callable[..., dict[str, Any]]:
    """Return a function that runs the command against a server that answers as told, and reads its file."""

    def run(answer: Callable[[dict[str, Any], int], str], *words: str, status: int = 0) -> dict[str, Any]:
        told[0].__dict__.update(Behaviour(models=served(*ADAPTERS), answer=answer).__dict__)
        monkeypatch.chdir(tmp_path)
        given = [f"endpoint={told[1]}", "num_prompts=20", "concurrency=4", "max_tokens=8", *words]
        monkeypatch.setattr(sys, "argv", ["calibrate.parity", *given])
        if status:
            with pytest.raises(SystemExit) as exit_:
                main()
            assert exit_.value.code == status
        else:
            main()
        (file,) = (tmp_path / "results").glob("parity_*.json")
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    return run


@pytest.fixture
def refuse(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    told: tuple[Behaviour, str],
) -> Callable[..., str]:
    """Return a function that runs the command with words that it refuses, and returns what it says."""
    told[0].__dict__.update(Behaviour(models=served(*ADAPTERS)).__dict__)

    def run(*words: str) -> str:
        given = [f"endpoint={told[1]}", *words]
        return refused(monkeypatch, capsys, tmp_path, given, main=main, prog="calibrate.parity")

    return run


def is_mixed(body: dict[str, Any]) -> bool:
    return str(body["cache_salt"]).startswith("mixed")


def steady(body: dict[str, Any], number: int) -> str:
    return f"{body['model']} {sum(body['prompt'])}"


def test_a_steady_engine_passes(
    parity: Any, told: tuple[Behaviour, str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = parity(steady)
    assert found["passed"]
    assert [row["adapter"] for row in found["adapters"]] == ["a", "b", "all"]
    assert found["adapters"][2] == {
        "adapter": "all",
        "prompts": 40,
        "failed": 0,
        "repeatable": 1.0,
        "equal": 1.0,
        "by_chance": 1.0,
        "gate_pct": 0.5,
        "difference_pct": 0.0,
        "passed": True,
    }
    assert found["differing"] == []
    seen = told[0].seen
    assert {(body["temperature"], body["max_tokens"], body["stream"]) for body in seen} == {(0, 8, False)}
    # The passes: each adapter alone, both mixed, each alone again.
    order = [body["model"] for body in seen]
    assert order[:40] == order[80:] == ["a"] * 20 + ["b"] * 20
    assert sorted(order[40:80]) == order[:40] != order[40:80]
    assert len({body["cache_salt"] for body in seen}) == 3
    assert "all           40       0     100.00%" in capsys.readouterr().out


def test_one_adapter_that_changes_in_mixed_batches_fails(parity: Any) -> None:
    def changing(body: dict[str, Any], number: int) -> str:
        odd = body["model"] == "b" and is_mixed(body) and sum(body["prompt"]) % 2 == 0
        return steady(body, number) + ("!" if odd else "")

    found = parity(changing, status=1)
    rows = {row["adapter"]: row for row in found["adapters"]}
    assert (rows["a"]["passed"], rows["b"]["passed"]) == (True, False)
    differing_prompts = found["differing"]
    assert rows["b"]["equal"] == 1 - len(differing_prompts) / 20
    for row in differing_prompts:
        assert row["single"] == row["again"] == row["mixed"][:-1]
        assert row["first_difference_mixed"] == len(row["single"])
        assert row["first_difference_again"] is None
    assert parity_of_all(found) == pytest.approx(100 * len(differing_prompts) / 40)


def parity_of_all(found: dict[str, Any]) -> float:
    return float(found["adapters"][-1]["difference_pct"])


def test_an_engine_that_is_never_the_same_is_no_worse_mixed(parity: Any) -> None:
    found = parity(lambda body, number: f"{steady(body, number)} {number}")
    assert found["passed"]
    assert (found["adapters"][0]["repeatable"], found["adapters"][0]["equal"]) == (0.0, 0.0)


def test_the_gate_is_an_option(parity: Any) -> None:
    assert parity(lambda body, n: str(is_mixed(body)), "gate_pct=100")["passed"]


def test_a_dataset_asks_each_adapter_its_own_and_all_what_is_nobodys(
    parity: Any, told: tuple[Behaviour, str], tmp_path: Path
) -> None:
    lines = [{"prompt": "for a", "adapter_name": "a"}, {"prompt": "for all", "max_tokens": 3}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = parity(lambda body, n: body["prompt"], "dataset=data.jsonl", "cache_salt=false")
    assert [row["prompts"] for row in found["adapters"]] == [2, 1, 3]
    assert not any("cache_salt" in body for body in told[0].seen)
    assert {body["max_tokens"] for body in told[0].seen if body["prompt"] == "for all"} == {3}


def test_failed_requests_fail_the_gate(parity: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["adapters=[a,http_503]", "check_models=false", "num_prompts=2"]
    found = parity(steady, *words, status=1)
    assert [row["failed"] for row in found["adapters"]] == [0, 2, 2]
    assert "http_503: told to say 503" in capsys.readouterr().err


def test_half_a_gate_is_none(
    parity: Any, tmp_path: Path, told: tuple[Behaviour, str], capsys: pytest.CaptureFixture[str]
) -> None:
    pressed = threading.Lock()

    def interrupted(body: dict[str, Any], number: int) -> str:
        if is_mixed(body) and pressed.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGINT)
        return "x"

    with pytest.raises(ValueError, match="not enough values"):
        parity(interrupted, status=130)
    assert not (tmp_path / "results").exists()
    assert capsys.readouterr().err.endswith("calibrate.parity: interrupted\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["adapters=[nobody]"], "the server does not list nobody"),
        (["gate_pct=-1"], "gate_pct=-1.0: expected 0 to 100"),
        (["compare=taste"], "compare='taste': expected one of text, json"),
        (["num_prompts=0"], "num_prompts=0: must be at least 1"),
    ],
)
def test_what_a_user_gets_wrong(refuse: Callable[..., str], words: list[str], message: str) -> None:
    assert message in refuse(*words)
