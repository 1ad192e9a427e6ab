"""``tile_page`` and ``upload_page``: one page of the PDF becomes one sheet in the bucket."""

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

from temporalio import activity

from activities.attempt import BEAT_S, Attempt, check
from activities.document import Host, accepted_upload, read_upload
from activities.dzi import Pyramid, tile_name
from activities.errors import TilesMissing
from activities.interface import DiscardScratch, TiledPage, TilePage, UploadActivities, UploadPage, host_queue
from activities.keys import UploadRef
from activities.records import SheetRecord, tiles_digest, to_json
from activities.storage import Bucket
from activities.tilezip import THUMBNAIL, TILES, TileZip

CHUNK = 32
"""Tiles that one thread writes before another sheet gets its turn."""


class SheetActivities(UploadActivities):
    """What makes one sheet."""

    _uploading = 0

    def __init__(self, host: Host) -> None:
        self._host = host

    @activity.defn
    async def tile_page(self, args: TilePage) -> TiledPage:
        """See ``UploadActivities.tile_page``."""
        attempt = Attempt()
        host, ref = self._host, UploadRef.parse(args.ref)
        with attempt.named_errors():
            while self._uploading >= host.busy_uploads:
                attempt.beat()
                await asyncio.sleep(BEAT_S)
            await host.scratch.wait_for_room(attempt.beat)
            record = await attempt.in_thread(lambda _: read_upload(host.bucket, ref), more_follows=True)
            async with host.scratch.source(ref, record, host.bucket, attempt) as source:
                page = host.scratch.new_page(ref, args.number)
                try:
                    engines = await host.children.tile_page(str(ref), source, args, page, attempt.beat)
                    return TiledPage(host_queue(host.scratch.host), host.scratch.publish(page), engines)
                finally:
                    host.scratch.remove(page)

    @activity.defn
    async def upload_page(self, args: UploadPage) -> SheetRecord:
        """See ``UploadActivities.upload_page``."""
        attempt = Attempt()
        page = self._host.scratch.page(args.tiled.scratch)
        with attempt.named_errors():
            self._uploading += 1
            try:
                record = await attempt.in_thread(lambda stop: self._upload(args, page, stop))
            except asyncio.CancelledError:
                if not activity.is_worker_shutdown():
                    self._host.scratch.remove(page)
                raise
            finally:
                self._uploading -= 1
            self._host.scratch.remove(page)
            return record

    @activity.defn
    async def discard_scratch(self, args: DiscardScratch) -> None:
        """See ``UploadActivities.discard_scratch``."""
        await self._host.children.retire(args.ref)
        await asyncio.to_thread(self._host.scratch.discard, UploadRef.parse(args.ref))

    def _upload(self, args: UploadPage, page: Path, stop: threading.Event) -> SheetRecord:
        bucket, ref, number, options = self._host.bucket, UploadRef.parse(args.ref), args.page.number, args.options
        pyramid = Pyramid(args.page.width, args.page.height, options.tile_size, options.overlap)
        with TileZip(page / TILES) as tiles:
            try:
                thumbnail = (page / THUMBNAIL).read_bytes()
            except FileNotFoundError as error:
                msg = f"no thumbnail in {page.name}"
                raise TilesMissing(msg) from error
            bucket.remove_unfinished(ref.sheet_prefix(number))  # of an attempt whose worker was killed
            bucket.put(ref.thumbnail(number), thumbnail)
            prefix = ref.tiles_prefix(number)
            futures = [self._host.threads.submit(_put_tiles, bucket, prefix, pyramid, tiles, chunk, stop) for chunk in _chunks(pyramid)]
            try:
                lines = [line for future in futures for line in future.result()]
            except BaseException:
                stop.set()
                wait(futures)
                raise
        record = SheetRecord(
            number=number,
            width=args.page.width,
            height=args.page.height,
            dpi=args.page.dpi,
            scaled=args.page.scaled,
            title=args.page.title,
            tile_size=options.tile_size,
            overlap=options.overlap,
            quality=options.quality,
            tiles=len(lines),
            bytes=sum(size for _, size, _ in lines),
            digest=tiles_digest(lines),
            engines=args.tiled.engines,
        )
        bucket.put(ref.sheet_record(number), to_json(record))
        bucket.sync()
        check(stop)
        accepted_upload(bucket, ref)  # a sheet that comes too late for a deletion must not be committed
        bucket.put(ref.descriptor(number), pyramid.descriptor().encode())
        return record


def _chunks(pyramid: Pyramid) -> Iterator[list[tuple[int, int, int]]]:
    tiles = list(pyramid.tiles())
    for start in range(0, len(tiles), CHUNK):
        yield tiles[start : start + CHUNK]


def _put_tiles(
    bucket: Bucket, prefix: str, pyramid: Pyramid, tiles: TileZip, chunk: list[tuple[int, int, int]], stop: threading.Event
) -> list[tuple[str, int, str]]:
    """Writes some tiles; returns name, size and md5 of each."""
    lines = []
    for level, column, row in chunk:
        check(stop)
        name = tile_name(level, column, row)
        body = tiles.read(name) if name in tiles.names else tiles.blank(*pyramid.tile_rectangle(level, column, row)[2:])
        bucket.put(prefix + name, body)
        lines.append((name, len(body), hashlib.md5(body, usedforsecurity=False).hexdigest()))
    return lines
