"""Answers with an object of the bucket, or with a range of its bytes: https://www.rfc-editor.org/rfc/rfc9110#section-14.

1. One range is answered. Several, and units other than bytes, are answered with the whole object, as the RFC allows.
2. ``If-Range`` counts only with a strong ETag, as objects have no other validator here.
"""

import re
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from activities.bucket.storage import Bucket, Stream
from activities.errors import ObjectMissing
from api.http.caching import has_version

FARTHEST = 1 << 53
"""No object is longer."""

_STRONG_ETAG = re.compile(r'"[!#-~]{0,200}"')
_RANGE = re.compile(r"bytes[ \t]*=[ \t]*([0-9]{0,15})[ \t]*-[ \t]*([0-9]{0,15})", re.IGNORECASE)


async def ranged(request: Request, bucket: Bucket, key: str, *, media_type: str, cache_control: str) -> Response:
    """The object, or the range of it that the request asks for, in constant memory.

    Args:
        request: Its ``Range``, ``If-Range`` and ``If-None-Match`` count.
        bucket: Has the object.
        key: Of the object.
        media_type: The object's media type.
        cache_control: How long the client may use its copy without asking again.

    Raises:
        ObjectMissing: There is no such object.
        BucketError: The bucket failed.
        HTTPException: The range begins behind the object's end (416).
    """
    wanted = _read_range(request.headers.get("range"))
    name = key.rsplit("/", 1)[-1]
    headers = {"Cache-Control": cache_control, "Accept-Ranges": "bytes", "Content-Disposition": f'attachment; filename="{name}"'}
    if request.method == "HEAD":
        info = await bucket.head_async(key)
        headers |= {"ETag": info.etag} if info.etag else {}
        if has_version(request.headers.get("if-none-match"), info.etag):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(headers={**headers, "Content-Length": str(info.size)}, media_type=media_type)
    stream, start, end = await _open(bucket, key, wanted, request.headers.get("if-range"))
    size, etag = stream.info.size, stream.info.etag
    headers |= {"ETag": etag} if etag else {}
    if has_version(request.headers.get("if-none-match"), etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    if end is None:
        return StreamingResponse(stream.chunks, headers={**headers, "Content-Length": str(size)}, media_type=media_type)
    if start >= size:
        detail = f"the range begins at byte {start:,}, the object has {size:,}"
        raise HTTPException(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, detail, {"Content-Range": f"bytes */{size}"})
    end = min(end, size)
    headers |= {"Content-Range": f"bytes {start}-{end - 1}/{size}", "Content-Length": str(end - start)}
    return StreamingResponse(stream.chunks, HTTPStatus.PARTIAL_CONTENT, headers, media_type)


async def _open(bucket: Bucket, key: str, wanted: tuple[int, int] | None, if_range: str | None) -> tuple[Stream, int, int | None]:
    """The bytes, where they begin, and before which byte they end; without an end, they are the whole object."""
    if wanted is not None and (if_range is None or _STRONG_ETAG.fullmatch(if_range)):
        start, end = wanted
        try:
            if start < 0:
                size = (await bucket.head_async(key)).size
                start, end = (max(0, size + start), size) if size else (0, 1)
            return await bucket.stream_async(key, start, end, if_range), start, end
        except ObjectMissing:
            if if_range is None:
                raise
    return await bucket.stream_async(key), 0, None


def _read_range(header: str | None) -> tuple[int, int] | None:
    """The first byte, and the byte after the last; of a suffix, its length as a negative number. None for all bytes."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        return (-int(match[2]), FARTHEST) if int(match[2]) else (FARTHEST, FARTHEST + 1)
    start, end = int(match[1]), int(match[2]) + 1 if match[2] else FARTHEST
    return (start, end) if start < end else None
