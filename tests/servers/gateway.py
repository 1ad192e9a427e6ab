"""A backend before the API, as a company has one: it lets in who has a ticket, allows pages of other origins, and may be a bad proxy."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import httpx2
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.waiting import until_async

LONG_POLL_S = 25


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
        tickets: The tickets that let somebody in; None lets everybody in. A test may change it.
        origins: The origins whose pages may read answers.
        holds_streams: Keeps every byte of a stream back, like a proxy that buffers whole answers.
        cut_after: Called for each stream, gives the number of bytes after which the connection breaks; None for no break.
        silent_after: Gives the number of bytes after which a stream falls silent, and stays open.
        waits: Answers ``?after=VERSION&wait=SECONDS`` only when the upload has a newer version, or after that time.
    """

    def __init__(
        self,
        target: str,
        *,
        tickets: Collection[str] | None = None,
        origins: Collection[str] = (),
        holds_streams: bool = False,
        cut_after: Callable[[], int | None] = lambda: None,
        silent_after: Callable[[], int | None] = lambda: None,
        waits: bool = False,
    ) -> None:
        self.tickets = tickets
        self.origins = origins
        self.holds_streams = holds_streams
        self.passed: list[Passed] = []
        self.open_streams = 0
        self.broken = False
        """Set by a test to break all connections."""
        self.expired = False
        """Set by a test to end one stream, at its next bytes, because its ticket has expired."""
        self.url = ""
        self._target = target
        self._cut_after, self._silent_after, self._waits = cut_after, silent_after, waits
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
        origin = request.headers.get("origin", "")
        cors = {"access-control-allow-origin": origin, "vary": "Origin"} if origin in self.origins else {}
        if request.method == "OPTIONS":
            allowed = {"access-control-allow-headers": "SiteLink-Ticket, Authorization, Content-Type", "access-control-max-age": "600"}
            await Response(status_code=204, headers={**cors, **allowed, "access-control-allow-methods": "*"})(scope, receive, send)
            return
        ticket = request.headers.get("sitelink-ticket") or request.query_params.get("ticket")
        is_public = not request.url.path.startswith("/v1/")
        if not is_public and self.tickets is not None and ticket not in self.tickets:
            self._note(request, ticket, 401)
            problem = json.dumps({"type": "Unauthorized", "title": "Unauthorized", "status": 401, "detail": "the ticket has expired"})
            await Response(problem, 401, cors, "application/problem+json")(scope, receive, send)
            return
        with suppress(ClientDisconnect):
            await self._pass_on(request, ticket, cors, send)

    def _note(self, request: Request, ticket: str | None, status: int) -> None:
        self.passed.append(Passed(request.method, request.url.path, request.url.query, ticket, status))

    async def _pass_on(self, request: Request, ticket: str | None, cors: dict[str, str], send: Send) -> None:
        query = request.query_params
        if self._waits and "wait" in query:
            await self._wait_for_newer(request.url.path, int(query["after"]), float(query["wait"]))
        dropped = {"host", "origin", "sec-fetch-site", "sitelink-ticket", "accept-encoding", "connection"}
        headers = [(name, value) for name, value in request.headers.items() if name not in dropped]
        async with self._http.stream(
            request.method,
            request.url.path,
            params={name: value for name, value in query.items() if name not in ("ticket", "wait")},
            headers=headers,
            content=await request.body() or None,
        ) as answer:
            self._note(request, ticket, answer.status_code)
            kept = {
                name: value for name, value in answer.headers.items() if name not in ("transfer-encoding", "connection", "date", "server")
            }
            raw = [(name.encode(), value.encode()) for name, value in {**kept, **cors}.items()]
            start = {"type": "http.response.start", "status": answer.status_code, "headers": raw}
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                await self._stream(request, answer, start, send)
                return
            await send(start)
            await send({"type": "http.response.body", "body": await answer.aread()})

    async def _wait_for_newer(self, path: str, version: int, wait_s: float) -> None:
        async def is_newer() -> bool:
            return bool((await self._http.get(path)).json().get("version") != version)

        with suppress(TimeoutError):
            async with asyncio.timeout(min(wait_s, LONG_POLL_S)):
                await until_async(is_newer)

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
            if self.expired:
                self.expired = False
                await send({"type": "http.response.body", "body": b"event: expired\ndata: {}\n\n"})
                return
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
