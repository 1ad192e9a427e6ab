"""Serves thumbnails, ``.dzi`` files and tiles from the bucket."""

from starlette.requests import Request
from starlette.responses import Response

from activities.bucket.keys import SheetPart, UploadRef, parse_sheet_path
from activities.bucket.storage import Bucket
from activities.errors import ObjectMissing
from api.http.caching import cacheable
from api.progress.status import Status

FOREVER = "private, max-age=31536000, immutable"
REVALIDATE = "no-cache"

SERVED = {
    SheetPart.TILE: ("image/jpeg", FOREVER),
    SheetPart.DESCRIPTOR: ("application/xml", REVALIDATE),
    SheetPart.THUMBNAIL: ("image/jpeg", REVALIDATE),
}
"""Media type and ``Cache-Control`` of each part of a sheet that clients may read."""


def find_object(ref: UploadRef, path: str) -> tuple[str, str, str]:
    """The key, media type and ``Cache-Control`` of the object that a path below ``/sheets/`` names.

    Raises:
        ObjectMissing: The path names no object that clients may read.
    """
    found = parse_sheet_path(path)
    if found is None or found.part not in SERVED:
        msg = f"no sheet has a {path[:200]!r}"
        raise ObjectMissing(msg)
    return ref.sheets_prefix + path, *SERVED[found.part]


class Tiles:
    """Serves the objects of sheets.

    Args:
        bucket: Where the objects are.
        status: Checks that an upload exists.
    """

    def __init__(self, bucket: Bucket, status: Status) -> None:
        self._bucket = bucket
        self._status = status

    async def respond(self, ref: UploadRef, path: str, request: Request) -> Response:
        """``GET …/sheets/{path}``.

        Raises:
            UploadNotFound: There is no such upload.
            ObjectMissing: The upload has no such object.
            BucketError: The bucket failed.
        """
        await self._status.check(ref)
        key, media_type, cache = find_object(ref, path)
        stored = await self._bucket.get_async(key)
        return cacheable(request, stored.body, etag=stored.info.etag, media_type=media_type, cache_control=cache)
