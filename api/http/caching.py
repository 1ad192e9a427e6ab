"""Answers that a client may keep: a body with its ETag, or a 304 without a body."""

from hashlib import sha256
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response


def cacheable(request: Request, body: bytes, *, etag: str | None, media_type: str, cache_control: str) -> Response:
    """The body with its ETag; 304 without a body when the client already has this version.

    Args:
        request: Its ``If-None-Match`` lists the versions that the client has.
        body: The bytes to send, unless the client has them.
        etag: The body's ETag, with its quotes; None when the bucket gave no ETag.
        media_type: The body's media type.
        cache_control: How long the client may use its copy without asking again.
    """
    headers = {"Cache-Control": cache_control, **({"ETag": etag} if etag else {})}
    if has_version(request.headers.get("if-none-match"), etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(body, headers=headers, media_type=media_type)


def body_etag(body: bytes) -> str:
    """A strong ETag: the digest of the body."""
    return f'"{sha256(body).hexdigest()[:32]}"'


def has_version(if_none_match: str | None, etag: str | None) -> bool:
    """Whether the header lists the ETag, by weak comparison: https://www.rfc-editor.org/rfc/rfc9110#section-13.1.2."""
    if if_none_match is None or not etag:
        return False
    if if_none_match.strip() == "*":
        return True
    return etag.removeprefix("W/") in (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
