"""A connection of two processes on this machine that can be cut: ``python -m tests.servers.link PORT TARGET`` relays TCP.

A cut stops the relay. So nothing gets through, no connection is closed, and new ones are opened without an answer, as in a network that
drops every packet. After the cut what was sent before arrives late.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from deploy.process import Process, free_port

START_LIMIT_S = 60


class Link:
    """The way from one process to a server.

    Args:
        target: Host and port of the server, which may be down.
        log: The file for the output of the relay.
    """

    def __init__(self, target: str, log: Path) -> None:
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        """What the process takes for the server's address."""
        self.process = Process([sys.executable, "-m", "tests.servers.link", str(self._port), target], log=log, environ=os.environ)

    def start(self) -> None:
        """Starts the relay; returns when it listens."""
        self.process.start()
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=5):
                return
            assert self.process.is_running, self.process.tail()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def cut(self) -> None:
        """Lets nothing through any more."""
        freeze(self.process)

    def mend(self) -> None:
        """Ends the cut."""
        thaw(self.process)

    def stop(self) -> None:
        """Ends the relay and its connections."""
        self.process.kill()


def freeze(process: Process) -> None:
    """Stops a process and its children in their tracks, as if their host had no CPU."""
    _send(process, signal.SIGSTOP)


def thaw(process: Process) -> None:
    """Lets a frozen process and its children go on."""
    _send(process, signal.SIGCONT)


def _send(process: Process, number: signal.Signals) -> None:
    assert process.pid is not None
    os.killpg(process.pid, number)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _relay(port: int, host: str, target_port: int) -> None:
    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, target_port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pass_on(reader, far_writer), _pass_on(far_reader, writer))

    server = await asyncio.start_server(connect, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    target_host, _, target = sys.argv[2].rpartition(":")
    asyncio.run(_relay(int(sys.argv[1]), target_host, int(target)))
