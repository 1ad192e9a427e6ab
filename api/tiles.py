"""Thumbnails, descriptors and tiles, straight from the bucket."""

import re

from starlette.requests import Request
from starlette.responses import Response

from activities.bucket.dzi import tile_name
from activities.bucket.keys import UploadRef
from activities.bucket.storage import Bucket
from activities.errors import ObjectMissing
from api.caching import cacheable
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
        return cacheable(request, stored.body, etag=stored.info.etag, media_type=media_type, cache_control=cache)
