"""Streams cut anywhere, and what answers of different servers mean."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.bench.answer import Answer, BadAnswer
from calibrate.bench.record import RequestRecord
from calibrate.bench.sse import SseDecoder

STREAM = (
    ": a comment\r\ndata: one\r\n\r\nevent: x\ndata: two\ndata: lines\n\n"
    "data:no space\r\rid: 7\n\ndata: ünïcode 🦙\n\ndata: never complete"
)
EVENTS = ["one", "two\nlines", "no space", "ünïcode 🦙"]


def decode(pieces: list[bytes]) -> list[str]:
    decoder = SseDecoder()
    return [data for piece in pieces for data in decoder.feed(piece)]


@given(st.lists(st.integers(0, len(STREAM.encode())), max_size=20))
def test_events_do_not_depend_on_how_a_stream_is_cut(cuts: list[int]) -> None:
    raw = STREAM.encode()
    places = [0, *sorted(cuts), len(raw)]
    assert decode([raw[a:b] for a, b in pairwise(places)]) == EVENTS


def test_an_event_is_there_as_soon_as_it_is_complete() -> None:
    assert decode([b"data: 1\n\n"]) == ["1"]
    assert decode([b"data: 1\r\n\r\n", b""]) == decode([b"data: 1\r\n\r", b"\n", b"data: x"]) == ["1"]


def chunk(text: str | None = None, ends: str | None = None, **delta: Any) -> dict[str, Any]:
    part = {"delta": delta} if text is None else {"text": text}
    return {"choices": [part | {"finish_reason": ends}]}


def taken(*events: dict[str, Any] | str, keep_text: bool = True) -> RequestRecord:
    """Return the record of a stream, an event a second from second 1."""
    record = RequestRecord("1", "a", 0.0)
    answer = Answer(record, keep_text)
    for second, event in enumerate(events, start=1):
        answer.take_event(event if isinstance(event, str) else json.dumps(event), float(second))
    answer.close()
    assert answer.is_complete
    return record


USAGE = {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 9}}


def test_usage_goes_before_counted_chunks() -> None:
    record = taken(chunk("a"), chunk("b"), chunk("c", "length"), USAGE, "[DONE]")
    assert (record.num_generated_tokens, record.tokens_from, record.input_length) == (9, "usage", 4)
    assert (record.first_token_s, record.finish_s, record.text) == (1.0, 3.0, "abc")


def test_without_usage_a_chunk_is_a_token() -> None:
    # Half a character is a token without a text; the last chunk of OpenAI's servers is none.
    record = taken(chunk("a"), chunk(""), chunk("c"), chunk("", "stop"), "[DONE]")
    assert (record.num_generated_tokens, record.tokens_from) == (3, "chunks")
    assert (record.first_token_s, record.finish_s) == (1.0, 4.0)


def test_a_chats_first_chunk_is_no_token() -> None:
    role = chunk(role="assistant", content="")
    record = taken(role, chunk(reasoning_content="hm"), chunk(content="a"), chunk(ends="stop"), "[DONE]")
    assert (record.num_generated_tokens, record.first_token_s, record.text) == (2, 2.0, "hma")


def test_tool_calls_are_tokens_and_text_without_their_ids() -> None:
    call = {"id": "random", "function": {"name": "f", "arguments": "{}"}}
    record = taken(chunk(tool_calls=[call]), chunk(ends="tool_calls"), "[DONE]")
    assert (record.num_generated_tokens, record.first_token_s) == (1, 1.0)
    assert json.loads(record.text) == [call["function"]]


def test_text_is_kept_where_it_is_asked_for() -> None:
    assert taken(chunk("a", "stop"), keep_text=False).text == ""


@pytest.mark.parametrize("event", ["{", "[1]", '{"error": {"message": "no"}}', '{"choices": [3]}'])
def test_what_is_no_answer_is_refused(event: str) -> None:
    with pytest.raises(BadAnswer):
        taken(chunk("a"), event)


def test_a_stream_without_choices_is_no_answer() -> None:
    with pytest.raises(BadAnswer, match="no choices"):
        taken(USAGE, "[DONE]")


def test_a_whole_answer() -> None:
    record = RequestRecord("1", "a", 0.0)
    answer = Answer(record, keep_text=True)
    text = {"choices": [{"message": {"content": "hi"}}], "usage": {"completion_tokens": 2}}
    answer.take_whole(json.dumps(text), 3.0)
    assert (record.first_token_s, record.finish_s, record.num_generated_tokens, record.text) == (
        None,
        3,
        2,
        "hi",
    )
    with pytest.raises(BadAnswer, match="no choices"):
        answer.take_whole("{}", 3.0)
