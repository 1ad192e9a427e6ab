"""Bounds what a client can hold by its connections alone: uvicorn's HTTP protocol, with deadlines and with a limit on connections.

uvicorn waits without end for the rest of a request's head, and for a client that does not read its answer. It also accepts connections
until the process has no file descriptor left. Here

1. a client has some seconds for the head of a request, from the connection or from the end of the previous answer, whatever it sends,
2. a client that reads too little of an answer is cut off,
3. when too many connections are open, the one that has waited longest for a request is closed for a new one,
4. when too many requests are in progress, a further request is refused with 503. Only ``/livez`` is still answered: some connections are
   reserved for it. So a busy process is not taken for a dead one,
5. a client that waits for ``100 Continue`` and gets a final answer instead is told that the connection ends.
"""

import asyncio
import logging
import resource
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import Server, ServerState

from activities.errors import ServerBusy
from api.http.middleware import AboutRequests
from api.http.problems import refusal, status_problem
from api.http.protocol import ProblemProtocol
from api.paths import LIVE

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 16 << 10
"""The longest head of a request. A head of many short lines takes long to read."""
PIECE_BYTES = 4 << 10
LINE_BYTES = 4
"""The colon, the space and the end of a header's line."""
OTHER_DESCRIPTORS = 128
"""File descriptors that are kept for the bucket, for Temporal, for the log, and for connections that were just accepted."""
ACCEPTED_AT_ONCE = 32
"""How many connections asyncio accepts before it closes one that is too many: its ``backlog``."""
QUEUE = 2048
"""How many connections may wait in the kernel to be accepted."""
MIN_CONNECTIONS = 32
SEND_BUFFER_BYTES = 128 << 10
"""What the kernel holds of an answer that its client has not read; the kernel doubles it for its own needs."""
MAX_USER_TIMEOUT_MS = (1 << 31) - 1
RESERVED = 16
"""Connections that stay free for ``/livez``."""


@dataclass(frozen=True)
class ConnectionLimits:
    """The limits of the connections of one process.

    Args:
        connections: How many may be open.
        head_timeout_s: How long a client may take for the head of a request, in seconds.
        read_timeout_s: How long a client may leave the answer's buffer full, in seconds. To empty it, the client must read about 48 KiB.
    """

    connections: int
    head_timeout_s: float = 10.0
    read_timeout_s: float = 60.0


def possible_connections(wanted: int) -> int:
    """How many connections this process can open, at most ``wanted``. Raises the process's own limit on descriptors as far as it may.

    Raises:
        ValueError: The limit of the system is too low to serve.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    possible = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - OTHER_DESCRIPTORS)
    if possible < MIN_CONNECTIONS:
        msg = f"the limit on open files is {soft:,}; at least {MIN_CONNECTIONS + OTHER_DESCRIPTORS:,} is wanted (ulimit -n)"
        raise ValueError(msg)
    return possible


class BoundedProtocol(ProblemProtocol):
    """One connection. ``BoundedServer`` makes a subclass for each server."""

    limits: ConnectionLimits
    waiting: "dict[BoundedProtocol, None]"
    """The connections that wait for a request; the one that has waited longest is first."""

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._served_app: ASGIApp = self.app
        self.app = self._serve
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Begins to wait for a request; closes another connection if there are too many."""
        super().connection_made(transport)
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None:
            # Without the first option, the kernel alone holds megabytes for a client that does not read. The second ends the connection of
            # a client that has vanished without a word.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            timeout_ms = min(round(self.limits.read_timeout_s * 1000), MAX_USER_TIMEOUT_MS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        self._wait_for_request()
        if len(self.connections) > self.limits.connections:
            next(iter(self.waiting))._cut_off("too many connections are open")

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the deadlines."""
        self._end_waiting()
        self._end_read_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes bytes. A head is taken piece by piece: asyncio reads up to 256 KiB at once, and h11 bounds only what it has gathered."""
        while self in self.waiting and len(data) > PIECE_BYTES:
            super().data_received(data[:PIECE_BYTES])
            if self.transport.is_closing():
                return
            data = data[PIECE_BYTES:]
        super().data_received(data)

    def handle_events(self) -> None:
        """Ends the deadline for a request's head, once the head is there."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._end_waiting()

    def on_response_complete(self) -> None:
        """Begins to wait for the next request."""
        self._wait_for_request()  # first, because the next request may be there already
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Begins to wait for the client to read, because the buffer is full."""
        super().pause_writing()
        self._end_read_timer()
        self._read_timer = self.loop.call_later(self.limits.read_timeout_s, self._cut_off, "the client does not read its answer")

    def resume_writing(self) -> None:
        """Ends this wait."""
        self._end_read_timer()
        super().resume_writing()

    def _wait_for_request(self) -> None:
        self._end_waiting()
        self.waiting[self] = None
        self._head_timer = self.loop.call_later(self.limits.head_timeout_s, self._cut_off, "no whole request came in time")

    def _end_waiting(self) -> None:
        self.waiting.pop(self, None)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _cut_off(self, why: str) -> None:
        logger.debug("closes a connection: %s", why, extra={"client": self.client})
        self._end_waiting()
        self.connections.discard(self)  # at once, because connection_lost is called later
        self.transport.abort()  # close() would wait for a client that does not read

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._served_app
        if sum(len(name) + len(value) + LINE_BYTES for name, value in scope["headers"]) > MAX_HEAD_BYTES:  # it came behind another request
            answer = status_problem(HTTPStatus.BAD_REQUEST, scope["path"], {}, f"the head has more than {MAX_HEAD_BYTES:,} bytes")
            answer.headers["Connection"] = "close"
            app = AboutRequests(answer)
        elif len(self.connections) - len(self.waiting) > self.limits.connections - RESERVED and scope["path"] != LIVE:
            answer = refusal(ServerBusy("too many requests are in progress"), scope)
            answer.headers["Connection"] = "close"
            app = AboutRequests(answer)
        await app(scope, receive, self._closing_unless_continued(send))

    def _closing_unless_continued(self, send: Send) -> Send:
        """Says that the connection ends after a final answer to a client that waits for ``100 Continue``.

        Such a client may send the body or not, so nobody could tell the body from the next request.
        https://www.rfc-editor.org/rfc/rfc9110#section-10.1.1
        """

        async def send_answer(message: Message) -> None:
            if message["type"] == "http.response.start" and self.conn.they_are_waiting_for_100_continue:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        return send_answer if self.conn.they_are_waiting_for_100_continue else send


class BoundedServer(Server):
    """uvicorn's server, with the limits.

    Args:
        app: The application.
        limits: What its connections may take.
        graceful_shutdown_s: How long a request may go on after the server was asked to stop, in seconds.
        on_stop: Called when the server was asked to stop, before it waits for the requests that are in progress.
        proxies: Addresses and networks whose ``X-Forwarded-For`` says from which address a request came.
    """

    def __init__(
        self, app: ASGIApp, limits: ConnectionLimits, graceful_shutdown_s: int, on_stop: Callable[[], None], proxies: Sequence[str] = ()
    ) -> None:
        self._on_stop = on_stop
        config = Config(
            app,
            http=type("Protocol", (BoundedProtocol,), {"limits": limits, "waiting": {}}),
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ws="none",
            backlog=ACCEPTED_AT_ONCE,
            forwarded_allow_ips=list(proxies),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=graceful_shutdown_s,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts connections, a few at once."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(QUEUE)  # asyncio has set its backlog for the kernel's queue, too

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the event streams, and waits for all other requests."""
        self._on_stop()
        await super().shutdown(sockets)
