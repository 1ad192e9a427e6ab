"""Parses the Server-Sent Events of the server."""

import codecs
import re
from collections.abc import Iterator
from typing import NamedTuple


class ServerEvent(NamedTuple):
    """One Server-Sent Event."""

    event: str
    data: str


class EventParser:
    """Reads a ``text/event-stream``, however it is cut into chunks.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    def __init__(self) -> None:
        self.last_event_id = ""
        """The id of the last complete event. A reconnect sends it."""
        self.retry_s: float | None = None
        """The seconds to wait before a reconnect, if the server has asked for a delay."""
        self.restart()

    def restart(self) -> None:
        """Forgets a half-read event: the next bytes come from a new connection."""
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._line, self._after_cr = "", False
        self._begin_event()

    def _begin_event(self) -> None:
        self._event, self._data = "", list[str]()
        self._id = self.last_event_id

    def feed(self, chunk: bytes) -> Iterator[ServerEvent]:
        """Yields the events that ``chunk`` completes."""
        text = self._decoder.decode(chunk)
        if not text:
            return
        # A CR ends its line at once. If the LF of a CRLF comes in the next chunk, it ends no further line.
        after_cr, self._after_cr = self._after_cr, text.endswith("\r")
        if after_cr:
            text = text.removeprefix("\n")
        *lines, self._line = re.split(r"\r\n?|\n", self._line + text)
        for line in lines:
            if line:
                name, _, value = line.partition(":")
                self._field(name, value.removeprefix(" "))
                continue
            self.last_event_id = self._id
            if self._data:
                yield ServerEvent(self._event or "message", "\n".join(self._data))
            self._begin_event()

    def _field(self, name: str, value: str) -> None:
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_s = int(value) / 1000
