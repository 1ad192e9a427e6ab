"""``tile_page``, ``upload_page``, ``discard_scratch``: one page of the PDF becomes one sheet in the bucket."""

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import replace
from functools import partial
from itertools import chain, pairwise
from pathlib import Path

from temporalio import activity

from activities.attempt import Attempt, raise_if_stopped
from activities.bucket.dzi import Pyramid
from activities.bucket.keys import UploadRef
from activities.bucket.listing import Listing
from activities.bucket.pmtiles import sheet_metadata
from activities.bucket.records import Layer, Layout, SheetRecord, TileLine, UploadOptions, bounded_notes, tiles_digest, to_json
from activities.bucket.storage import LIST_PAGE, Bucket, ObjectInfo, etag_of
from activities.bucket.store_errors import not_written_error
from activities.errors import BucketError, PageTooLarge, TilesMissing
from activities.host import HostActivities
from activities.interface import DiscardScratch, TiledPage, TilePage, UploadedSheet, UploadPage, host_queue
from activities.render.attempt import RenderAttempt
from activities.render.pack import PackedSheet, tile_lines
from activities.render.tilefile import TileFile, read_layers, read_thumbnail
from activities.threads import turn_of

logger = logging.getLogger(__name__)

MOST_CHUNK_TILES = 32
"""Tiles that a thread writes, at most, before another upload gets its turn."""


class SheetActivities(HostActivities):
    """The activities that make one sheet."""

    @activity.defn
    async def tile_page(self, args: TilePage) -> TiledPage:
        """See ``UploadActivities.tile_page``."""
        attempt = RenderAttempt()
        host, ref = self._host, UploadRef.parse(args.ref)
        with attempt.named_errors():
            _pyramid(args.width, args.height, args.options)
            password = host.passwords.open(args.sealed_password, args.ref)
            record = await attempt.in_thread(lambda _: self._store.record(ref), more_follows=True)
            attempt.step = "waits for room on the scratch"
            async with host.scratch.room(ref, attempt.beat), host.scratch.source(ref, record, host.bucket, attempt) as source:
                page = host.scratch.new_page(ref, args.number)
                attempt.step = "draws the page and cuts it"
                try:
                    rendered = await host.children.tile_page(str(ref), source, args, page, attempt.beat, password, fresh=attempt.is_retry)
                    host.free_render_slot()
                    host.metrics.rendered(rendered.draw_s, rendered.tile_s)
                    attempt.step = "writes the thumbnail"
                    has_thumbnail = await attempt.in_thread(lambda _: self._put_thumbnail(ref, args.number, page), more_follows=True)
                    queue, name = host_queue(host.scratch.host), host.scratch.publish(page)
                    return TiledPage(queue, name, rendered.engines, rendered.notes, rendered.chroma, has_thumbnail, rendered.transform)
                finally:
                    host.scratch.remove(page)

    def _put_thumbnail(self, ref: UploadRef, number: int, page: Path) -> bool:
        """Writes the thumbnail before any tile; returns whether the bucket took it. If not, ``upload_page`` writes it."""
        try:
            self._host.bucket.put(ref.thumbnail(number), read_thumbnail(page))
        except (BucketError, TilesMissing) as error:
            logger.warning("the thumbnail comes later, with the tiles: %s", error)
            return False
        return True

    @activity.defn
    async def upload_page(self, args: UploadPage) -> UploadedSheet:
        """See ``UploadActivities.upload_page``."""
        attempt = Attempt()
        host, turn = self._host, turn_of(UploadRef.parse(args.ref))
        attempt.step = "waits for its turn to write"
        with attempt.named_errors(), host.scratch.claim_page(args.tiled.scratch) as page:
            try:
                sheet: UploadedSheet = await attempt.in_thread(
                    lambda stop: self._upload(args, page, attempt, stop), submit=partial(host.uploads.submit, turn, rank=args.page.number)
                )
            except asyncio.CancelledError:
                if not activity.is_worker_shutdown():
                    host.scratch.remove(page)
                raise
            host.scratch.remove(page)
            return sheet

    @activity.defn
    async def discard_scratch(self, args: DiscardScratch) -> None:
        """See ``UploadActivities.discard_scratch``."""
        await self._host.children.retire(args.ref)
        await asyncio.to_thread(self._host.scratch.discard, UploadRef.parse(args.ref))

    def _upload(self, args: UploadPage, page: Path, attempt: Attempt, stop: threading.Event) -> UploadedSheet:
        metrics, ref, number = self._host.metrics, UploadRef.parse(args.ref), args.page.number
        pyramid = _pyramid(args.page.width, args.page.height, args.options)
        with TileFile(page, pyramid) as tiles:
            with metrics.stage("upload") as writes:
                record, packed, puts = self._put_objects(args, page, pyramid, tiles, attempt, stop)
                writes.bytes = record.bytes
            attempt.step = "commits the sheet"
            with metrics.stage("commit"):
                if packed and not args.options.layout.has_tiles:
                    self._store.commit_packed(ref, number, packed.chunks(), packed.index, packed.size_bytes)
                else:
                    self._host.bucket.sync()
                    self._store.commit(ref, number, pyramid.descriptor().encode())
                committed_at = time.time()
            metrics.count_sheet(record, puts)
            # Layers can be long, and a workflow does not need them.
            return UploadedSheet(**vars(replace(record, layers=())), committed_at=committed_at, attempt=activity.info().attempt)

    def _put_objects(
        self, args: UploadPage, page: Path, pyramid: Pyramid, tiles: TileFile, attempt: Attempt, stop: threading.Event
    ) -> tuple[SheetRecord, PackedSheet | None, int]:
        """Writes all objects of a sheet but the commit marker.

        Returns:
            What ``sheet.json`` says, the sheet as one object if its layout has it, and how many objects are written, the marker among them.
        """
        bucket, ref, number, layout = self._host.bucket, UploadRef.parse(args.ref), args.page.number, args.options.layout
        attempt.step = "looks at what is in the bucket"
        thumbnail, layers = read_thumbnail(page), read_layers(page)
        listing = self._listed(ref, number, pyramid.descriptor().encode())
        puts = 2  # sheet.json and the commit marker
        if not (args.tiled.thumbnail and listing.thumbnail is not None and listing.thumbnail.size == len(thumbnail)):
            bucket.put(ref.thumbnail(number), thumbnail)
            puts += 1
        stored = listing.tiles
        lines = self._put_tiles(args, pyramid, tiles, stored, attempt, stop) if layout.has_tiles else tile_lines(tiles, pyramid)
        if layout.has_tiles:
            puts += sum(not _is_stored(stored.get(name), size, md5) for name, size, md5 in lines) if stored else len(lines)
        record = _sheet_record(args, lines, layers)
        packed = None
        if layout.has_archive:
            packed = PackedSheet(tiles, pyramid, lines, sheet_metadata(record))
            record = replace(record, etag=etag_of(packed.chunks(), packed.size_bytes))
            if listing.archive is not None and listing.archive.size != packed.size_bytes:
                self._store.uncommit(ref, number)
            raise_if_stopped(stop)
            if layout.has_tiles:
                bucket.put_archive(ref.archive(number), packed.chunks(), packed.size_bytes)
                puts += 1
        body = to_json(record)
        attempt.step = "writes the other objects and looks whether all are there"
        bucket.put(ref.sheet_record(number), body)
        raise_if_stopped(stop)
        if not bucket.answers_prove_writes:
            sent = lines if layout.has_tiles else []
            listing = self._listed_at_once(ref, number, [name for name, _, _ in sent])
            _prove(listing, sent, len(thumbnail), len(body))
            if layout is Layout.BOTH and packed is not None:
                _prove_archive(listing, packed.size_bytes)
            raise_if_stopped(stop)
        bucket.delete(listing.surplus(ref, pyramid, layout))  # old tiles, if the sheet had another size
        return record, packed, puts

    def _listed(self, ref: UploadRef, number: int, descriptor: bytes) -> Listing:
        """Lists a sheet's objects in the bucket. If the sheet had another size, its commit marker is removed.

        Tiles that an earlier attempt wrote, or that a repair kept, need not be written again. A new sheet has no such tiles.
        """
        bucket = self._host.bucket
        bucket.remove_unfinished(ref.sheet_prefix(number))  # left by an attempt whose worker was killed
        listing = Listing.fetch(bucket, ref, number)
        marker = listing.descriptor
        if marker is not None and (marker.size != len(descriptor) or bucket.get(marker.key).body != descriptor):
            self._store.uncommit(ref, number)  # first, because the old tiles are removed
        return listing

    def _put_tiles(
        self,
        args: UploadPage,
        pyramid: Pyramid,
        tiles: TileFile,
        stored: Mapping[str, ObjectInfo],
        attempt: Attempt,
        stop: threading.Event,
    ) -> list[TileLine]:
        """Writes the tiles that are not in the bucket already; returns name, size and MD5 of each tile."""
        ref, number = UploadRef.parse(args.ref), args.page.number
        prefix = ref.tiles_prefix(number)
        # The sheets of an upload are sent one after the other, lower numbers first, because then each is ready as early as it can be.
        turn = turn_of(ref, str(number) if args.first else "tiles")
        futures = [
            self._host.threads.submit(turn, _put_tiles, self._host.bucket, prefix, pyramid, tiles, chunk, stored, stop, rank=number)
            for chunk in _chunks(pyramid, self._host.threads.most)
        ]
        lines: list[TileLine] = []
        try:
            for future in futures:
                attempt.step = f"writes the tiles: {len(lines):,} of {pyramid.tile_count:,} are written"
                lines += future.result()
            return lines
        except BaseException:
            stop.set()
            wait([future for future in futures if not future.cancel()])
            raise

    def _listed_at_once(self, ref: UploadRef, number: int, tiles: list[str]) -> Listing:
        """Lists a sheet's objects on an S3 server, all pages at once: the keys that were sent tell where each page begins."""
        prefix = ref.sheet_prefix(number)
        sent = sorted([*(ref.tiles_prefix(number) + name for name in tiles), ref.thumbnail(number), ref.sheet_record(number)])
        pages, turn = pairwise(("", *sent[LIST_PAGE - 1 :: LIST_PAGE], "")), turn_of(ref, str(number))
        listed = self._host.threads.map(turn, lambda page: list(self._host.bucket.objects(prefix, *page)), pages)
        return Listing.of(ref, number, chain.from_iterable(listed))


def _pyramid(width: int, height: int, options: UploadOptions) -> Pyramid:
    """The pyramid of a sheet.

    Raises:
        PageTooLarge: No sheet is so large. ``count_pages`` of an earlier release let such a page pass.
    """
    try:
        return Pyramid(width, height, options.tile_size, options.overlap)
    except ValueError as error:
        raise PageTooLarge(str(error)) from error


def _sheet_record(args: UploadPage, lines: Sequence[TileLine], layers: tuple[Layer, ...]) -> SheetRecord:
    """``sheet.json``, without the ETag of a ``.pmtiles``."""
    return SheetRecord(
        number=args.page.number,
        width=args.page.width,
        height=args.page.height,
        dpi=args.page.dpi,
        scaled=args.page.scaled,
        title=args.page.title,
        tile_size=args.options.tile_size,
        overlap=args.options.overlap,
        quality=args.options.quality,
        tiles=len(lines),
        bytes=sum(size for _, size, _ in lines),
        digest=tiles_digest(lines),
        engines=args.tiled.engines,
        notes=bounded_notes((*args.page.notes, *args.tiled.notes)),
        chroma=args.tiled.chroma,
        layout=args.options.layout,
        transform=args.tiled.transform,
        layers=layers,
    )


def _prove(listing: Listing, lines: Sequence[TileLine], thumbnail_bytes: int, record_bytes: int) -> None:
    """Compares a sheet's objects in the bucket with those that were sent, because the answer to a write does not prove the write.

    Args:
        listing: The sheet's objects in the bucket, listed after the last write.
        lines: Name, size and MD5 of each tile that was sent.
        thumbnail_bytes: Size of the thumbnail.
        record_bytes: Size of ``sheet.json``.

    Raises:
        StorageUnavailable: An object is missing, or is not as it was sent.
    """
    tiles = listing.tiles
    lost = [name for name, size, _ in lines if name not in tiles or tiles[name].size != size]
    # The ETag of an encrypted object (SSE-KMS) looks like an MD5 but is none. So ETags count only if at least one is its tile's MD5.
    md5s = {name for name, _, md5 in lines if name in tiles and _has_md5(tiles[name], md5)}
    if md5s and not lost:
        lost = [name for name, _, _ in lines if name not in md5s]
    if lost:
        raise not_written_error(f"{len(lost):,} of {len(lines):,} tiles of sheet {listing.number:,}, the first of them {lost[0]}")
    for name, info, size in (("thumbnail.jpeg", listing.thumbnail, thumbnail_bytes), ("sheet.json", listing.record, record_bytes)):
        if info is None or info.size != size:
            raise not_written_error(f"{name} of sheet {listing.number:,}")


def _prove_archive(listing: Listing, size_bytes: int) -> None:
    """The same for a ``.pmtiles`` that is not the commit marker."""
    if listing.archive is None or listing.archive.size != size_bytes:
        raise not_written_error(f"sheet-{listing.number}.pmtiles")


def _is_stored(info: ObjectInfo | None, size: int, md5: str) -> bool:
    """Whether an object of the bucket is a tile of this size and MD5."""
    return info is not None and info.size == size and _has_md5(info, md5)


def _has_md5(info: ObjectInfo, md5: str) -> bool:
    return info.plain_etag == md5


def _chunks(pyramid: Pyramid, threads: int) -> Iterator[list[tuple[int, int, int]]]:
    """The tiles in chunks, so many that all threads can work on one sheet."""
    tiles = list(pyramid.tiles())
    size = min(MOST_CHUNK_TILES, 1 + len(tiles) // threads)
    for start in range(0, len(tiles), size):
        yield tiles[start : start + size]


def _put_tiles(
    bucket: Bucket,
    prefix: str,
    pyramid: Pyramid,
    tiles: TileFile,
    chunk: list[tuple[int, int, int]],
    stored: Mapping[str, ObjectInfo],
    stop: threading.Event,
) -> list[TileLine]:
    """Writes the tiles of a chunk that are not in the bucket already; returns name, size and MD5 of each tile of the chunk."""
    lines: list[TileLine] = []

    def missing() -> Iterator[tuple[str, bytes]]:
        hashed, md5 = None, ""
        for place in chunk:
            raise_if_stopped(stop)
            name, body = tiles.tile(*place)
            if body is not hashed:  # neighbours are often the same white tile
                hashed, md5 = body, hashlib.md5(body, usedforsecurity=False).hexdigest()
            lines.append((name, len(body), md5))
            if not _is_stored(stored.get(name), len(body), md5):
                yield prefix + name, body

    bucket.put_all(missing())
    return lines
