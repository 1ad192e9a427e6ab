"""Thumbnails, descriptors and tiles, straight from the bucket."""

import re
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from activities.bucket.dzi import tile_name
from activities.bucket.keys import UploadRef
from activities.bucket.storage import Bucket
from activities.errors import ObjectMissing
from api.status import Status

_NUMBER = "0|[1-9][0-9]{0,8}"
_SHEET = r"sheet-(?P<sheet>[1-9][0-9]{0,8})"
_THUMBNAIL = re.compile(rf"{_SHEET}/thumbnail\.jpeg")
_DESCRIPTOR = re.compile(rf"{_SHEET}/tiles/sheet-(?P=sheet)\.dzi")
_TILE = re.compile(rf"{_SHEET}/tiles/sheet-(?P=sheet)_files/(?P<level>{_NUMBER})/(?P<column>{_NUMBER})_(?P<row>{_NUMBER})\.jpeg")

FOREVER = "private, max-age=31536000, immutable"
REVALIDATE = "no-cache"


def find_object(ref: UploadRef, path: str) -> tuple[str, str, str]:
    """The key, media type and ``Cache-Control`` of what a path below ``/sheets/`` names.

    Raises:
        ObjectMissing: It names nothing that a sheet has.
    """
    if match := _TILE.fullmatch(path):
        name = tile_name(int(match["level"]), int(match["column"]), int(match["row"]))
        return ref.tiles_prefix(int(match["sheet"])) + name, "image/jpeg", FOREVER
    if match := _DESCRIPTOR.fullmatch(path):
        return ref.descriptor(int(match["sheet"])), "application/xml", REVALIDATE
    if match := _THUMBNAIL.fullmatch(path):
        return ref.thumbnail(int(match["sheet"])), "image/jpeg", REVALIDATE
    msg = f"no sheet has a {path[:200]!r}"
    raise ObjectMissing(msg)


class Tiles:
    """Serves the objects of sheets.

    Args:
        bucket: Where they are.
        status: Knows which uploads exist.
    """

    def __init__(self, bucket: Bucket, status: Status) -> None:
        self._bucket = bucket
        self._status = status

    async def respond(self, ref: UploadRef, path: str, request: Request) -> Response:
        """``GET …/sheets/{path}``.

        Raises:
            UploadNotFound: There is no such upload.
            ObjectMissing: It has no such object.
            BucketError: The bucket failed.
        """
        await self._status.check(ref)
        key, media_type, cache = find_object(ref, path)
        stored = await self._bucket.get_async(key)
        headers = {"Cache-Control": cache}
        if stored.info.etag:
            headers["ETag"] = stored.info.etag
        if is_unchanged(request, stored.info.etag):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(stored.body, headers=headers, media_type=media_type)


def is_unchanged(request: Request, etag: str | None) -> bool:
    """Whether the client has this version already (``If-None-Match``, compared weakly as RFC 9110 asks)."""
    asked = request.headers.get("if-none-match")
    if asked is None or etag is None:
        return False
    if asked.strip() == "*":
        return True
    return etag.removeprefix("W/") in (tag.strip().removeprefix("W/") for tag in asked.split(","))
