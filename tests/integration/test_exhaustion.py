"""Attacks on ``python -m api`` that are meant to use it up, each with small numbers and bounded memory."""

import asyncio
import os
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from api.paths import R2_EVENTS
from api.r2.push import signature
from deploy.temporal import TemporalServer
from tests.integration.test_api import ApiProcess, running
from tests.unit.api_fakes import BASE, PDF
from tests.unit.api_server import RawConnection
from tests.waiting import until_async

NO_TEMPORAL = "127.0.0.1:1"
DESCRIPTORS = 256
MEGABYTE = 1 << 20
SECRET = "a secret of the tests"  # noqa: S105 - not a secret
ATTACK_S = 3
"""How long an attack sends. The bounds must hold however much arrives in this time."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """An API process without Temporal, with few descriptors and small limits."""
    directory = tmp_path_factory.mktemp("exhaustion") / "api"
    with running(
        directory,
        NO_TEMPORAL,
        SITELINK_MAX_CONNECTIONS="128",
        SITELINK_UPLOAD_MEMORY_BYTES=str(64 * MEGABYTE),
        SITELINK_EVENTS_SECRET=SECRET,
    ) as process:
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


def memory_now(api: ApiProcess) -> int:
    """The bytes of memory of a process, from which its peak begins again; without root, its peak so far."""
    if os.geteuid() == 0:
        Path(f"/proc/{api.pid}/clear_refs").write_text("5")  # https://man7.org/linux/man-pages/man5/proc_pid_clear_refs.5.html
    return api.peak_memory_bytes


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
    before = memory_now(api)
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


@pytest.mark.parametrize("signed", ["", f"SiteLink-Signature: {'0' * 64}\r\n"])
async def test_unsigned_pushes_take_bounded_memory(http: httpx2.AsyncClient, api: ApiProcess, signed: str) -> None:
    """Without a signature nothing is read, and with a wrong one only a few bodies are. A signed message is read when they have ended."""
    before = memory_now(api)
    head = (
        f"POST {R2_EVENTS} HTTP/1.1\r\nHost: a\r\nSiteLink-Timestamp: {int(time.time())}\r\n{signed}Content-Length: {16 * MEGABYTE}\r\n\r\n"
    )
    pushes = await attack(api.port, head, b"x" * (16 * MEGABYTE - 1), 30)
    grown = (api.peak_memory_bytes - before) // MEGABYTE
    for connection in pushes:
        connection.close()
    assert grown < 120, f"{grown} MiB"
    body, now = b'{"messages":[]}', str(int(time.time()))
    headers = {"SiteLink-Timestamp": now, "SiteLink-Signature": signature(SECRET, now, body)}
    answer = await http.post(api.url + R2_EVENTS, content=body, headers=headers)
    assert answer.json() == {"acks": [], "retries": []}


async def test_unfinished_uploads_are_counted_by_temporal(
    http: httpx2.AsyncClient, tmp_path: Path, temporal_server: TemporalServer, temporal: Client
) -> None:
    """Temporal's visibility counts the open runs of the organization, and a run that has ended makes room."""
    uploads = BASE.replace("acme", "quota")
    with running(tmp_path / "api", temporal_server.address, SITELINK_MAX_OPEN_UPLOADS="1") as api:
        first = await http.post(api.url + uploads, content=PDF)
        assert first.status_code == 202

        async def send_status() -> int:
            answer = await http.post(api.url + uploads, content=PDF)
            if answer.status_code == 202:
                accepted.append(UploadRef.parse(answer.json()["ref"]))
            return answer.status_code

        async def refused() -> bool:
            return await send_status() == 429

        async def taken() -> bool:
            return await send_status() == 202

        accepted = [UploadRef.parse(first.json()["ref"])]
        await until_async(refused)  # visibility is some milliseconds late
        while accepted:
            await temporal.get_workflow_handle(accepted.pop().workflow_id).terminate()
        await until_async(taken)
        while accepted:
            await temporal.get_workflow_handle(accepted.pop().workflow_id).terminate()
