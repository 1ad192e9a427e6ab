"""Attacks on ``python -m api`` that are meant to use it up, each with small numbers and bounded memory."""

import asyncio
import resource
import socket
from collections.abc import Iterator

import httpx2
import pytest

from tests.integration.test_api import ApiProcess, running
from tests.unit.api_fakes import BASE, PDF
from tests.unit.api_server import RawConnection

NO_TEMPORAL = "127.0.0.1:1"
DESCRIPTORS = 256
MEGABYTE = 1 << 20
ATTACK_S = 3
"""How long an attack sends. The bounds must hold however much arrives in this time."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """An API process without Temporal, with few descriptors and small limits."""
    directory = tmp_path_factory.mktemp("exhaustion") / "api"
    with running(directory, NO_TEMPORAL, SITELINK_MAX_CONNECTIONS="128", SITELINK_UPLOAD_MEMORY_BYTES=str(64 * MEGABYTE)) as process:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        yield process


async def test_half_sent_requests_use_up_no_descriptors(http: httpx2.AsyncClient, api: ApiProcess) -> None:
    """``/livez`` answers while more requests are half sent than the process has descriptors."""
    half = await asyncio.gather(*(RawConnection.open(api.port, "GET /livez HTTP/1.1\r\nX-Half: ") for _ in range(DESCRIPTORS + 50)))
    try:
        for _ in range(3):
            answer = await http.get(f"{api.url}/livez", headers={"Connection": "close"}, timeout=20)
            assert answer.status_code == 200
    finally:
        for connection in half:
            connection.close()


async def attack(port: int, head: str, body: bytes, connections: int) -> list[socket.socket]:
    """Sends a request with half of its body on many connections, which stay open."""
    loop, opened, sending = asyncio.get_running_loop(), [], []
    for _ in range(connections):
        opened.append(socket.create_connection(("127.0.0.1", port)))
        opened[-1].setblocking(False)
        await loop.sock_sendall(opened[-1], head.encode())
        sending.append(asyncio.create_task(loop.sock_sendall(opened[-1], body)))
    _, pending = await asyncio.wait(sending, timeout=ATTACK_S)
    for task in pending:
        task.cancel()
    await asyncio.gather(*sending, return_exceptions=True)
    return opened


async def test_stalled_uploads_take_bounded_memory(http: httpx2.AsyncClient, api: ApiProcess) -> None:
    """Fifty uploads that stop in the middle hold little memory, and another organization can still upload."""
    before = api.peak_memory_bytes
    head = f"POST {BASE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/pdf\r\nContent-Length: {100 * MEGABYTE}\r\n\r\n"
    stalled = await attack(api.port, head, PDF + b"x" * 7 * MEGABYTE, 50)
    try:
        answer = await http.post(api.url + BASE.replace("acme", "other"), content=PDF)
        assert answer.status_code == 202, answer.text
        grown = (api.peak_memory_bytes - before) // MEGABYTE
        assert grown < 100, f"{grown} MiB"
    finally:
        for connection in stalled:
            connection.close()
