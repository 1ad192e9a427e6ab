"""Serves thumbnails, ``.dzi`` files, tiles and ``.pmtiles`` from the bucket.

A ``.dzi`` and a tile that is no object is looked for in the sheet's ``.pmtiles``, so that a client need not know the layout.
"""

from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response

from activities.bucket.dzi import parse_tile_name
from activities.bucket.keys import SheetObject, SheetPart, UploadRef, parse_sheet_path
from activities.bucket.pmtiles import MEDIA_TYPE
from activities.bucket.storage import Bucket
from activities.errors import ObjectMissing
from api.http.caching import body_etag, cacheable
from api.http.ranges import ranged
from api.packed import PackedSheets
from api.progress.status import Status

FOREVER = "private, max-age=31536000, immutable"
REVALIDATE = "no-cache"

SERVED = {
    SheetPart.TILE: ("image/jpeg", FOREVER),
    SheetPart.DESCRIPTOR: ("application/xml", REVALIDATE),
    SheetPart.THUMBNAIL: ("image/jpeg", REVALIDATE),
    SheetPart.ARCHIVE: (MEDIA_TYPE, REVALIDATE),
}
"""Media type and ``Cache-Control`` of each part of a sheet that clients may read."""


def find_object(path: str) -> SheetObject:
    """The object that a path below ``/sheets/`` names.

    Raises:
        ObjectMissing: The path names no object that clients may read.
    """
    found = parse_sheet_path(path)
    if found is None or found.part not in SERVED:
        msg = f"no sheet has a {path[:200]!r}"
        raise ObjectMissing(msg)
    return found


class Tiles:
    """Serves the objects of sheets.

    Args:
        bucket: Where the objects are.
        status: Checks that an upload exists.
    """

    def __init__(self, bucket: Bucket, status: Status) -> None:
        self._bucket = bucket
        self._status = status
        self._packed = PackedSheets(bucket)

    async def respond(self, ref: UploadRef, path: str, request: Request) -> Response:
        """``GET …/sheets/{path}``.

        Raises:
            UploadNotFound: There is no such upload.
            ObjectMissing: The upload has no such object.
            DamagedRecord: The ``.pmtiles`` of the sheet cannot be read.
            BucketError: The bucket failed.
            HTTPException: The range that the client asks for begins behind the object's end (416).
        """
        await self._status.check(ref)
        found = find_object(path)
        media_type, cache = SERVED[found.part]
        if found.part is SheetPart.ARCHIVE:
            return await ranged(request, self._bucket, ref.sheets_prefix + path, media_type=media_type, cache_control=cache)
        body, etag = await self._read(ref, path, found)
        return cacheable(request, body, etag=etag, media_type=media_type, cache_control=cache)

    async def _read(self, ref: UploadRef, path: str, found: SheetObject) -> tuple[bytes, str | None]:
        """The object and its ETag: from the ``.pmtiles`` first, if the sheet is known to be packed."""
        archive = ref.archive(found.sheet)
        if self._packed.knows(archive):
            with suppress(ObjectMissing):  # the sheet may be exploded meanwhile
                return await self._unpack(archive, found)
        try:
            stored = await self._bucket.get_async(ref.sheets_prefix + path)
        except ObjectMissing as missing:
            with suppress(ObjectMissing):
                return await self._unpack(archive, found)
            raise missing from None
        return stored.body, stored.info.etag

    async def _unpack(self, archive: str, found: SheetObject) -> tuple[bytes, str]:
        """The object out of the ``.pmtiles``, and its ETag."""
        tile = parse_tile_name(found.tile)
        if tile is not None:
            body = await self._packed.tile(archive, tile)
        elif found.part is SheetPart.DESCRIPTOR:
            body = await self._packed.descriptor(archive)
        else:
            msg = "a .pmtiles has tiles only"
            raise ObjectMissing(msg)
        return body, body_etag(body)
