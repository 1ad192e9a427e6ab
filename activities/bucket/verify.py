"""Verifies an upload or a sheet: whether the bucket holds all objects as it should. Changes nothing.

Of a packed sheet, the index of its ``.pmtiles`` tells the tiles, and the ETag in ``sheet.json`` proves all bytes where ETags are MD5s.

The expected tiles follow from ``sheet.json`` by arithmetic. One LIST of the sheet's prefix shows the tiles in the bucket. This proves:

1. Names and sizes, always: no object is missing, foreign or empty, and the sum of the tiles' sizes is the one in ``sheet.json``.
2. The bytes of every tile, by the digest in ``sheet.json``, where the LIST's ETags are MD5s, as on S3 and R2.
3. Where the ETags are no MD5s (in a local directory; on S3 with SSE-KMS, where they look like MD5s), only ``deep`` proves the bytes:
   it reads every tile back, compares the digest, and decodes each JPEG in another process.
"""

import hashlib
import itertools
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import TypeVar

from activities.bucket.dzi import Pyramid, parse_tile_name, tile_name
from activities.bucket.keys import UploadRef, sheet_numbers, sheet_of_directory
from activities.bucket.listing import Listing
from activities.bucket.packed import PackedSheet, read_packed, read_places
from activities.bucket.records import (
    Layout,
    SheetRecord,
    SheetState,
    SheetStatus,
    Snapshot,
    UploadOptions,
    UploadRecord,
    UploadStatus,
    from_json,
    tiles_digest,
)
from activities.bucket.report import MOST_NAMES, NO_NAMES, Proof, Repair, SheetReport, UploadReport
from activities.bucket.storage import LARGEST_READ_BYTES, Bucket, ObjectInfo
from activities.errors import DamagedRecord, NewerSchema, ObjectMissing, UnreadableRecord, UploadNotFound
from activities.render.decoder import Decoder

THREADS = 4
"""Sheets verified at once. Over a directory more threads cost more CPU time, and each thread has the list of a sheet's tiles in memory."""

NO_DESCRIPTOR = "the .dzi is missing"
NO_ARCHIVE = "the .pmtiles is missing"
OTHER_BYTES = "the digest over all tiles is not the one in sheet.json: some tile has other bytes than were written"

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')

S = TypeVar("S")
T = TypeVar("T")


def verify_upload(
    bucket: Bucket, ref: UploadRef, progress: Snapshot | None = None, *, deep: bool = False
) -> Generator[SheetReport | UploadReport, None, None]:
    """Verifies an upload sheet by sheet, a few sheets at once, in bounded memory. Blocks.

    Args:
        bucket: The bucket of the upload.
        ref: The upload.
        progress: Says which sheets are ready. By default it is read from ``manifest.json``. Without a manifest, or while the pages are not
            counted, a sheet counts as ready if it has a commit marker.
        deep: Whether to read every tile back and decode it.

    Yields:
        The reports of the sheets, by number, then the report of the upload.

    Raises:
        UploadNotFound: The upload was never accepted or is marked deleted.
        BucketError: The bucket failed.
    """
    problems: list[str] = []
    options = _accepted_options(bucket, ref, problems)
    if progress is None:
        progress = _manifest(bucket, ref, problems)
    status = progress.status if progress else None
    is_final = progress is not None and progress.status.is_final
    if progress is not None and not progress.total_pages:
        progress = None  # the run has not counted the pages, or was terminated and is forgotten: the bucket knows more
    directories, objects = bucket.children(ref.sheets_prefix)
    begun = set(sheet_numbers(directories))
    states = {state.number: state for state in progress.sheets} if progress else {}
    numbers = states.keys() | {number for number in begun if progress is None or number <= progress.total_pages}
    if progress:
        problems += _contradictions(progress, states)
    foreign = NO_NAMES.with_names(_paths(ref, objects))
    for name in sorted(directories):
        if sheet_of_directory(name) not in numbers:
            foreign = foreign.with_names(_paths(ref, bucket.objects(f"{ref.sheets_prefix}{name}/")))

    def verify(number: int) -> SheetReport | None:
        state = states.get(number)
        listing = Listing.fetch(bucket, ref, number) if number in begun else Listing(number)
        if progress is None and listing.is_empty:
            return None
        has_marker = looks_committed(bucket, listing, options)
        is_ready = has_marker if progress is None else state is not None and state.status is SheetStatus.READY
        if is_ready:
            return verify_sheet(bucket, ref, listing, state, options, deep=deep)
        return _unready_report(bucket, ref, listing, state, options, is_final=is_final)

    total = verified = wrong = expected = found = missing = empty = 0
    foreign_count, proof = foreign.count, None
    for report in bounded_map(verify, sorted(numbers)):
        if report is None:
            continue
        yield report
        total += 1
        verified += report.verified
        wrong += report.is_wrong
        expected += report.expected
        found += report.found
        missing += report.missing_count
        foreign_count += report.foreign_count
        empty += report.empty_count
        if report.proof is not None and proof is not Proof.NAMES:
            proof = report.proof
    yield UploadReport(
        ref=str(ref),
        status=status,
        verified=not (wrong or foreign_count or problems),
        deep=deep,
        total_sheets=total,
        verified_sheets=verified,
        wrong_sheets=wrong,
        expected=expected,
        found=found,
        missing_count=missing,
        foreign=foreign.first,
        foreign_count=foreign_count,
        empty_count=empty,
        problems=tuple(problems),
        proof=proof,
    )


def verify_sheet(
    bucket: Bucket,
    ref: UploadRef,
    listing: Listing,
    state: SheetState | None,
    options: UploadOptions | None,
    *,
    deep: bool,
    refuse_newer: bool = False,
) -> SheetReport:
    """Verifies one sheet that should be whole. Blocks.

    Args:
        bucket: The bucket of the upload.
        ref: The upload.
        listing: The objects below the sheet's prefix.
        state: The sheet's state in the progress; None without a progress.
        options: The upload's options; None if ``upload.json`` cannot be read.
        deep: Whether to read every tile back and decode it.
        refuse_newer: Whether to raise an error for a ``sheet.json`` of a newer release. Otherwise it is reported as a problem.

    Raises:
        NewerSchema: ``sheet.json`` is of a newer release, and ``refuse_newer`` is set.
        BucketError: The bucket failed.
    """
    number, problems = listing.number, list[str]()
    record = _read_record(bucket, SheetRecord, ref.sheet_record(number), problems, required=True, refuse_newer=refuse_newer)
    pyramid = _geometry(number, record, state, options, problems)
    layout = record.layout if record else _likely_layout(listing, options)
    tiles = listing.tiles_of(pyramid, layout)
    surplus = listing.surplus(ref, pyramid, layout)
    foreign = NO_NAMES.with_names(sorted(key.removeprefix(ref.sheets_prefix) for key in surplus))
    empty = NO_NAMES.with_names(sorted(name for name, info in tiles.items() if not info.size))
    expected = pyramid.tile_count if pyramid else 0
    missing_count = expected - len(tiles) if pyramid and layout.has_tiles else 0

    if layout.has_tiles:
        if pyramid is not None:
            _check_descriptor(bucket, ref.descriptor(number), listing.descriptor, pyramid, problems)
        elif not listing.descriptor:
            problems.append(NO_DESCRIPTOR)
    if listing.thumbnail is None or not listing.thumbnail.size:
        problems.append(f"thumbnail.jpeg is {'missing' if listing.thumbnail is None else 'empty'}")
    proof, at = Proof.NAMES, len(problems)
    with Decoder() if deep and pyramid else nullcontext() as decoder:
        reader = _Reader(bucket, decoder) if decoder else None
        if reader and listing.thumbnail is not None and listing.thumbnail.size:
            reader.read_object("thumbnail.jpeg", listing.thumbnail, 0, 0)
        if layout.has_tiles:
            md5s = reader.read_tiles(tiles, pyramid) if reader and pyramid else _md5s_of_etags(tiles)
            if record is not None and pyramid is not None and not missing_count and not empty.count:
                problems += _disagreements(record, expected, sum(info.size for info in tiles.values()))
                if md5s is not None:
                    if tiles_digest((name, info.size, md5s[name]) for name, info in tiles.items()) == record.digest:
                        proof = Proof.DIGEST
                    elif deep or _is_md5(bucket, next(iter(tiles.values()))):
                        problems.append(OTHER_BYTES)
        if layout.has_archive:
            archive_proof = _check_archive(bucket, listing, record, pyramid, reader, problems)
            proof = archive_proof if not layout.has_tiles or archive_proof is Proof.NAMES else proof
        if reader:
            problems[at:at] = reader.problems()

    report = SheetReport(
        number=number,
        status=SheetStatus.READY,
        expected=expected,
        found=len(tiles) - empty.count if layout.has_tiles else 0,
        missing=_missing_names(pyramid, tiles, missing_count) if missing_count and pyramid else (),
        missing_count=missing_count,
        foreign=foreign.first,
        foreign_count=foreign.count,
        empty=empty.first,
        empty_count=empty.count,
        problems=tuple(problems),
        layout=record.layout if record else None,
    )
    if not layout.has_tiles and report.is_whole:
        report = replace(report, found=expected)
    if report.is_wrong:
        return replace(report, repair=Repair.PRUNE if report.is_whole else Repair.TILE)
    return replace(report, verified=True, proof=proof)


def looks_committed(bucket: Bucket, listing: Listing, options: UploadOptions | None) -> bool:
    """Whether a sheet has its commit marker. A sheet that was sent in both layouts may have been packed since: its ``sheet.json`` tells.

    Raises:
        BucketError: The bucket failed.
    """
    layout = options.layout if options else Layout.EXPLODED
    if layout is Layout.BOTH and listing.archive and not listing.descriptor and listing.record:
        with suppress(ObjectMissing, UnreadableRecord):
            layout = bucket.get_record(SheetRecord, listing.record.key).layout
    return listing.has_marker(layout)


def _unready_report(
    bucket: Bucket, ref: UploadRef, listing: Listing, state: SheetState | None, options: UploadOptions | None, *, is_final: bool
) -> SheetReport:
    """The report on a sheet that is not ready in the progress. Some of its objects may be there."""
    status = state.status if state else SheetStatus.PENDING
    repair = Repair.PRUNE if listing.foreign or (is_final and not listing.is_empty) else None
    has_marker = looks_committed(bucket, listing, options)
    if has_marker:
        repair = Repair.COUNT if verify_sheet(bucket, ref, listing, state, options, deep=False).is_whole else Repair.TILE
    foreign = NO_NAMES.with_names(sorted(listing.foreign))
    is_late = is_final and has_marker
    return SheetReport(
        number=listing.number,
        status=status,
        found=sum(info.size > 0 for info in listing.tiles.values()),
        foreign=foreign.first,
        foreign_count=foreign.count,
        problems=(f"its {_marker_name(listing)} says that it is committed, the progress says {status}",) if is_late else (),
        reason=state.reason if state else None,
        repair=repair,
    )


def _paths(ref: UploadRef, objects: Iterable[ObjectInfo]) -> list[str]:
    """The paths of objects below ``sheets/``, in the order of names."""
    return sorted(info.key.removeprefix(ref.sheets_prefix) for info in objects)


def _accepted_options(bucket: Bucket, ref: UploadRef, problems: list[str]) -> UploadOptions | None:
    """The options in ``upload.json``; None after adding to ``problems`` why it cannot be read."""
    record_problems: list[str] = []
    record = _read_record(bucket, UploadRecord, ref.record, record_problems, required=True)
    if record_problems == [_missing_problem(ref.record)]:
        msg = f"there is no upload {ref}"
        raise UploadNotFound(msg)
    problems += record_problems
    if record is not None and record.deleted_at is not None:
        msg = f"the upload {ref} was deleted"
        raise UploadNotFound(msg)
    return record.options if record else None


def _manifest(bucket: Bucket, ref: UploadRef, problems: list[str]) -> Snapshot | None:
    manifest = _read_record(bucket, Snapshot, ref.manifest, problems)
    if manifest is None:
        return None
    counts = (manifest.total_pages, manifest.completed_pages, *(sheet.number for sheet in manifest.sheets))
    if not all(type(count) is int and count >= 0 for count in counts):
        problems.append("manifest.json cannot be read: its counts are not whole numbers")
        return None
    return manifest


def _missing_problem(key: str) -> str:
    return f"{key.rsplit('/', 1)[-1]} is missing"


def _read_record(
    bucket: Bucket, kind: type[T], key: str, problems: list[str], *, required: bool = False, refuse_newer: bool = False
) -> T | None:
    """The record at ``key``; None after adding to ``problems`` why it cannot be read. Only a ``required`` record may not be missing."""
    try:
        return from_json(kind, bucket.get(key).body)
    except ObjectMissing:
        if required:
            problems.append(_missing_problem(key))
    except DamagedRecord as error:
        problems.append(str(error).replace(key, key.rsplit("/", 1)[-1]))
    except (ValueError, NewerSchema) as error:
        if refuse_newer and isinstance(error, NewerSchema):
            raise
        problems.append(f"{key.rsplit('/', 1)[-1]} cannot be read: {error}")
    return None


def _contradictions(progress: Snapshot, states: dict[int, SheetState]) -> Iterator[str]:
    """Yields a sentence for each contradiction in the progress."""
    ready = sum(state.status is SheetStatus.READY for state in states.values())
    if len(states) != progress.total_pages or max(states) != progress.total_pages:
        yield f"the progress says {progress.total_pages:,} pages and names {len(states):,} sheets"
    if ready != progress.completed_pages:
        yield f"the progress says {progress.completed_pages:,} sheets are ready and names {ready:,}"
    if progress.status is UploadStatus.COMPLETE and ready != progress.total_pages:
        yield f"the progress says complete, but {ready:,} of {progress.total_pages:,} sheets are ready"


def _geometry(
    number: int, record: SheetRecord | None, state: SheetState | None, options: UploadOptions | None, problems: list[str]
) -> Pyramid | None:
    """The pyramid by ``sheet.json``, else by the progress; None if neither has the size. Adds their contradictions to ``problems``."""
    if record is not None:
        pairs: list[tuple[str, object, object, str]] = [("number", record.number, number, "its key")]
        for source, where, names in (
            (options, "upload.json", ("tile_size", "overlap", "quality")),
            (state, "the progress", ("width", "height", "dpi", "scaled", "tiles", "bytes")),
        ):
            # The progress does not know all values of a sheet that is not ready. Such a value is None, and is not compared.
            values = {name: value for name in names if (value := getattr(source, name, None)) is not None}
            pairs += [(name, getattr(record, name), value, where) for name, value in values.items()]
        problems += [f"sheet.json says {name} {ours!r}, {where} says {other!r}" for name, ours, other, where in pairs if ours != other]
        numbers = (record.width, record.height, record.tile_size, record.overlap)
        if all(type(value) is int for value in numbers):
            try:
                return Pyramid(*numbers)
            except ValueError as error:
                problems.append(f"sheet.json: {error}")
        else:
            problems.append("sheet.json: its sizes are not whole numbers")
    if state is not None and options is not None and state.width and state.height:
        try:
            return Pyramid(state.width, state.height, options.tile_size, options.overlap)
        except ValueError as error:
            problems.append(f"the progress: {error}")
    return None


def _missing_names(pyramid: Pyramid, tiles: dict[str, ObjectInfo], count: int) -> tuple[str, ...]:
    names = (name for tile in pyramid.tiles() if (name := tile_name(*tile)) not in tiles)
    return tuple(itertools.islice(names, min(count, MOST_NAMES)))


def _check_descriptor(bucket: Bucket, key: str, info: ObjectInfo | None, pyramid: Pyramid, problems: list[str]) -> None:
    try:
        if info is None:
            problems.append(NO_DESCRIPTOR)
        elif info.size != len(pyramid.descriptor()) or bucket.get(key).body != pyramid.descriptor().encode():
            problems.append(f"the .dzi does not describe {pyramid.width} x {pyramid.height} px as it should")
    except ObjectMissing:
        problems.append(NO_DESCRIPTOR)


def _disagreements(record: SheetRecord, tiles: int, size_bytes: int) -> Iterator[str]:
    if record.tiles != tiles:
        yield f"sheet.json says {record.tiles!r} tiles, its size makes {tiles}"
    if record.bytes != size_bytes:
        yield f"sheet.json says the tiles have {record.bytes!r} bytes, they have {size_bytes}"


def _md5s_of_etags(tiles: Mapping[str, ObjectInfo]) -> dict[str, str] | None:
    """The tiles' MD5s by name, if every ETag of the LIST looks like an MD5; else None.

    About the ETag of an object that was put in one part: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    md5s = {}
    for name, info in tiles.items():
        match = _MD5.fullmatch(info.etag or "")
        if match is None:
            return None
        md5s[name] = match[1]
    return md5s


def _is_md5(bucket: Bucket, info: ObjectInfo) -> bool:
    """Whether a tile's ETag is really its MD5: the ETag of an encrypted object (SSE-KMS) only looks like one."""
    try:
        stored = bucket.get(info.key)
    except ObjectMissing:
        return True
    return _md5s_of_etags({"": stored.info}) == {"": _md5(stored.body)}


def _md5(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


class _Reader:
    """Reads JPEGs back, and decodes each once."""

    def __init__(self, bucket: Bucket, decoder: Decoder) -> None:
        self._bucket = bucket
        self._decoder = decoder
        self._broken: list[str] = []
        self._decoded: set[tuple[str, int, int]] = set()
        """MD5, width and height of the JPEGs that were decoded. A third of a plan's tiles are white; the white JPEG is decoded once."""

    def problems(self) -> list[str]:
        """A sentence for each broken JPEG, up to ``MOST_NAMES``, and one for the number of further ones."""
        more = len(self._broken) - MOST_NAMES
        return [*self._broken[:MOST_NAMES], *([f"{more:,} more JPEGs are broken"] if more > 0 else [])]

    def read_object(self, name: str, info: ObjectInfo, width: int, height: int) -> str | None:
        """Reads an object; returns its MD5, or None if it cannot be read."""
        if self._is_too_large(name, info.size):
            return None
        try:
            body = self._bucket.get(info.key).body
        except ObjectMissing:
            self._broken.append(f"{name} has disappeared meanwhile")
            return None
        return self._decode(name, body, width, height)

    def read_tiles(self, tiles: Mapping[str, ObjectInfo], pyramid: Pyramid) -> dict[str, str] | None:
        """Reads all tiles; returns their MD5s by name, or None if a tile could not be read."""
        md5s = {}
        for name, info in tiles.items():
            tile = parse_tile_name(name)
            if tile is not None and info.size and (md5 := self.read_object(f"tile {name}", info, *pyramid.tile_rectangle(*tile)[2:])):
                md5s[name] = md5
        return md5s if md5s.keys() == tiles.keys() else None

    def read_archive(self, packed: PackedSheet, pyramid: Pyramid) -> list[tuple[str, int, str]] | None:
        """Reads all tiles of a ``.pmtiles``, which has each; returns name, size and MD5 of each, or None if a tile could not be read.

        Raises:
            ObjectMissing: The object was removed or replaced meanwhile.
        """
        tiles: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for tile in pyramid.tiles():
            if place := packed.index.place(*tile):
                tiles.setdefault(place, []).append(tile)
        too_large = {place for place in tiles if self._is_too_large(f"tile {tile_name(*tiles[place][0])} in the .pmtiles", place[1])}
        lines = []
        for place, body in read_places(self._bucket, packed, tiles.keys() - too_large):
            for tile in tiles[place]:
                name = tile_name(*tile)
                md5 = self._decode(f"tile {name} in the .pmtiles", body, *pyramid.tile_rectangle(*tile)[2:])
                lines.append((name, len(body), md5))
        return None if too_large else lines

    def _is_too_large(self, name: str, size_bytes: int) -> bool:
        if size_bytes > LARGEST_READ_BYTES:
            self._broken.append(f"{name} has {size_bytes:,} bytes, more than {LARGEST_READ_BYTES:,}, the most for a JPEG")
        return size_bytes > LARGEST_READ_BYTES

    def _decode(self, name: str, body: bytes, width: int, height: int) -> str:
        md5 = _md5(body)
        if (md5, width, height) not in self._decoded:
            if problem := self._decoder.problem(body, width, height):
                self._broken.append(f"{name} {problem}")
            else:
                self._decoded.add((md5, width, height))
        return md5


def _likely_layout(listing: Listing, options: UploadOptions | None) -> Layout:
    """The layout of a sheet whose ``sheet.json`` cannot be read."""
    if listing.archive and not listing.descriptor:
        return Layout.PACKED
    return options.layout if options else Layout.EXPLODED


def _marker_name(listing: Listing) -> str:
    return ".dzi" if listing.descriptor is not None else ".pmtiles"


def _check_archive(
    bucket: Bucket,
    listing: Listing,
    record: SheetRecord | None,
    pyramid: Pyramid | None,
    reader: _Reader | None,
    problems: list[str],
) -> Proof:
    """Verifies the ``.pmtiles`` of a sheet, with a reader every tile in it; returns what is proved if nothing is wrong."""
    info = listing.archive
    if not info:
        problems.append(NO_ARCHIVE)
        return Proof.NAMES
    if not record or not pyramid:
        return Proof.NAMES
    etag = info.plain_etag
    if reader is None and etag and etag == record.etag:
        return Proof.DIGEST
    try:
        packed = read_packed(bucket, info.key)
        before = len(problems)
        problems += _archive_disagreements(packed, record, pyramid)
        if len(problems) > before:
            return Proof.NAMES
        if reader is not None:
            lines = reader.read_archive(packed, pyramid)
            if lines is not None and tiles_digest(lines) == record.digest:
                return Proof.DIGEST
            problems.append(OTHER_BYTES)
        # A server may make the ETag of an object of several parts in another way.
        elif _MD5.fullmatch(etag) and _MD5.fullmatch(record.etag or "") and listing.thumbnail and _is_md5(bucket, listing.thumbnail):
            problems.append("the ETag of the .pmtiles is not the one in sheet.json: it has other bytes than were written")
    except ObjectMissing:
        problems.append(NO_ARCHIVE)
    except DamagedRecord as error:
        problems.append(str(error).replace(info.key, "the .pmtiles"))
    return Proof.NAMES


def _archive_disagreements(packed: PackedSheet, record: SheetRecord, pyramid: Pyramid) -> Iterator[str]:
    if packed.index.pyramid != pyramid:
        yield f"the .pmtiles does not describe {pyramid.width} x {pyramid.height} px as it should"
        return
    first, missing, size_bytes = None, 0, 0
    for tile in pyramid.tiles():
        place = packed.index.place(*tile)
        if place and place[1]:
            size_bytes += place[1]
        else:
            first, missing = first or tile_name(*tile), missing + 1
    if missing:
        yield f"{missing:,} of {pyramid.tile_count:,} tiles are missing in the .pmtiles, the first is {first}"
        return
    if packed.index.tile_count != pyramid.tile_count:
        yield f"the .pmtiles has {packed.index.tile_count:,} tiles, its size makes {pyramid.tile_count:,}"
    yield from _disagreements(record, pyramid.tile_count, size_bytes)


def bounded_map(work: Callable[[S], T], items: Iterable[S]) -> Generator[T, None, None]:
    """Calls ``work`` on each item in ``THREADS`` threads; yields the results in order.

    At most ``THREADS + 1`` results wait to be taken, so that the memory is bounded. Closing the generator drops the items that were not
    begun.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="verify") as threads:
        try:
            for item in items:
                waiting.append(threads.submit(work, item))
                if len(waiting) > THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
