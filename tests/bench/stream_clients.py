"""Many clients of event streams in one thread, on raw sockets: cheap enough to leave a machine of two cores to the server."""

import errno
import select
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

CONNECT_AT_ONCE = 100
RECEIVE_BYTES = 64 << 10
"""Memory for more than 128 KiB would be mapped and unmapped at each call, which costs as much CPU as everything else that a client does."""


@dataclass
class Client:
    """One client.

    Args:
        socket: Its connection.
        pieces: The body of its answer, in pieces of whole events.
        buffer: What it has read of an event that is not whole yet.
        events: How many events it has read.
        ended: Whether the server has ended the answer.
        opened: When the connection was begun, and when its first event was read, in seconds of ``time.monotonic``.
    """

    socket: socket.socket
    pieces: list[bytes] = field(default_factory=list)
    buffer: bytes = b""
    events: int = 0
    ended: bool = False
    opened: tuple[float, float | None] = (0.0, None)


@dataclass
class Clients:
    """All clients of one address.

    Args:
        url: The address of the stream.
        headers: Further headers of each request.
        on_events: Called for each piece of whole events: the body of the answer, and the nanoseconds since 1970 when it was read.
    """

    url: str
    headers: str = ""
    on_events: Callable[[bytes, int], None] = lambda *_: None
    clients: dict[int, Client] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    bodies: dict[bytes, tuple[bytes, int, bool]] = field(default_factory=dict)
    """The parsed pieces, because all clients get the same bytes."""

    def __post_init__(self) -> None:
        self.poll = select.epoll()

    def connect(self, count: int, timeout_s: float = 120) -> None:
        """Opens further streams, and returns when each has its first event."""
        for begun in range(0, count, CONNECT_AT_ONCE):
            group = [self.open(timeout_s) for _ in range(min(CONNECT_AT_ONCE, count - begun))]
            self.read_until(lambda group=group: all(client.events or client.ended for client in group), timeout_s)  # type: ignore[misc]

    def open(self, timeout_s: float = 120) -> Client:
        """Opens a further stream, and does not wait for its first event.

        Raises:
            OSError: The server does not take the connection in time.
        """
        target, began = urlsplit(self.url), time.monotonic()
        is_tls = target.scheme == "https"
        connection = socket.create_connection((target.hostname or "", target.port or (443 if is_tls else 80)), timeout=timeout_s)
        if is_tls:
            connection = ssl.create_default_context().wrap_socket(connection, server_hostname=target.hostname)
        path = target.path + (f"?{target.query}" if target.query else "")
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {target.netloc}\r\nAccept: text/event-stream\r\n{self.headers}\r\n".encode())
        connection.setblocking(False)
        client = self.clients[connection.fileno()] = Client(connection, opened=(began, None))
        self.poll.register(connection.fileno(), select.EPOLLIN)
        return client

    def read_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Reads until the condition holds; returns whether it did in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.read(0.05)
        return True

    def read(self, wait_s: float) -> None:
        """Reads what has come, and waits for that at most so long."""
        for number, _ in self.poll.poll(wait_s):
            client = self.clients[number]
            self._read(client)
            while isinstance(client.socket, ssl.SSLSocket) and not client.ended and client.socket.pending():
                self._read(client)

    def _read(self, client: Client) -> None:
        try:
            data = client.socket.recv(RECEIVE_BYTES)
        except OSError as error:
            if error.errno != errno.EAGAIN and not isinstance(error, ssl.SSLWantReadError):
                self._end(client, str(error))
            return
        now = time.time_ns()
        if not data:
            self._end(client, "" if client.ended else "the connection was closed before the end")
            return
        client.buffer += data
        if not client.buffer.endswith(b"\n\r\n") and not client.buffer.endswith(b"0\r\n\r\n"):
            return
        piece, client.buffer = client.buffer, b""
        parsed = self.bodies.get(piece)
        if parsed is None:
            parsed = _parse(piece)
            if not piece.startswith(b"HTTP/"):
                self.bodies[piece] = parsed
            elif not piece.startswith(b"HTTP/1.1 200"):
                self.errors.append(piece.split(b"\r\n")[0].decode())
        body, events, ended = parsed
        if not ended and not body.endswith(b"\n\n"):
            client.buffer = piece
            return
        client.events += events
        if client.opened[1] is None and client.events:
            client.opened = client.opened[0], time.monotonic()
        client.ended = client.ended or ended
        client.pieces.append(body)
        self.on_events(body, now)
        if ended:
            self._end(client, "")

    def _end(self, client: Client, error: str) -> None:
        if error:
            self.errors.append(error)
        client.ended = True
        if client.socket.fileno() >= 0:
            self.poll.unregister(client.socket.fileno())
            client.socket.close()

    @property
    def events(self) -> int:
        """How many events all clients have read."""
        return sum(client.events for client in self.clients.values())

    @property
    def all_ended(self) -> bool:
        """Whether every stream has ended."""
        return all(client.ended for client in self.clients.values())

    def close(self) -> None:
        """Closes all connections."""
        for client in self.clients.values():
            client.socket.close()
        self.poll.close()


def _parse(piece: bytes) -> tuple[bytes, int, bool]:
    """The body in a piece of an answer, the number of its events, and whether the answer ends with it."""
    if piece.startswith(b"HTTP/"):
        piece = piece.partition(b"\r\n\r\n")[2]
    body, ended = b"", False
    while piece:
        size, _, rest = piece.partition(b"\r\n")
        length = int(size, 16)
        body += rest[:length]
        ended = ended or not length
        piece = rest[length + 2 :]
    return body, body.count(b"\ndata: "), ended
