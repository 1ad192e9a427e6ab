"""Reads the whole body of a request, up to a limit."""

import asyncio
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request

READ_LIMIT_S = 10.0


def announced_bytes(request: Request, limit_bytes: int) -> int:
    """The most bytes that the body may have: what its header says, or else the limit.

    Raises:
        HTTPException: They are more than the limit (413).
    """
    text = request.headers.get("content-length", "")
    length = int(text) if text.isascii() and text.isdigit() else limit_bytes
    if length > limit_bytes:
        raise _too_large_error(limit_bytes)
    return max(length, 1)


async def read_body(request: Request, limit_bytes: int) -> bytearray:
    """The body.

    Raises:
        HTTPException: It is too large (413), or did not come within 10 seconds (408).
    """
    body = bytearray()
    try:
        async with asyncio.timeout(READ_LIMIT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit_bytes:
                    raise _too_large_error(limit_bytes)
    except TimeoutError as error:
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, f"the body did not come within {READ_LIMIT_S:g} s") from error
    return body


def _too_large_error(limit_bytes: int) -> HTTPException:
    return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {limit_bytes:,} bytes")
