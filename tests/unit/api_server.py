"""The application on a real socket, in the event loop of the test."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette

from api.http.connections import BoundedServer, ConnectionLimits
from tests.waiting import DEADLINE_S


@asynccontextmanager
async def serving(app: Starlette, limits: ConnectionLimits | None = None, proxies: Sequence[str] = ()) -> AsyncIterator[int]:
    """Serves the application as ``python -m api`` does; gives the port."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        on_stop = getattr(app.state, "stop", lambda: None)
        server = BoundedServer(app, limits or ConnectionLimits(100), graceful_shutdown_s=1, on_stop=on_stop, proxies=proxies)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        yield listener.getsockname()[1]
        server.should_exit = True
        async with asyncio.timeout(DEADLINE_S):
            await task


class RawConnection:
    """A connection on which a test writes and reads bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int, beginning: str | bytes = b"") -> "RawConnection":
        """Connects to a port of this machine, and sends the first bytes."""
        connection = cls(*await asyncio.open_connection("127.0.0.1", port))
        await connection.send(beginning)
        return connection

    async def send(self, data: str | bytes) -> None:
        """Sends bytes, without waiting for an answer."""
        self._writer.write(data.encode() if isinstance(data, str) else data)
        await self._writer.drain()

    async def rest(self) -> bytes:
        """Everything that comes until the server closes the connection, which is then closed here, too."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self._reader.read()
            except ConnectionError:
                return b""
            finally:
                self.close()

    async def until(self, part: bytes) -> bytes:
        """What comes, up to and with ``part``."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._reader.readuntil(part)

    async def exactly(self, size_bytes: int) -> bytes:
        """The next bytes."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._reader.readexactly(size_bytes)

    def close(self) -> None:
        """Closes the connection."""
        self._writer.transport.abort()
