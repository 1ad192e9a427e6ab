"""Whole sheets in a bucket, as ``upload_page`` leaves them, made by arithmetic and Pillow."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace

from PIL import Image

from activities.bucket.dzi import Pyramid, tile_name
from activities.bucket.keys import UploadRef
from activities.bucket.pmtiles import plan_archive, sheet_metadata
from activities.bucket.records import (
    Layout,
    SheetRecord,
    SheetState,
    SheetStatus,
    Snapshot,
    UploadOptions,
    UploadRecord,
    UploadStatus,
    tiles_digest,
    to_json,
)
from activities.bucket.storage import Bucket, ObjectInfo, StoredObject
from activities.errors import ObjectMissing

REF = UploadRef("acme", "tower", "a1", "0198c0de-0000-7000-8000-000000000001")
OPTIONS = UploadOptions(tile_size=128)
PYRAMID = Pyramid(300, 200, OPTIONS.tile_size, OPTIONS.overlap)
NAMES = [tile_name(*tile) for tile in PYRAMID.tiles()]
AT = "2026-01-31T09:30:00.000Z"


class Md5Bucket(Bucket):
    """A directory whose ETags are MD5s, like those of S3 and R2."""

    def objects(self, prefix: str, after: str = "", last: str = "") -> Iterator[ObjectInfo]:
        """Lists all objects, each with its MD5."""
        for info in super().objects(prefix, after, last):
            yield self.get(info.key).info

    def get_range(self, key: str, start: int, end: int, etag: str | None = None) -> StoredObject:
        """Reads a part of an object, with the MD5 of the whole."""
        stored = self.get(key)
        if etag not in (None, stored.info.etag):
            raise ObjectMissing(key)
        return replace(stored, body=stored.body[start:end])

    def get(self, key: str) -> StoredObject:
        """Reads an object, with its MD5."""
        stored = super().get(key)
        return replace(stored, info=replace(stored.info, etag=f'"{etag(stored.body)}"'))


def etag(body: bytes) -> str:
    """The MD5 of the body, as an ETag."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def jpeg(width: int, height: int, shade: int = 200) -> bytes:
    """A JPEG of one shade of grey."""
    target = io.BytesIO()
    Image.new("RGB", (width, height), (shade, shade, shade)).save(target, "JPEG", quality=85)
    return target.getvalue()


def put_sheet(bucket: Bucket, number: int, ref: UploadRef = REF, layout: Layout = Layout.EXPLODED) -> SheetState:
    """Writes a whole sheet; returns its state in the progress."""
    bodies = [jpeg(*PYRAMID.tile_rectangle(*tile)[2:], shade=(50 * number + column) % 256) for column, tile in enumerate(PYRAMID.tiles())]
    lines = [(tile_name(*tile), len(body), etag(body)) for tile, body in zip(PYRAMID.tiles(), bodies, strict=True)]
    bucket.put(ref.thumbnail(number), jpeg(150, 100))
    if layout.has_tiles:
        for (name, _, _), body in zip(lines, bodies, strict=True):
            bucket.put(ref.tiles_prefix(number) + name, body)
    size_bytes = sum(size for _, size, _ in lines)
    record = SheetRecord(
        number=number,
        width=PYRAMID.width,
        height=PYRAMID.height,
        dpi=300,
        scaled=False,
        title=None,
        tile_size=OPTIONS.tile_size,
        overlap=OPTIONS.overlap,
        quality=OPTIONS.quality,
        tiles=len(lines),
        bytes=size_bytes,
        digest=tiles_digest(lines),
        engines={},
        layout=layout,
    )
    if layout.has_archive:
        archive = packed(bodies, record)
        record = replace(record, etag=etag(archive))
        bucket.put(ref.archive(number), archive)
    bucket.put(ref.sheet_record(number), to_json(record))
    if layout.has_tiles:
        bucket.put(ref.descriptor(number), PYRAMID.descriptor().encode())
    return SheetState(number, SheetStatus.READY, 1, None, PYRAMID.width, PYRAMID.height, 300, False, len(lines), size_bytes)


def packed(bodies: Sequence[bytes], record: SheetRecord) -> bytes:
    """The ``.pmtiles`` of a sheet with these tiles, in the order of the pyramid."""
    plan = plan_archive([(tile, body, len(body)) for tile, body in zip(PYRAMID.tiles(), bodies, strict=True)], sheet_metadata(record))
    return plan.index + b"".join(plan.contents)


def accept(bucket: Bucket, ref: UploadRef = REF, deleted_at: str | None = None, layout: Layout = Layout.EXPLODED) -> None:
    """Writes ``upload.json``."""
    bucket.put(ref.record, to_json(UploadRecord("plan.pdf", 9, "0" * 64, replace(OPTIONS, layout=layout), AT, deleted_at)))


def progress(*sheets: SheetState, status: UploadStatus = UploadStatus.COMPLETE) -> Snapshot:
    """A progress with these sheets."""
    ready = sum(sheet.status is SheetStatus.READY for sheet in sheets)
    return Snapshot(status, 9, AT, ready, len(sheets), 100 * ready // max(1, len(sheets)), AT, AT, sheets=sheets)


def put_upload(bucket: Bucket, sheets: int = 2, layout: Layout = Layout.EXPLODED) -> Snapshot:
    """Writes a complete upload; returns its manifest."""
    accept(bucket, layout=layout)
    manifest = progress(*(put_sheet(bucket, number, layout=layout) for number in range(1, sheets + 1)))
    bucket.put(REF.manifest, to_json(manifest))
    return manifest
