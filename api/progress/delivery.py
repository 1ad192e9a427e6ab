"""Brings events to clients: one pass writes to all clients that watch the same.

sse-starlette's ``EventSourceResponse`` has four tasks for a client and a timer for each event. Here a client has the one task of its
request, which waits for the client to go away, and an event takes no task and no timer. Only a client that does not read as fast as
events come gets a task, until it has read. The costs of both are in the table of ``tests/bench/bench_watchers.py``.

A stream keeps no queue. It asks its source for the next event when the client can take it, so a slow client gets fewer and larger events.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from sse_starlette import ServerSentEvent
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from activities.logs import set_log_context
from api.http.eager import run_now

logger = logging.getLogger(__name__)

PING_S = 15
RETRY_MS = 1000
PIECE_BYTES = 32 << 10
"""An event goes to the server in pieces of this size, so that a client that does not read holds one piece and not a whole snapshot."""
TURN = 50
"""After so many clients, a pass lets other requests have their turn."""
GATHERING_S = 0.01
"""The longest time in which changes are gathered after a pass. It is shorter where a pass takes less time: one client waits for nothing."""

HEADERS = {
    "Cache-Control": "no-store, no-transform",
    "Connection": "keep-alive",
    "Content-Type": "text/event-stream; charset=utf-8",
    "X-Accel-Buffering": "no",
}


def encode_event(name: str, event_id: str, data: bytes) -> bytes:
    """One event, as it is sent."""
    return ServerSentEvent(data.decode(), event=name, id=event_id, sep="\n").encode()


_PING = ServerSentEvent(comment="ping", sep="\n").encode()
_RETRY = f"retry: {RETRY_MS}\n".encode()


class Source(Protocol):
    """Gives the next event for one client."""

    is_over: bool
    """Whether no event follows."""

    def take(self) -> bytes | None:
        """The event that brings the client to the current state; None while it has this state."""


OnDelivered = Callable[[float, Sequence[float]], None]
"""Gets the seconds that have passed since a change was made, and since each sheet in it was committed. Clocks may differ."""


class Audience:
    """The clients that watch the same. ``notify`` says that it has changed.

    The first change is sent at once. The changes that come while it is being sent, and shortly after, are sent together.

    Args:
        on_delivered: Called after a pass that has sent a change.
    """

    def __init__(self, on_delivered: OnDelivered = lambda *_: None) -> None:
        self._on_delivered = on_delivered
        self._changed_at: float | None = None
        self._committed: list[float] = []
        self._streams: dict[EventStream, None] = {}
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def notify(self) -> None:
        """Sends the news to all clients soon."""
        self._news.set()

    def take_times(self, changed_at: float, committed: Sequence[float]) -> None:
        """Says when the change was made that the next pass sends, and when its sheets were committed, in seconds since 1970.

        Of several changes the first counts. A change that nobody is waiting for is not measured.
        """
        if self._streams:
            self._changed_at = self._changed_at or changed_at
            self._committed += committed

    def add(self, stream: "EventStream") -> None:
        """Sends news to a client from now on."""
        self._streams[stream] = None
        if self._task is None:
            self._task = asyncio.create_task(self._deliver())

    def discard(self, stream: "EventStream") -> None:
        """Sends a client no more news. When the last client has gone, nothing runs."""
        self._streams.pop(stream, None)
        if not self._streams and self._task is not None:
            self._task.cancel()
            self._task = None
            self._changed_at, self._committed = None, []

    async def _deliver(self) -> None:
        set_log_context(None)  # it serves many requests, not only the first one
        loop = asyncio.get_running_loop()
        while True:
            await self._news.wait()
            self._news.clear()
            began = loop.time()
            changed_at, committed = self._changed_at, self._committed
            self._changed_at, self._committed = None, []
            for index, stream in enumerate(list(self._streams), 1):
                stream.push()
                if index % TURN == 0:
                    await asyncio.sleep(0)
            if changed_at is not None:
                now = time.time()
                self._on_delivered(now - changed_at, [now - moment for moment in committed])
            await asyncio.sleep(min(loop.time() - began, GATHERING_S))


class Heart:
    """Sends a comment to every stream of this process, every 15 seconds. The streams are not served at once, but as they were opened."""

    def __init__(self) -> None:
        self._streams: dict[EventStream, float] = {}
        """When each stream is due: the first is due first, because all wait equally long."""
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, stream: "EventStream") -> None:
        """Keeps a stream alive from now on."""
        self._streams[stream] = asyncio.get_running_loop().time() + PING_S
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._beat())
        if self._stopped:
            stream.end()

    def discard(self, stream: "EventStream") -> None:
        """Leaves a stream alone."""
        self._streams.pop(stream, None)

    async def _beat(self) -> None:
        set_log_context(None)
        loop = asyncio.get_running_loop()
        while self._streams:
            stream, due = next(iter(self._streams.items()))
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
                continue
            del self._streams[stream]
            self._streams[stream] = loop.time() + PING_S
            stream.ping()
            await asyncio.sleep(0)

    def stop(self) -> None:
        """Ends every stream, and each that is opened later; its client comes back, to another process."""
        self._stopped = True
        for stream in list(self._streams):
            stream.end()

    async def close(self) -> None:
        """Ends the comments."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


class EventStream(Response):
    """The answer to one client.

    Args:
        source: What the client is to get.
        audience: Tells when there is something.
        heart: Keeps the stream alive.
        release: Called when the stream ends, even if it ends before it began.
    """

    def __init__(self, source: Source, audience: Audience, heart: Heart, release: Callable[[], None]) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(HEADERS)
        self._source = source
        self._audience = audience
        self._heart = heart
        self._release = release
        self._has_begun = False
        self._ends = False
        """Whether the stream ends after the event that is being sent."""
        self._has_ended = False
        self._request: asyncio.Task[object] | None = None
        self._sending: asyncio.Task[None] | None = None
        """Sends to a client that does not read as fast as events come."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves the stream until its end, or until the client goes away."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            self._send = send
            self._request = asyncio.current_task()
            self._audience.add(self)
            self._heart.add(self)
            self.push()
            if not self._has_begun:
                self._run(self._send_event, b"\n")  # there is no event yet; this shows the client that it is connected
            while (await receive())["type"] != "http.disconnect":  # this also comes when the answer has ended
                pass
        finally:
            self._has_ended = True
            self._audience.discard(self)
            self._heart.discard(self)
            await self._stop_sending()
            self._release()

    def push(self) -> None:
        """Sends what the client lacks. A client that is still taking an event gets it afterwards."""
        self._run(self._send_news)

    def ping(self) -> None:
        """Sends a comment, unless the client is still taking an event."""
        self._run(self._send_event, _PING)

    def end(self) -> None:
        """Ends the stream after the event that is being sent."""
        self._ends = True
        self.push()

    def _run(self, step: Callable[..., Coroutine[Any, None, None]], *args: bytes) -> None:
        if self._has_ended or self._sending is not None:
            return
        try:
            self._sending = run_now(step(*args))
        except Exception as error:  # noqa: BLE001 - it ends this stream, and no other
            self._fail(error)
        if self._sending is not None:
            self._sending.add_done_callback(self._end_sending)

    def _end_sending(self, task: asyncio.Task[None]) -> None:
        self._sending = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)
        else:
            self.push()  # what has come meanwhile

    def _fail(self, error: BaseException) -> None:
        logger.error("an event stream failed", exc_info=error)
        self._has_ended = True
        if self._request is not None:
            self._request.cancel()

    async def _send_news(self) -> None:
        while not self._ends and (event := self._source.take()) is not None:
            await self._send_event(event)
        if self._ends or self._source.is_over:
            self._has_ended = True
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_event(self, event: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            event = _RETRY + event
        if len(event) <= PIECE_BYTES:
            await self._send({"type": "http.response.body", "body": event, "more_body": True})
            return
        for start in range(0, len(event), PIECE_BYTES):
            await self._send({"type": "http.response.body", "body": event[start : start + PIECE_BYTES], "more_body": True})

    async def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
