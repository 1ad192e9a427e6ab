"""The smallest applications that stream events, to compare SiteLink's cost of a delivery with theirs.

``/sse-starlette`` is an ``EventSourceResponse`` whose clients each have a queue, as its documentation shows. ``/asgi`` has no library.
Each client gets an event of its own: nothing is encoded for all.
"""

import asyncio
import json
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

SHEET = {"number": 1, "status": "uploading", "title": "A-101 First floor plan", "width": 12600, "height": 9000, "dpi": 300, "version": 0}
STATE = {"status": "processing", "version": 0, "completedPages": 1, "totalPages": 32, "progress": 3, "warning": None, "sheets": [SHEET] * 2}

queues: set[asyncio.Queue[int]] = set()


async def _numbers() -> AsyncIterator[int]:
    queue: asyncio.Queue[int] = asyncio.Queue()
    queues.add(queue)
    try:
        yield 0
        while True:
            yield await queue.get()
    finally:
        queues.discard(queue)


async def _events() -> AsyncIterator[dict[str, str]]:
    async for number in _numbers():
        yield {"id": str(number), "event": "change", "data": json.dumps({**STATE, "version": number})}


class _Stream(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        async for number in _numbers():
            event = f"id: {number}\nevent: change\ndata: {json.dumps({**STATE, 'version': number})}\n\n"
            await send({"type": "http.response.body", "body": event.encode(), "more_body": True})


async def _publish(_: Request) -> Response:
    for queue in queues:
        queue.put_nowait(1)
    return JSONResponse({"clients": len(queues)})


async def _stream(_: Request) -> Response:
    return EventSourceResponse(_events(), sep="\n")


async def _asgi(_: Request) -> Response:
    return _Stream()


app = Starlette(
    routes=[Route("/sse-starlette", _stream), Route("/asgi", _asgi), Route("/publish", _publish, methods=["POST"])],
)
