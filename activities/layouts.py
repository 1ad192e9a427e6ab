"""Converts one sheet in the bucket to another layout, without its PDF.

``sheet.json`` says how the sheet lies in the bucket, and so which object is its commit marker. The objects of the new layout are written
while it names the earlier one, and those of the earlier one are removed when it names the new one. So the sheet has a marker at each
moment, and a conversion that was killed begins again, whatever it had done.
"""

import hashlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from activities.attempt import raise_if_stopped
from activities.bucket.dzi import Pyramid, tile_name
from activities.bucket.keys import UploadRef
from activities.bucket.listing import Listing
from activities.bucket.packed import read_packed, read_places
from activities.bucket.pmtiles import plan_archive, sheet_metadata
from activities.bucket.records import Layout, SheetRecord, TileLine, tiles_digest, to_json
from activities.bucket.storage import Bucket, etag_of
from activities.bucket.store_errors import not_written_error
from activities.bucket.uploads import UploadStore, marker
from activities.errors import DamagedRecord, ObjectMissing, SheetAltered, UnreadableRecord, UploadBusy
from activities.interface import ConvertedSheet
from activities.threads import FairThreads, turn_of

CHUNK_TILES = 32
"""Tiles that a thread reads or writes before another sheet gets its turn."""
CHUNK_BYTES = 1 << 20


class Contents(AbstractContextManager["Contents"]):
    """The different tiles of a sheet, in a file without a name: it is gone when this process is.

    Args:
        directory: Where the file takes its room; None for the system's directory.
    """

    def __init__(self, directory: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed by __exit__
        self._mutex = threading.Lock()
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0

    def __exit__(self, *_: object) -> None:
        """Removes the file."""
        self._file.close()

    def add(self, body: bytes) -> str:
        """Keeps a tile; returns its MD5."""
        md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
        with self._mutex:
            if md5 not in self._places:
                self._file.seek(self._end)
                self._file.write(body)
                self._places[md5] = (self._end, len(body))
                self._end += len(body)
        return md5

    def read(self, md5: str) -> bytes:
        """The tile with this MD5."""
        offset, size = self._places[md5]
        with self._mutex:
            self._file.seek(offset)
            return self._file.read(size)


class SheetConversion:
    """The conversion of one sheet. Its methods block.

    Args:
        bucket: Has the sheet.
        threads: Make the requests for tiles.
        ref: The upload.
        number: 1-based.
        layout: The layout that the sheet gets, ``exploded`` or ``packed``.
        directory: Has room for the tiles of the sheet; default: the system's directory of temporary files.
    """

    def __init__(
        self, bucket: Bucket, threads: FairThreads, ref: UploadRef, number: int, layout: Layout, directory: Path | None = None
    ) -> None:
        self._bucket = bucket
        self._threads = threads
        self._ref = ref
        self._number = number
        self._layout = layout
        self._directory = directory
        self._store = UploadStore(bucket)
        self.is_written = False
        """Whether ``sheet.json`` names the new layout, and objects of the earlier one are still there."""

    def write(self, stop: threading.Event) -> ConvertedSheet:
        """Writes the objects of the new layout, proves them, and names it in ``sheet.json``.

        Raises:
            UploadNotFound: The upload is marked deleted.
            BucketError: The bucket failed.
        """
        self._store.accepted(self._ref)
        try:
            record = self._store.committed(self._ref, self._number)
            if record is not None:
                self._write(record, stop)
        except (SheetAltered, UnreadableRecord) as error:
            return ConvertedSheet(reason=error.type, detail=str(error)[:500])
        return ConvertedSheet(converted=record is not None)

    def remove_earlier(self, stop: threading.Event) -> ConvertedSheet:
        """Proves the sheet once more, and removes the objects of the earlier layout.

        Raises:
            UploadBusy: A run has made the sheet anew.
            UploadNotFound: The upload is marked deleted.
            BucketError: The bucket failed.
        """
        record = self._store.committed(self._ref, self._number)
        if not record or record.layout is not self._layout:
            msg = f"sheet {self._number:,} was made anew meanwhile"
            raise UploadBusy(msg)
        try:
            self._prove(record, stop)
        except SheetAltered as error:
            raise not_written_error(f"sheet {self._number:,} as {self._layout}") from error
        raise_if_stopped(stop)
        self._store.accepted(self._ref)
        self._bucket.delete(self._earlier_keys())
        self._bucket.remove_empty_directories(self._ref.tiles_prefix(self._number))
        return ConvertedSheet(converted=True)

    def _write(self, record: SheetRecord, stop: threading.Event) -> None:
        if record.layout is self._layout and not self._earlier_keys():
            return
        if not self._is_whole(record, stop):
            with Contents(self._directory) as contents:
                earlier = Layout.EXPLODED if self._layout is Layout.PACKED else Layout.PACKED
                lines = self._read(earlier, record, contents, stop)
                raise_if_stopped(stop)
                record = (self._pack if self._layout is Layout.PACKED else self._unpack)(record, lines, contents, stop)
        if record.layout is not self._layout:
            record = replace(record, layout=self._layout, etag=record.etag if self._layout.has_archive else None)
            self._bucket.sync()
            self._bucket.put_seen(self._ref.sheet_record(self._number), to_json(record))
        self._bucket.sync()
        self.is_written = True

    def _is_whole(self, record: SheetRecord, stop: threading.Event) -> bool:
        """Whether the objects of the new layout are there already: the sheet has both layouts, or an earlier attempt was ended."""
        if record.layout is not self._layout and record.layout is not Layout.BOTH:
            return False
        try:
            self._prove(record, stop)
            self._bucket.head(marker(self._ref, self._number, self._layout))
        except (SheetAltered, ObjectMissing):
            return False
        return True

    def _earlier_keys(self) -> list[str]:
        """The keys of the objects that only the earlier layout has."""
        listing = Listing.fetch(self._bucket, self._ref, self._number)
        earlier = (listing.descriptor, *listing.tiles.values()) if self._layout is Layout.PACKED else (listing.archive,)
        return [info.key for info in earlier if info is not None]

    # ------------------------------------------------------------------ writing

    def _pack(self, record: SheetRecord, lines: Sequence[TileLine], contents: Contents, stop: threading.Event) -> SheetRecord:
        tiles = ((place, md5, size) for place, (_, size, md5) in zip(_pyramid(record).tiles(), lines, strict=True))
        archive = plan_archive(tiles, sheet_metadata(record))

        def chunks() -> Iterator[bytes]:
            chunk = bytearray(archive.index)
            for md5 in archive.contents:
                if len(chunk) >= CHUNK_BYTES:
                    raise_if_stopped(stop)
                    yield bytes(chunk)
                    chunk.clear()
                chunk += contents.read(md5)
            yield bytes(chunk)

        record = replace(record, etag=etag_of(chunks(), archive.size_bytes))
        self._store.commit_packed(self._ref, self._number, chunks(), archive.index, archive.size_bytes)
        self._prove(record, stop)
        return record

    def _unpack(self, record: SheetRecord, lines: Sequence[TileLine], contents: Contents, stop: threading.Event) -> SheetRecord:
        stored = Listing.fetch(self._bucket, self._ref, self._number).tiles
        prefix = self._ref.tiles_prefix(self._number)

        def put(chunk: Sequence[TileLine]) -> None:
            for name, size, md5 in chunk:
                raise_if_stopped(stop)
                info = stored.get(name)
                if info is None or (info.size, info.plain_etag) != (size, md5):
                    self._bucket.put(prefix + name, contents.read(md5))

        self._for_all(put, lines)
        self._bucket.sync()
        self._prove(record, stop)
        self._store.commit(self._ref, self._number, _pyramid(record).descriptor().encode())
        return record

    # ------------------------------------------------------------------ reading

    def _prove(self, record: SheetRecord, stop: threading.Event) -> None:
        """Proves the tiles in the new layout by the digest in ``sheet.json``.

        Raises:
            SheetAltered: They are not those of ``sheet.json``.
        """
        if self._layout is Layout.PACKED and record.etag is not None:
            try:
                if self._bucket.head(self._ref.archive(self._number)).plain_etag == record.etag:
                    return
            except ObjectMissing as error:
                raise SheetAltered(str(error)) from error
        with Contents(self._directory) as contents:
            self._read(self._layout, record, contents, stop, by_etags=True)

    def _read(
        self, layout: Layout, record: SheetRecord, contents: Contents, stop: threading.Event, *, by_etags: bool = False
    ) -> list[TileLine]:
        """Reads all tiles in one layout.

        Args:
            layout: ``exploded`` or ``packed``.
            record: Says which tiles there must be.
            contents: Keeps them.
            stop: Ends the reading.
            by_etags: Whether nothing need be read if the ETags prove the tiles.

        Returns:
            The tiles in the order of ``Pyramid.tiles``.

        Raises:
            SheetAltered: They are not those of ``sheet.json``.
        """
        read = self._read_archive if layout is Layout.PACKED else self._read_tiles
        lines = read(record, contents, stop, by_etags=by_etags)
        if tiles_digest(lines) != record.digest:
            msg = f"the tiles of sheet {self._number:,} have other bytes than its sheet.json says"
            raise SheetAltered(msg)
        return lines

    def _read_tiles(self, record: SheetRecord, contents: Contents, stop: threading.Event, *, by_etags: bool) -> list[TileLine]:
        pyramid = _pyramid(record)
        listing = Listing.fetch(self._bucket, self._ref, self._number)
        tiles = listing.tiles_of(pyramid, Layout.EXPLODED)
        names = [tile_name(*place) for place in pyramid.tiles()]
        if missing := [name for name in names if name not in tiles]:
            msg = f"sheet {self._number:,} lacks {len(missing):,} of {len(names):,} tiles, the first is {missing[0]}"
            raise SheetAltered(msg)
        lines = [(name, tiles[name].size, tiles[name].plain_etag) for name in names]
        # Where ETags are MD5s, equal tiles need not be read twice.
        are_md5s = tiles_digest(lines) == record.digest
        if are_md5s and by_etags:
            return lines
        read: dict[str, TileLine] = {}

        def get(chunk: Sequence[TileLine]) -> None:
            for name, _, _ in chunk:
                raise_if_stopped(stop)
                body = self._bucket.get(tiles[name].key).body
                read[name] = (name, len(body), contents.add(body))

        wanted = list({line[2]: line for line in lines}.values()) if are_md5s else lines
        self._for_all(get, wanted)
        if not are_md5s:
            return [read[name] for name in names]
        if any(read[line[0]] != line for line in wanted):
            msg = f"a tile of sheet {self._number:,} has other bytes than its ETag says"
            raise SheetAltered(msg)
        return lines

    def _read_archive(self, record: SheetRecord, contents: Contents, stop: threading.Event, *, by_etags: bool) -> list[TileLine]:
        try:
            packed = read_packed(self._bucket, self._ref.archive(self._number))
        except (ObjectMissing, DamagedRecord) as error:
            raise SheetAltered(str(error)) from error
        tiles = list(_pyramid(record).tiles())
        places = [packed.index.place(*tile) for tile in tiles]
        found = [place for place in places if place is not None]
        if len(found) < len(tiles):
            msg = f"sheet {self._number:,} lacks {len(tiles) - len(found):,} of {len(tiles):,} tiles in its .pmtiles"
            raise SheetAltered(msg)
        md5s = {}
        for place, body in read_places(self._bucket, packed, found):
            raise_if_stopped(stop)
            md5s[place] = contents.add(body)
        return [(tile_name(*tile), place[1], md5s[place]) for tile, place in zip(tiles, found, strict=True)]

    def _for_all(self, work: Callable[[Sequence[TileLine]], None], lines: Sequence[TileLine]) -> None:
        """Calls ``work`` on all lines, in chunks, in the threads of the host; returns when no thread works on them any more."""
        turn = turn_of(self._ref, str(self._number))
        futures = [self._threads.submit(turn, work, lines[start : start + CHUNK_TILES]) for start in range(0, len(lines), CHUNK_TILES)]
        try:
            for future in futures:
                future.result()
        finally:
            wait([future for future in futures if not future.cancel()])


def _pyramid(record: SheetRecord) -> Pyramid:
    try:
        return Pyramid(record.width, record.height, record.tile_size, record.overlap)
    except (TypeError, ValueError) as error:
        msg = f"sheet.json: {error}"
        raise DamagedRecord(msg) from error
