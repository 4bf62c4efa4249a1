"""Server-sent events, as far as servers of the OpenAI API use them."""

import codecs
from collections.abc import Iterator


class SseDecoder:
    """Turns the bytes of an event stream, cut anywhere, into the data of its events.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
        self._line = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> Iterator[str]:
        """Yield the data of each event that `piece` completes."""
        # A lone carriage return at the end may be half of a line break: it waits for what follows.
        text = self._line + self._decode(piece)
        held = text.endswith("\r")
        lines = (text[:-1] if held else text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._line = lines.pop() + ("\r" if held else "")
        for line in lines:
            if line:
                self._take(line)
            elif self._data:
                yield "\n".join(self._data)
                self._data = []

    def _take(self, line: str) -> None:
        field, _, value = line.partition(":")
        if field == "data":
            self._data.append(value.removeprefix(" "))
