"""What clients can hold by their connections alone."""

import asyncio
import logging
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from api.http.connections import MIN_CONNECTIONS, OTHER_DESCRIPTORS, RESERVED, ConnectionLimits, possible_connections
from tests.unit.api_server import RawConnection, serving
from tests.waiting import DEADLINE_S

HALF = "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: "
LIVEZ = "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
NO_TIMEOUT_S = 3600
MEGABYTE = 1 << 20


def request(path: str) -> str:
    """The head of a GET."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def make_app() -> tuple[Starlette, asyncio.Event]:
    """An application with a request that waits for an event, and one with a large answer, which sets the event when it ends."""
    opened = asyncio.Event()

    async def live(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def wait(_: Request) -> Response:
        await opened.wait()
        return PlainTextResponse("waited")

    async def megabytes() -> AsyncIterator[bytes]:
        try:
            for _ in range(64):
                yield b"x" * MEGABYTE
        finally:
            opened.set()

    async def large(_: Request) -> Response:
        return StreamingResponse(megabytes())

    return Starlette(routes=[Route("/livez", live), Route("/wait", wait), Route("/large", large)]), opened


async def test_half_sent_requests_make_room_for_a_whole_one() -> None:
    """However many heads are half sent, the one that has waited longest is closed for a new connection."""
    app, _ = make_app()
    async with serving(app, ConnectionLimits(40, head_timeout_s=NO_TIMEOUT_S)) as port:
        half = [await RawConnection.open(port, HALF) for _ in range(60)]
        assert (await (await RawConnection.open(port, LIVEZ)).rest()).startswith(b"HTTP/1.1 200")
        for connection in half[:20]:
            assert await connection.rest() == b""
        await half[-1].send("y\r\n\r\n")
        assert await half[-1].until(b"ok")
        for connection in half:
            connection.close()


@pytest.mark.parametrize("beginning", ["", HALF, request("/livez") + HALF, "POST /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"])
async def test_request_that_does_not_come_whole_is_cut_off(beginning: str) -> None:
    """A silent connection, half a head, half a head after a whole request, and the rest of a body that nobody reads."""
    app, _ = make_app()
    async with serving(app, ConnectionLimits(40, head_timeout_s=0.2)) as port:
        connection = await RawConnection.open(port, beginning)
        await connection.rest()


async def test_trickle_does_not_lengthen_the_deadline() -> None:
    """A byte now and then is no progress."""
    app, _ = make_app()
    async with serving(app, ConnectionLimits(40, head_timeout_s=0.5)) as port:
        connection = await RawConnection.open(port, HALF)
        ended = asyncio.create_task(connection.rest())
        while not ended.done():
            try:
                await connection.send("y")
            except ConnectionError:
                break
            await asyncio.wait({ended}, timeout=0.05)
        assert await ended == b""


async def test_connection_that_is_served_has_no_deadline() -> None:
    """The time of the server, and a second request, do not count."""
    app, opened = make_app()
    async with serving(app, ConnectionLimits(40, head_timeout_s=0.2)) as port:
        connection = await RawConnection.open(port, request("/wait"))
        await asyncio.wait({asyncio.create_task(opened.wait())}, timeout=0.6)
        opened.set()
        assert b"200 OK" in await connection.until(b"waited")
        await connection.send(request("/wait"))
        assert b"200 OK" in await connection.until(b"waited")
        connection.close()


async def test_answer_that_is_not_read_is_cut_off() -> None:
    """The server does not hold a large answer for a client that never reads."""
    app, ended = make_app()
    async with serving(app, ConnectionLimits(40, read_timeout_s=0.2)) as port:
        loop = asyncio.get_running_loop()
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setblocking(False)
            await loop.sock_sendall(connection, request("/large").encode())
            async with asyncio.timeout(DEADLINE_S):
                await ended.wait()
                received = 0
                with suppress(ConnectionError):
                    while data := await loop.sock_recv(connection, MEGABYTE):
                        received += len(data)
    assert received < 64 * MEGABYTE


async def test_busy_server_answers_only_livez() -> None:
    """With as many requests in progress as it may have, it refuses others, and is not taken for dead."""
    app, opened = make_app()
    async with serving(app, ConnectionLimits(40)) as port:
        busy = [await RawConnection.open(port, request("/wait")) for _ in range(40 - RESERVED)]
        refused = await (await RawConnection.open(port, request("/wait"))).rest()
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 5" in refused.lower()
        assert b'"type": "ServerBusy"' in refused
        assert (await (await RawConnection.open(port, LIVEZ)).rest()).startswith(b"HTTP/1.1 200")
        opened.set()
        for connection in busy:
            assert await connection.until(b"waited")
            connection.close()


async def test_head_is_bounded() -> None:
    """A head that never ends is refused at 16 KiB."""
    app, _ = make_app()
    async with serving(app) as port:
        connection = await RawConnection.open(port, HALF + "y" * 20_000)
        assert (await connection.rest()).startswith(b"HTTP/1.1 400")


@pytest.fixture
def soft_limit() -> Iterator[int]:
    """The process's limit on open files; it is set back after the test."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_descriptors_bound_the_connections(soft_limit: int) -> None:
    """The soft limit is raised for them; the hard limit cannot be."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    assert possible_connections(300) == 300
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300 + OTHER_DESCRIPTORS
    assert possible_connections(MIN_CONNECTIONS) == MIN_CONNECTIONS
    if hard != resource.RLIM_INFINITY:
        assert possible_connections(hard) == hard - OTHER_DESCRIPTORS


@pytest.mark.parametrize("pause", [False, True])
async def test_garbage_after_a_request_is_no_error_of_the_server(pause: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Whether the request is answered already, or will be in a moment: a stranger must not fill the log with tracebacks."""
    app, opened = make_app()
    opened.set()
    head = "POST /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(app) as port:
        connection = await RawConnection.open(port, head if pause else head + "no chunk\r\n")
        if pause:
            assert b"405" in await connection.until(b"\r\n\r\n")
            await connection.send("no chunk\r\n")
        answer = await connection.rest()
        assert pause or answer.startswith(b"HTTP/1.1 400")
        assert (await (await RawConnection.open(port, LIVEZ)).rest()).startswith(b"HTTP/1.1 200")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
