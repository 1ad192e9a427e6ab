"""Ends an event stream, or the wait for a change, when the credential of its client expires."""

import asyncio
import json
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from activities.errors import CredentialRequired
from api.http.problems import named_problem

FAREWELL_S = 5.0
"""How long a client that reads slowly may take for the last event."""

_DETAIL = "the credential has expired while changes were waited for; ask again with a new one"


async def serve_for(seconds: float, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Serves a request for at most so many seconds.

    Then an event stream gets the event ``expired``, without an id, and ends. A request without an answer is refused.

    Each message of the application must be whole events, because the event ``expired`` may follow any of them.

    Args:
        seconds: The time until the credential expires.
        app: Answers the request.
        scope: The request.
        receive: Receives the request's body.
        send: Sends the answer.
    """
    has_begun = is_over = is_stream = False

    async def send_noting(message: Message) -> None:
        nonlocal has_begun, is_over, is_stream
        if message["type"] == "http.response.start":
            has_begun = True
            headers = dict(message["headers"])
            is_stream = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        elif not message.get("more_body", False):
            is_over = True
        await send(message)

    timer = asyncio.timeout(max(0, seconds))
    try:
        async with timer:
            await app(scope, receive, send_noting)
    except TimeoutError:
        if not timer.expired():
            raise
    if not timer.expired() or is_over:
        return
    if not has_begun:
        await named_problem(CredentialRequired(_DETAIL), scope["path"])(scope, receive, send)
        return
    event = b"event: expired\ndata: " + json.dumps({"type": "CredentialRequired", "detail": _DETAIL}).encode() + b"\n\n"
    with suppress(TimeoutError):
        async with asyncio.timeout(FAREWELL_S):
            await send({"type": "http.response.body", "body": event if is_stream else b"", "more_body": False})
