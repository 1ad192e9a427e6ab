"""What the bucket holds against what it should: the proof that sheets are complete. Changes nothing.

The expected tiles follow from ``sheet.json`` by arithmetic; one LIST of the sheet's prefix tells what is there. What that proves:

1. Names and sizes always: nothing is missing, foreign or empty, and the tiles have the bytes together that ``sheet.json`` says.
2. The bytes of every tile, by ``sheet.json``'s digest, where the LIST's ETags are MD5s, as on S3 and R2.
3. Where they are none (a local directory; S3 with SSE-KMS, whose ETags look like MD5s), the bytes are proved only by ``deep``, which reads
   every tile back, compares the digest and decodes each JPEG, in another process (``activities.render.decode``).
"""

import hashlib
import itertools
import os
import re
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar, cast

from activities.bucket.dzi import Pyramid, parse_tile_name, tile_name
from activities.bucket.keys import UploadRef, sheet_numbers, sheet_of_directory
from activities.bucket.records import (
    SCHEMA,
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
from activities.bucket.storage import Bucket, ObjectInfo
from activities.errors import NewerSchema, ObjectMissing, RenderCrashed, UploadNotFound

THREADS = 4
"""Sheets verified at once: over a directory more threads cost more, and each has one sheet's tiles in memory."""

NAMED = 20
"""Most names in one list of a report; the counts are whole."""

NO_DESCRIPTOR = "the .dzi is missing"

LARGEST_TILE_BYTES = 64 << 20
"""More than any JPEG of ours needs; what is larger is not read."""

ANSWER_S = 180.0
"""A decoder that does not answer for so long hangs: one image takes a tenth of a second, and no more than 20 s of CPU."""

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_REQUEST = struct.Struct(">III")
"""``REQUEST`` of activities.render.decode, which is not imported: it loads libvips."""
_KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")
"""All that a decoder gets to see: the bucket's keys are in the rest."""

S = TypeVar("S")
T = TypeVar("T")


class Repair(StrEnum):
    """What a reconcile would do about a sheet."""

    TILE = "tile"
    """Something of it is broken or missing: its ``.dzi`` is deleted, and, unless the upload was stopped, its page is tiled again."""
    COUNT = "count"
    """It is whole, but the progress does not have it ready: that is corrected."""
    PRUNE = "prune"
    """What no sheet owns is removed, and no more."""


class Proof(StrEnum):
    """What was proved of a sheet."""

    DIGEST = "digest"
    """The bytes of every tile."""
    NAMES = "names"
    """Names and sizes only."""


@dataclass(frozen=True)
class SheetReport:
    """What was found of one sheet. Of each list only the first ``NAMED`` names are told.

    Args:
        number: 1-based.
        status: What the progress says; without any, ready if the sheet's ``.dzi`` exists, else pending.
        expected: Tiles that it should have; 0 when it is not ready, or its size is not known.
        found: Those that are there and not empty.
        missing: Names of tiles that are not there, ``{level}/{col}_{row}.jpeg``.
        missing_count: How many.
        foreign: Objects below its prefix that no sheet has, as paths below ``sheets/``.
        foreign_count: How many.
        empty: Names of tiles of 0 bytes.
        empty_count: How many.
        problems: What else is wrong, a sentence each.
        verified: Whether it is ready and nothing is wrong.
        proof: What that rests on; None unless verified.
        reason: Why it failed, when the progress says so: the name of an error.
        repair: What a reconcile would do about it; None if nothing.
    """

    number: int
    status: SheetStatus
    expected: int = 0
    found: int = 0
    missing: tuple[str, ...] = ()
    missing_count: int = 0
    foreign: tuple[str, ...] = ()
    foreign_count: int = 0
    empty: tuple[str, ...] = ()
    empty_count: int = 0
    problems: tuple[str, ...] = ()
    verified: bool = False
    proof: Proof | None = None
    reason: str | None = None
    repair: Repair | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it has all that it should; what else lies there does not count."""
        return not (self.missing_count or self.empty_count or self.problems)

    @property
    def is_wrong(self) -> bool:
        """Whether something was found that should not be; a sheet that failed by name, or is not done yet, is not wrong."""
        return bool(self.foreign_count) or not self.is_whole


@dataclass(frozen=True)
class UploadReport:
    """What was found of an upload as a whole.

    Args:
        ref: The upload.
        status: What its progress says; None when there is none.
        verified: Whether nothing is wrong with any sheet, nor with the whole.
        deep: Whether every tile was read back and decoded.
        total_sheets: How many the progress says; without any, those that were begun.
        verified_sheets: Those that are ready and right.
        wrong_sheets: Those with which something is wrong.
        expected: Tiles of all sheets that are ready.
        found: Those that are there and not empty.
        missing_count: Of all sheets.
        foreign: Objects below ``sheets/`` that belong to no sheet's prefix, at most ``NAMED``, as paths below it.
        foreign_count: How many, with those of all sheets.
        empty_count: Of all sheets.
        problems: What is wrong with the whole, a sentence each.
        proof: The weakest of its verified sheets' proofs; None if there is none.
    """

    ref: str
    status: UploadStatus | None
    verified: bool = False
    deep: bool = False
    total_sheets: int = 0
    verified_sheets: int = 0
    wrong_sheets: int = 0
    expected: int = 0
    found: int = 0
    missing_count: int = 0
    foreign: tuple[str, ...] = ()
    foreign_count: int = 0
    empty_count: int = 0
    problems: tuple[str, ...] = ()
    proof: Proof | None = None
    schema: int = SCHEMA


def verify_upload(
    bucket: Bucket, ref: UploadRef, progress: Snapshot | None = None, *, deep: bool = False
) -> Generator[SheetReport | UploadReport, None, None]:
    """Verifies sheet by sheet, a few at once, in bounded memory; blocks.

    Args:
        bucket: Where they are.
        ref: The upload.
        progress: Which sheets are ready; without it ``manifest.json`` says so, and without that, or while no pages are counted, the
            ``.dzi`` of each.
        deep: Whether to read every tile back and decode it.

    Yields:
        The report of each sheet, by number; last, that of the upload.

    Raises:
        UploadNotFound: It was never accepted or is marked deleted.
        BucketError: The bucket failed.
    """
    problems: list[str] = []
    options = _accepted(bucket, ref, problems)
    if progress is None:
        progress = _manifest(bucket, ref, problems)
    status = progress.status if progress else None
    is_final = progress is not None and progress.status.is_final
    if progress is not None and not progress.total_pages:
        progress = None  # a run that has not looked yet, or was terminated and is forgotten, knows less than the bucket
    names, loose = bucket.children(ref.sheets_prefix)
    begun = set(sheet_numbers(names))
    states = {state.number: state for state in progress.sheets} if progress else {}
    numbers = states.keys() | {number for number in begun if progress is None or number <= progress.total_pages}
    if progress:
        problems += _contradictions(progress, states)
    foreign = _Names()
    foreign.add(sorted(info.key.removeprefix(ref.sheets_prefix) for info in loose))
    for name in sorted(names):
        if sheet_of_directory(name) not in numbers:
            foreign.add(sorted(info.key.removeprefix(ref.sheets_prefix) for info in bucket.objects(f"{ref.sheets_prefix}{name}/")))

    def verify(number: int) -> SheetReport | None:
        state = states.get(number)
        listing = Listing.of(bucket, ref, number) if number in begun else Listing(number)
        if progress is None and listing.is_empty:
            return None
        is_ready = listing.descriptor is not None if progress is None else state is not None and state.status is SheetStatus.READY
        if is_ready:
            return verify_sheet(bucket, ref, listing, state, options, deep=deep)
        return _not_ready(bucket, ref, listing, state, options, is_final=is_final)

    total = verified = wrong = expected = found = missing = empty = 0
    foreign_count, proof = foreign.count, None
    for report in in_window(verify, sorted(numbers)):
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
    listing: "Listing",
    state: SheetState | None,
    options: UploadOptions | None,
    *,
    deep: bool,
    refuse_newer: bool = False,
) -> SheetReport:
    """Verifies one sheet that should be whole; blocks.

    Args:
        bucket: Where it is.
        ref: The upload.
        listing: What is below the sheet's prefix.
        state: What the progress says of it, if there is any.
        options: What was asked for, if ``upload.json`` can be read.
        deep: Whether to read every tile back and decode it.
        refuse_newer: Whether a ``sheet.json`` of a newer release is an error, and not just something wrong.

    Raises:
        NewerSchema: If that was asked for.
        BucketError: The bucket failed.
    """
    number, problems = listing.number, list[str]()
    record = _read(bucket, SheetRecord, ref.sheet_record(number), problems, required=True, refuse_newer=refuse_newer)
    pyramid = _geometry(number, record, state, options, problems)
    tiles = {name: info for name, info in listing.tiles.items() if pyramid is None or is_tile_of(pyramid, name)}
    prefix = ref.tiles_prefix(number).removeprefix(ref.sheets_prefix)
    foreign = _Names()
    foreign.add(sorted([*listing.foreign, *(prefix + name for name in listing.tiles.keys() - tiles.keys())]))
    empty = _Names()
    empty.add(sorted(name for name, info in tiles.items() if not info.size))
    expected = pyramid.tile_count if pyramid else 0
    missing_count = expected - len(tiles) if pyramid else 0

    if pyramid is not None:
        _check_descriptor(bucket, ref.descriptor(number), listing.descriptor, pyramid, problems)
    elif listing.descriptor is None:
        problems.append(NO_DESCRIPTOR)
    if listing.thumbnail is None or not listing.thumbnail.size:
        problems.append(f"thumbnail.jpeg is {'missing' if listing.thumbnail is None else 'empty'}")
    md5s = _read_back(bucket, listing.thumbnail, tiles, pyramid, problems) if deep and pyramid else _etags(tiles)
    proof = Proof.NAMES
    if record is not None and pyramid is not None and not missing_count and not empty.count:
        problems += _disagreements(record, expected, sum(info.size for info in tiles.values()))
        if md5s is not None:
            if tiles_digest((name, info.size, md5s[name]) for name, info in tiles.items()) == record.digest:
                proof = Proof.DIGEST
            elif deep or _is_md5(bucket, next(iter(tiles.values()))):
                problems.append("the digest over all tiles is not the one in sheet.json: some tile is not what was written")

    report = SheetReport(
        number=number,
        status=SheetStatus.READY,
        expected=expected,
        found=len(tiles) - empty.count,
        missing=_missing(pyramid, tiles, missing_count) if pyramid else (),
        missing_count=missing_count,
        foreign=foreign.first,
        foreign_count=foreign.count,
        empty=empty.first,
        empty_count=empty.count,
        problems=tuple(problems),
    )
    if report.is_wrong:
        return replace(report, repair=Repair.PRUNE if report.is_whole else Repair.TILE)
    return replace(report, verified=True, proof=proof)


def _not_ready(
    bucket: Bucket, ref: UploadRef, listing: "Listing", state: SheetState | None, options: UploadOptions | None, *, is_final: bool
) -> SheetReport:
    """A sheet that nobody says is done: what is there of it may be half of it."""
    status = state.status if state else SheetStatus.PENDING
    repair = Repair.PRUNE if listing.foreign or (is_final and not listing.is_empty) else None
    if listing.descriptor is not None:
        repair = Repair.COUNT if verify_sheet(bucket, ref, listing, state, options, deep=False).is_whole else Repair.TILE
    foreign = _Names()
    foreign.add(sorted(listing.foreign))
    is_late = is_final and listing.descriptor is not None
    return SheetReport(
        number=listing.number,
        status=status,
        found=sum(info.size > 0 for info in listing.tiles.values()),
        foreign=foreign.first,
        foreign_count=foreign.count,
        problems=(f"its .dzi says that it is committed, the progress says {status}",) if is_late else (),
        reason=state.reason if state else None,
        repair=repair,
    )


@dataclass
class _Names:
    """The first names of a list, and how many there are."""

    first: tuple[str, ...] = ()
    count: int = 0

    def add(self, names: Iterable[str]) -> None:
        for name in names:
            self.count += 1
            if self.count <= NAMED:
                self.first += (name,)


@dataclass
class Listing:
    """What is below the prefix of sheet ``number``, by one LIST."""

    number: int
    tiles: dict[str, ObjectInfo] = field(default_factory=dict)
    """By name; some may be none of this sheet's."""
    thumbnail: ObjectInfo | None = None
    record: ObjectInfo | None = None
    descriptor: ObjectInfo | None = None
    foreign: list[str] = field(default_factory=list)
    """Paths below ``sheets/`` of what no sheet has."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing: of a prefix that was deleted, a directory remains."""
        return not (self.tiles or self.thumbnail or self.record or self.descriptor or self.foreign)

    def surplus(self, ref: UploadRef, pyramid: Pyramid | None) -> list[str]:
        """The keys of what a sheet of this pyramid does not have; without one, of what no sheet has."""
        tiles = [info.key for name, info in self.tiles.items() if pyramid is not None and not is_tile_of(pyramid, name)]
        return [*(ref.sheets_prefix + path for path in self.foreign), *tiles]

    @classmethod
    def of(cls, bucket: Bucket, ref: UploadRef, number: int) -> Self:
        """Lists; blocks.

        Raises:
            BucketError: The bucket failed.
        """
        listing = cls(number)
        tiles_prefix = ref.tiles_prefix(number)
        for info in bucket.objects(ref.sheet_prefix(number)):
            name = info.key.removeprefix(tiles_prefix)
            if name != info.key and parse_tile_name(name):
                listing.tiles[name] = info
            elif info.key == ref.thumbnail(number):
                listing.thumbnail = info
            elif info.key == ref.descriptor(number):
                listing.descriptor = info
            elif info.key == ref.sheet_record(number):
                listing.record = info
            else:
                listing.foreign.append(info.key.removeprefix(ref.sheets_prefix))
        return listing


def _accepted(bucket: Bucket, ref: UploadRef, problems: list[str]) -> UploadOptions | None:
    found: list[str] = []
    record = _read(bucket, UploadRecord, ref.record, found, required=True)
    if found == [_missing_object(ref.record)]:
        msg = f"there is no upload {ref}"
        raise UploadNotFound(msg)
    problems += found
    if record is not None and record.deleted_at is not None:
        msg = f"the upload {ref} was deleted"
        raise UploadNotFound(msg)
    return record.options if record else None


def _manifest(bucket: Bucket, ref: UploadRef, problems: list[str]) -> Snapshot | None:
    manifest = _read(bucket, Snapshot, ref.manifest, problems)
    if manifest is None:
        return None
    counts = (manifest.total_pages, manifest.completed_pages, *(sheet.number for sheet in manifest.sheets))
    if not all(type(count) is int and count >= 0 for count in counts):
        problems.append("manifest.json cannot be read: its counts are not whole numbers")
        return None
    return manifest


def _missing_object(key: str) -> str:
    return f"{key.rsplit('/', 1)[-1]} is missing"


def _read(bucket: Bucket, kind: type[T], key: str, problems: list[str], *, required: bool = False, refuse_newer: bool = False) -> T | None:
    """A record, or None and what is wrong with it."""
    try:
        return from_json(kind, bucket.get(key).body)
    except ObjectMissing:
        if required:
            problems.append(_missing_object(key))
    except (ValueError, NewerSchema) as error:
        if refuse_newer and isinstance(error, NewerSchema):
            raise
        problems.append(f"{key.rsplit('/', 1)[-1]} cannot be read: {error}")
    return None


def _contradictions(progress: Snapshot, states: dict[int, SheetState]) -> Iterator[str]:
    """Where the progress disagrees with itself."""
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
    """The pyramid of ``sheet.json``, or else that of the progress, if either is known."""
    if record is not None:
        told: list[tuple[str, object, object, str]] = [("number", record.number, number, "its key")]
        for source, where, names in (
            (options, "upload.json", ("tile_size", "overlap", "quality")),
            (state, "the progress", ("width", "height", "dpi", "scaled", "tiles", "bytes")),
        ):
            # What the progress does not say (None), of a sheet that it does not have ready, cannot be contradicted.
            theirs = {name: value for name in names if (value := getattr(source, name, None)) is not None}
            told += [(name, getattr(record, name), value, where) for name, value in theirs.items()]
        problems += [f"sheet.json says {name} {ours!r}, {where} says {other!r}" for name, ours, other, where in told if ours != other]
        numbers = (record.width, record.height, record.tile_size, record.overlap)
        if all(type(value) is int for value in numbers):
            try:
                return Pyramid(*numbers)
            except ValueError as error:
                problems.append(f"sheet.json: {error}")
        else:
            problems.append("sheet.json: its sizes are not whole numbers")
    if state is not None and options is not None and state.width and state.height:
        return Pyramid(state.width, state.height, options.tile_size, options.overlap)
    return None


def is_tile_of(pyramid: Pyramid, name: str) -> bool:
    """Whether the pyramid has the tile called ``{level}/{col}_{row}.jpeg``."""
    tile = parse_tile_name(name)
    return tile is not None and pyramid.has_tile(*tile)


def _missing(pyramid: Pyramid, tiles: dict[str, ObjectInfo], count: int) -> tuple[str, ...]:
    # Lazily: a broken sheet.json may claim more tiles than memory holds.
    names = (name for tile in pyramid.tiles() if (name := tile_name(*tile)) not in tiles)
    return tuple(itertools.islice(names, min(count, NAMED)))


def _check_descriptor(bucket: Bucket, key: str, info: ObjectInfo | None, pyramid: Pyramid, problems: list[str]) -> None:
    try:
        if info is None:
            problems.append(NO_DESCRIPTOR)
        elif bucket.get(key).body != pyramid.descriptor().encode():
            problems.append(f"the .dzi does not describe {pyramid.width} x {pyramid.height} px as it should")
    except ObjectMissing:
        problems.append(NO_DESCRIPTOR)


def _disagreements(record: SheetRecord, tiles: int, size_bytes: int) -> Iterator[str]:
    if record.tiles != tiles:
        yield f"sheet.json says {record.tiles!r} tiles, its size makes {tiles}"
    if record.bytes != size_bytes:
        yield f"sheet.json says the tiles have {record.bytes!r} bytes, they have {size_bytes}"


def _etags(tiles: Mapping[str, ObjectInfo]) -> dict[str, str] | None:
    """The MD5s that the ETags of a LIST seem to be, by name; None if one is none.

    The ETag of an object that was put in one part: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    md5s = {}
    for name, info in tiles.items():
        match = _MD5.fullmatch(info.etag or "")
        if match is None:
            return None
        md5s[name] = match[1]
    return md5s


def _is_md5(bucket: Bucket, info: ObjectInfo) -> bool:
    """Whether a tile's ETag is really its MD5: that of an encrypted object (SSE-KMS) only looks like one."""
    try:
        stored = bucket.get(info.key)
    except ObjectMissing:
        return True
    return _etags({"": stored.info}) == {"": _md5(stored.body)}


def _md5(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def _read_back(
    bucket: Bucket, thumbnail: ObjectInfo | None, tiles: Mapping[str, ObjectInfo], pyramid: Pyramid, problems: list[str]
) -> dict[str, str] | None:
    """Reads and decodes every tile and the thumbnail; the MD5s of the tiles by name, or None if one could not be read."""
    md5s = {}
    found = _Names()
    whole: set[tuple[str, int, int]] = set()
    """A third of a plan's tiles are the same white one: what was decoded once is not again."""
    with Decoder() as decoder:

        def read(what: str, info: ObjectInfo, width: int, height: int) -> str | None:
            if info.size > LARGEST_TILE_BYTES:
                found.add([f"{what} has {info.size:,} bytes, no JPEG of ours more than {LARGEST_TILE_BYTES:,}"])
                return None
            try:
                body = bucket.get(info.key).body
            except ObjectMissing:
                found.add([f"{what} has disappeared meanwhile"])
                return None
            md5 = _md5(body)
            if (md5, width, height) not in whole:
                if problem := decoder.problem(body, width, height):
                    found.add([f"{what} {problem}"])
                else:
                    whole.add((md5, width, height))
            return md5

        if thumbnail is not None and thumbnail.size:
            read("thumbnail.jpeg", thumbnail, 0, 0)
        for name, info in tiles.items():
            tile = parse_tile_name(name)
            if tile is not None and info.size and (md5 := read(f"tile {name}", info, *pyramid.tile_rectangle(*tile)[2:])):
                md5s[name] = md5
    problems += found.first
    if found.count > NAMED:
        problems.append(f"{found.count - NAMED:,} more JPEGs are broken")
    return md5s if md5s.keys() == tiles.keys() else None


class Decoder:
    """A process that decodes JPEGs: ``activities.render.decode``, whose libraries, crashes and hangs stay there. A context manager.

    Args:
        answer_s: How long an answer about an image may take, in seconds.

    Raises:
        RenderCrashed: It cannot be started.
    """

    def __init__(self, answer_s: float = ANSWER_S) -> None:
        self._answer_s = answer_s
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "activities.render.decode"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libvips warns there
            cwd=Path(__file__).parents[2],
            env={name: value for name, value in os.environ.items() if name in _KEPT_ENVIRONMENT} | {"VIPS_CONCURRENCY": "1"},
        )
        self._requests, self._answers = cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)
        if not self._ask(b"", ANSWER_S):
            msg = f"the process that decodes JPEGs did not start: it {self._end()}"
            raise RenderCrashed(msg)

    def _ask(self, request: bytes, answer_s: float) -> bytes:
        """The answer, one line; not a whole one when the process has died, or was killed because it gave none."""
        self._killed_after_s: float | None = None
        timer = threading.Timer(answer_s, self._kill, [answer_s])
        timer.daemon = True
        timer.start()
        try:
            self._requests.write(request)
            self._requests.flush()
            return self._answers.readline()
        except BrokenPipeError:
            return b""
        finally:
            timer.cancel()
            timer.join()  # else it might kill the process that is asked next

    def _kill(self, after_s: float) -> None:
        self._killed_after_s = after_s
        self._process.kill()

    def problem(self, body: bytes, width: int, height: int) -> str:
        """What is wrong with a JPEG that must be so many pixels; empty if nothing is. 0 x 0 stands for a thumbnail's size."""
        how = ""
        for _ in range(2):  # a process may also die of something else: only what breaks a fresh one, too, is to blame
            answer = self._ask(_REQUEST.pack(width, height, len(body)) + body, self._answer_s)
            if answer.endswith(b"\n"):
                return answer.decode().rstrip("\n")
            how = self._end()
            self._start()
        return f"broke the decoder, which {how}"

    @property
    def pid(self) -> int:
        """The process now."""
        return self._process.pid

    def _end(self) -> str:
        """Ends it, and says how it did."""
        with suppress(BrokenPipeError):
            self._requests.close()
        self._answers.close()
        try:
            code = self._process.wait(self._answer_s)
        except subprocess.TimeoutExpired:
            self._kill(self._answer_s)
            code = self._process.wait()
        if self._killed_after_s is not None:
            return f"gave no answer within {self._killed_after_s:g} s and was killed"
        return f"ended with exit code {code}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()


def in_window(work: Callable[[S], T], items: Iterable[S]) -> Generator[T, None, None]:
    """``map``, by some threads that are never far ahead of whoever takes the results."""
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
