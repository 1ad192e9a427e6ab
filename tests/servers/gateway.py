"""A proxy before the API that notes what it passes on, and may be a bad one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import httpx2
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.waiting import until_async


class Cut(Exception):
    """Breaks a connection."""


@dataclass(frozen=True)
class Passed:
    """A request that the gateway has answered."""

    method: str
    path: str
    query: str
    ticket: str | None
    status: int


class Gateway:
    """Passes requests on to the API.

    Args:
        target: The API's address.
        holds_streams: Keeps every byte of a stream back, like a proxy that buffers whole answers.
        cut_after: Called for each stream, gives the number of bytes after which the connection breaks; None for no break.
        silent_after: Gives the number of bytes after which a stream falls silent, and stays open.
        drops_wait: Hides from the API that a client would wait for the next change, so that it answers at once.
    """

    def __init__(
        self,
        target: str,
        *,
        holds_streams: bool = False,
        cut_after: Callable[[], int | None] = lambda: None,
        silent_after: Callable[[], int | None] = lambda: None,
        drops_wait: bool = False,
    ) -> None:
        self.holds_streams = holds_streams
        self.passed: list[Passed] = []
        self.open_streams = 0
        self.broken = False
        """Set by a test to break all connections."""
        self.url = ""
        self._target = target
        self._cut_after, self._silent_after = cut_after, silent_after
        self._drops_wait = drops_wait
        self._http = httpx2.AsyncClient(base_url=target, timeout=None, trust_env=False)

    async def close(self) -> None:
        """Closes the connections to the API."""
        await self._http.aclose()

    def asked(self, ending: str) -> list[Passed]:
        """The GETs of paths with this ending."""
        return [passed for passed in self.passed if passed.method == "GET" and passed.path.endswith(ending)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        if self.broken:
            raise Cut
        with suppress(ClientDisconnect):
            await self._pass_on(request, send)

    async def _pass_on(self, request: Request, send: Send) -> None:
        query = request.query_params
        dropped = {"host", "accept-encoding", "connection"}
        headers = [(name, value) for name, value in request.headers.items() if name not in dropped]
        async with self._http.stream(
            request.method,
            request.url.path,
            params={name: value for name, value in query.items() if name != "wait" or not self._drops_wait},
            headers=headers,
            content=await request.body() or None,
        ) as answer:
            ticket = request.headers.get("sitelink-ticket") or query.get("ticket")
            self.passed.append(Passed(request.method, request.url.path, request.url.query, ticket, answer.status_code))
            kept = {
                name: value for name, value in answer.headers.items() if name not in ("transfer-encoding", "connection", "date", "server")
            }
            raw = [(name.encode(), value.encode()) for name, value in kept.items()]
            start = {"type": "http.response.start", "status": answer.status_code, "headers": raw}
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                await self._stream(request, answer, start, send)
                return
            await send(start)
            await send({"type": "http.response.body", "body": await answer.aread()})

    async def _stream(self, request: Request, answer: httpx2.Response, start: Message, send: Send) -> None:
        self.open_streams += 1
        tasks = {asyncio.create_task(_until_gone(request)), asyncio.create_task(self._send_stream(answer, start, send))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self.open_streams -= 1
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_stream(self, answer: httpx2.Response, start: Message, send: Send) -> None:
        cut_after, silent_after = self._cut_after(), self._silent_after()
        if not self.holds_streams:
            await send(start)
        sent = 0
        held = bytearray()
        async for data in answer.aiter_raw():
            if self.broken:
                raise Cut
            held += data
            if self.holds_streams:
                continue
            limit = next((limit for limit in (cut_after, silent_after) if limit is not None), None)
            piece = bytes(held) if limit is None else bytes(held[: max(0, limit - sent)])
            held.clear()
            sent += len(piece)
            if piece:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            if cut_after is not None and sent >= cut_after:
                raise Cut
        if self.holds_streams:
            await send(start)
        await send({"type": "http.response.body", "body": bytes(held)})


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def serving(app: ASGIApp, port: int = 0) -> AsyncIterator[str]:
    """Serves an application on this machine, on a free port unless one is given; gives its address."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await until_async(lambda: server.started or task.done())
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def serving_gateway(gateway: Gateway) -> AsyncIterator[Gateway]:
    """Serves a gateway."""
    async with serving(gateway) as gateway.url:
        yield gateway
    await gateway.close()
