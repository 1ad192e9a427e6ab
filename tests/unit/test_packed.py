"""Packed sheets, and sheets in both layouts: how they are written, verified and repaired, in a directory and on an S3 server."""

import gzip
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.bucket import pmtiles
from activities.bucket.dzi import Pyramid
from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.packed import read_packed
from activities.bucket.records import Layout, SheetRecord, SheetState, SheetStatus, UploadOptions, UploadRecord, from_json, to_json
from activities.bucket.report import Proof, Repair, SheetReport, UploadReport
from activities.bucket.storage import LARGEST_PUT_BYTES, PART_BYTES, Bucket, etag_of
from activities.bucket.uploads import UploadStore
from activities.bucket.verify import verify_upload
from activities.errors import DamagedRecord, ObjectMissing, StorageUnavailable, TilesMissing
from activities.host import Host
from activities.interface import CheckedSheets, CheckSheets, ListSheets, Page, TiledPage, UploadPage, host_queue
from activities.render.child import ChildPool
from activities.render.tilefile import THUMBNAIL, TILES, write_tile_file
from activities.scratch import Scratch
from activities.threads import FairThreads
from tests.unit.sheets import NAMES, PYRAMID, REF, Md5Bucket, accept, etag, jpeg, put_sheet, put_upload
from worker.app import Activities

LAYOUTS = list(Layout)
WITH_ARCHIVE = [Layout.PACKED, Layout.BOTH]


@pytest.fixture(params=["directory", "s3"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Bucket:
    """An empty bucket, of each kind."""
    if request.param == "directory":
        return Bucket(BucketSettings((tmp_path / "bucket").as_uri()))
    return Bucket(request.getfixturevalue("s3_server").new_bucket())


@pytest.fixture
async def host(bucket: Bucket, tmp_path: Path) -> AsyncIterator[Host]:
    """A host that has tiled no page yet."""
    with (
        FairThreads(2, "bucket") as threads,
        FairThreads(1, "upload") as uploads,
        closing(Scratch(tmp_path / "scratch", 1 << 30, 3)) as scratch,
    ):
        yield Host(bucket=bucket, scratch=scratch, children=ChildPool(1), threads=threads, uploads=uploads)


def tiled(host: Host, layout: Layout, pyramid: Pyramid = PYRAMID, *, shade: int = 0) -> UploadPage:
    """A tiled page on the scratch, of real JPEGs."""
    page = host.scratch.new_page(REF, 1)
    (page / THUMBNAIL).write_bytes(jpeg(150, 100))
    with (page / TILES).open("wb") as file:
        tiles = (
            (tile, jpeg(*pyramid.tile_rectangle(*tile)[2:], shade=(shade + number) % 256)) for number, tile in enumerate(pyramid.tiles())
        )
        write_tile_file(file, tiles, ())
    transform = (4.0, 0.0, 0.0, -4.0, 0.0, 200.0)
    result = TiledPage(host_queue(host.scratch.host), host.scratch.publish(page), {"pretended": "1"}, transform=transform)
    options = UploadOptions(tile_size=pyramid.tile_size, overlap=pyramid.overlap, layout=layout)
    return UploadPage(str(REF), Page(1, "A-101", pyramid.width, pyramid.height, 300), options, result)


async def upload(host: Host, args: UploadPage) -> SheetRecord:
    """The ``sheet.json`` in the result of ``upload_page``."""
    accept(host.bucket, layout=args.options.layout)
    sheet = await ActivityEnvironment().run(Activities(host).upload_page, args)
    return SheetRecord(**{field.name: getattr(sheet, field.name) for field in fields(SheetRecord)})


class Watched:
    """Notes each change of a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.done: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        """Every other method is the bucket's own; those that write are noted."""
        method = getattr(self._bucket, name)

        def put(key: str, *arguments: object) -> None:
            self.done.append(("put", key.removeprefix(REF.sheet_prefix(1))))
            method(key, *arguments)

        return put if name in ("put", "put_seen", "put_archive", "put_archive_seen") else method

    def put_all(self, objects: Iterable[tuple[str, bytes]]) -> None:
        """One after the other."""
        for key, body in objects:
            self.put(key, body)

    def delete(self, keys: Iterable[str]) -> None:
        """Notes the keys."""
        keys = list(keys)
        self.done += [("delete", key.removeprefix(REF.sheet_prefix(1))) for key in keys]
        self._bucket.delete(keys)


def watched(host: Host) -> tuple[Host, list[tuple[str, str]]]:
    """The host with a bucket that notes each change, and the notes."""
    bucket = Watched(host.bucket)
    return replace(host, bucket=cast("Bucket", bucket)), bucket.done


async def test_object_of_a_packed_sheet_comes_last(host: Host) -> None:
    """Thumbnail, ``sheet.json``, ``.pmtiles``: three writes."""
    noting, done = watched(host)
    await upload(noting, tiled(host, Layout.PACKED))
    assert [key for verb, key in done if verb == "put"][1:] == ["thumbnail.jpeg", "sheet.json", "tiles/sheet-1.pmtiles"]
    assert {info.key for info in host.bucket.objects(REF.sheet_prefix(1))} == {
        REF.thumbnail(1),
        REF.sheet_record(1),
        REF.archive(1),
    }


async def test_dzi_of_a_sheet_in_both_layouts_comes_last(host: Host) -> None:
    """Tiles, ``.pmtiles``, ``sheet.json``, ``.dzi``."""
    noting, done = watched(host)
    await upload(noting, tiled(host, Layout.BOTH))
    keys = [key for verb, key in done if verb == "put"][1:]
    assert keys[0] == "thumbnail.jpeg"
    assert {key.removeprefix("tiles/sheet-1_files/") for key in keys[1:-3]} == set(NAMES)
    assert keys[-3:] == ["tiles/sheet-1.pmtiles", "sheet.json", "tiles/sheet-1.dzi"]


async def test_every_layout_has_the_same_tiles_and_the_same_digest(host: Host) -> None:
    """The object's tiles are the exploded ones, byte for byte; only layout and ETag differ in ``sheet.json``."""
    records, archives, tiles = [], [], list[bytes]()
    for layout in LAYOUTS:
        host.bucket.delete([info.key for info in list(host.bucket.objects(REF.sheet_prefix(1)))])
        record = await upload(host, tiled(host, layout))
        assert from_json(SheetRecord, host.bucket.get(REF.sheet_record(1)).body) == record
        assert UploadStore(host.bucket).committed(REF, 1) == record
        assert record.layout is layout
        if layout.has_archive:
            body = host.bucket.get(REF.archive(1)).body
            archives.append(body)
            assert record.etag == etag(body) == etag_of([body], len(body))
            packed = read_packed(host.bucket, REF.archive(1))
            places = [packed.index.place(*tile) for tile in PYRAMID.tiles()]
            assert [body[place[0] : sum(place)] for place in places if place] == tiles
            assert packed.index.metadata["transform"] == [4.0, 0.0, 0.0, -4.0, 0.0, 200.0]
        else:
            tiles = [host.bucket.get(REF.tiles_prefix(1) + name).body for name in NAMES]
        records.append(replace(record, layout=Layout.EXPLODED, etag=None))
    assert records[0] == records[1] == records[2]
    assert archives[0] == archives[1]


@pytest.mark.parametrize("layout", WITH_ARCHIVE)
async def test_sheet_of_another_size_loses_its_marker_first(host: Host, layout: Layout) -> None:
    """Nothing of the earlier sheet is left."""
    await upload(host, tiled(host, layout))
    half = Pyramid(150, 100, 128, 1)
    noting, done = watched(host)
    await upload(noting, tiled(host, layout, half))
    changes = [change for change in done if change != ("put", REF.record)]
    assert changes[0 if layout is Layout.BOTH else 1][0] == "delete"
    assert changes[-1] == ("put", "tiles/sheet-1.dzi" if layout.has_tiles else "tiles/sheet-1.pmtiles")
    (report, _) = verify_upload(host.bucket, REF)
    assert (report.verified, report.expected) == (True, half.tile_count)


async def test_retried_upload_keeps_the_sheet_committed(host: Host) -> None:
    """The answer of the first attempt was lost: nothing is deleted."""
    for layout in LAYOUTS:
        host.bucket.delete([info.key for info in list(host.bucket.objects(REF.sheet_prefix(1)))])
        await upload(host, tiled(host, layout))
        noting, done = watched(host)
        await upload(noting, tiled(host, layout))
        assert not [key for verb, key in done if verb == "delete"]


@pytest.mark.parametrize("before", LAYOUTS)
@pytest.mark.parametrize("after", LAYOUTS)
async def test_sheet_changes_its_layout(host: Host, before: Layout, after: Layout) -> None:
    """An upload over a sheet of another layout leaves no object of it."""
    await upload(host, tiled(host, before))
    await upload(host, tiled(host, after))
    (report, _) = verify_upload(host.bucket, REF)
    assert isinstance(report, SheetReport)
    assert (report.verified, report.layout, report.foreign_count) == (True, after, 0)


async def test_deleted_upload_gets_no_packed_sheet(host: Host) -> None:
    """The mark is read just before the object is written."""
    args = tiled(host, Layout.PACKED)
    accept(host.bucket, deleted_at="2026-01-31T09:31:00.000Z", layout=Layout.PACKED)
    with pytest.raises(ApplicationError) as failure:
        await ActivityEnvironment().run(Activities(host).upload_page, args)
    assert (failure.value.type, failure.value.non_retryable) == ("UploadNotFound", True)
    with pytest.raises(ObjectMissing):
        host.bucket.head(REF.archive(1))


class LossyBucket(Bucket):
    """A bucket that confirms writes of a ``.pmtiles`` and does something else."""

    def __init__(self, settings: BucketSettings, instead: Callable[[bytes], bytes | None]) -> None:
        super().__init__(settings)
        self.instead = instead

    @property
    def answers_prove_writes(self) -> bool:
        """Like those of an S3 server, its answers prove no write."""
        return False

    def put_archive(self, key: str, chunks: Iterable[bytes], size_bytes: int) -> None:
        """Writes something else."""
        body = self.instead(b"".join(chunks))
        if body is not None:
            super().put_archive(key, [body], len(body))


@pytest.mark.parametrize(
    ("layout", "instead"),
    [
        (Layout.PACKED, lambda _: None),
        (Layout.PACKED, lambda body: body[:-1]),
        (Layout.PACKED, lambda body: body[:200] + b"?" + body[201:]),
        (Layout.BOTH, lambda _: None),
        (Layout.BOTH, lambda body: body[:-1]),
    ],
    ids=["lost", "cut off", "another index", "lost beside tiles", "cut off beside tiles"],
)
async def test_lost_object_is_noticed(host: Host, tmp_path: Path, layout: Layout, instead: Callable[[bytes], bytes | None]) -> None:
    """The object is looked at after it was written: an answer proves nothing. Then the upload is tried again."""
    bucket = LossyBucket(BucketSettings((tmp_path / "lossy").as_uri()), instead)
    with pytest.raises(ApplicationError, match=r"said that it has written .*sheet-1\.pmtiles") as failure:
        await upload(replace(host, bucket=bucket), tiled(host, layout))
    assert (failure.value.type, failure.value.non_retryable) == (StorageUnavailable.__name__, False)
    bucket.instead = lambda body: body
    await upload(replace(host, bucket=bucket), tiled(host, layout))
    assert UploadStore(bucket).committed(REF, 1) is not None


def check(bucket: Bucket, *, deep: bool = False) -> tuple[list[SheetReport], UploadReport]:
    """The reports of the sheets and of the upload."""
    *sheets, total = verify_upload(bucket, REF, deep=deep)
    assert isinstance(total, UploadReport)
    return [sheet for sheet in sheets if isinstance(sheet, SheetReport)], total


@pytest.mark.parametrize("layout", WITH_ARCHIVE)
@pytest.mark.parametrize("deep", [False, True])
def test_untouched_upload_verifies(bucket: Bucket, layout: Layout, deep: bool) -> None:
    """On an S3 server the LIST proves every byte; in a directory only reading does."""
    put_upload(bucket, layout=layout)
    sheets, total = check(bucket, deep=deep)
    proof = Proof.NAMES if bucket.answers_prove_writes and not deep else Proof.DIGEST
    assert [(sheet.verified, sheet.expected, sheet.found, sheet.proof, sheet.layout) for sheet in sheets] == [
        (True, len(NAMES), len(NAMES), proof, layout)
    ] * 2
    assert (total.verified, total.proof) == (True, proof)


def wider(body: bytes) -> bytes:
    """The object of a sheet that is a pixel wider, by its metadata."""
    at, size = struct.unpack_from("<QQ", body, 24)
    metadata = gzip.decompress(body[at : at + size]).replace(b'"width":300', b'"width":301')
    return body[:at] + pmtiles._stored(metadata) + body[at + size :]


@pytest.mark.parametrize("layout", WITH_ARCHIVE)
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda _: None, "the .pmtiles is missing"),
        (lambda _: b"x" * 500, "the .pmtiles cannot be read: it is no PMTiles archive"),
        (lambda body: body[:-1], "the .pmtiles cannot be read: it has"),
        (lambda _: b"", "the .pmtiles cannot be read: it is no PMTiles archive"),
        (lambda body: body[:140], "the .pmtiles cannot be read: its index is cut off"),
        (wider, "the .pmtiles does not describe 300 x 200 px"),
    ],
    ids=["missing", "other", "cut off", "empty", "cut in the index", "other size"],
)
def test_broken_object_is_told(bucket: Bucket, layout: Layout, change: Callable[[bytes], bytes | None], told: str) -> None:
    """Without reading the tiles."""
    put_upload(bucket, layout=layout)
    body = change(bucket.get(REF.archive(1)).body)
    if body is None:
        bucket.delete([REF.archive(1)])
    else:
        bucket.put(REF.archive(1), body)
    (sheet, other), total = check(bucket)
    assert (sheet.verified, other.verified, total.verified, sheet.repair) == (False, True, False, Repair.TILE)
    assert any(problem.startswith(told) for problem in sheet.problems), sheet.problems


@pytest.mark.parametrize("layout", WITH_ARCHIVE)
def test_wrong_bytes_in_the_object_are_found(bucket: Bucket, layout: Layout) -> None:
    """By the ETag where it is an MD5; in a directory by reading."""
    put_upload(bucket, layout=layout)
    body = bytearray(bucket.get(REF.archive(1)).body)
    body[-3] ^= 1
    bucket.put(REF.archive(1), bytes(body))
    assert check(bucket)[1].verified == bucket.answers_prove_writes
    (sheet, _), total = check(bucket, deep=True)
    assert (total.verified, any("other bytes than were written" in problem for problem in sheet.problems)) == (False, True)


def test_tile_in_the_object_that_is_no_jpeg_is_named(bucket: Bucket) -> None:
    """Deep verification decodes it."""
    put_upload(bucket, layout=Layout.PACKED)
    body = bucket.get(REF.archive(1)).body
    place = read_packed(bucket, REF.archive(1)).index.place(0, 0, 0)
    assert place
    bucket.put(REF.archive(1), body[: place[0]] + bytes(place[1]) + body[sum(place) :])
    (sheet, _), _ = check(bucket, deep=True)
    assert any(problem.startswith("tile 0/0_0.jpeg in the .pmtiles ") for problem in sheet.problems)


def test_objects_of_another_layout_are_foreign(bucket: Bucket) -> None:
    """``sheet.json`` says which objects a sheet has."""
    put_upload(bucket, layout=Layout.PACKED)
    put_sheet(bucket, 2, layout=Layout.BOTH)
    put_sheet(bucket, 2, layout=Layout.EXPLODED)
    bucket.put(REF.descriptor(1), PYRAMID.descriptor().encode())
    bucket.put(REF.tiles_prefix(1) + NAMES[0], b"x")
    (first, second), total = check(bucket)
    assert set(first.foreign) == {"sheet-1/tiles/sheet-1.dzi", f"sheet-1/tiles/sheet-1_files/{NAMES[0]}"}
    assert second.foreign == ("sheet-2/tiles/sheet-2.pmtiles",)
    assert (first.repair, second.repair, total.verified) == (Repair.PRUNE, Repair.PRUNE, False)


def test_archive_alone_commits_no_sheet_in_both_layouts(bucket: Bucket) -> None:
    """It is written before ``sheet.json`` and the ``.dzi``. So the sheet is still being made."""
    accept(bucket, layout=Layout.BOTH)
    put_sheet(bucket, 1, layout=Layout.BOTH)
    bucket.delete([REF.descriptor(1)])
    (sheet,), _ = check(bucket)
    assert (sheet.status, sheet.problems) == (SheetStatus.PENDING, ())
    assert UploadStore(bucket).committed(REF, 1) is None


async def test_sheet_sent_in_both_layouts_and_packed_since_is_committed(bucket: Bucket) -> None:
    """Also when nothing but the bucket is left: the manifest is lost, and the progress knows the sheet as pending."""
    accept(bucket, layout=Layout.BOTH)
    state = put_sheet(bucket, 1, layout=Layout.PACKED)
    (sheet,), _ = check(bucket)
    assert (sheet.verified, sheet.layout) == (True, Layout.PACKED)
    checked = await reconcile(bucket, replace(state, status=SheetStatus.PENDING, tiles=None, bytes=None), repair=True)
    assert ([record.number for record in checked.committed], checked.broken) == ([1], ())


def activities(bucket: Bucket) -> Activities:
    """The activities of a host that has nothing but a bucket."""
    return Activities(
        Host(bucket=bucket, scratch=cast("Scratch", None), children=ChildPool(1), threads=FairThreads(2, "t"), uploads=FairThreads(1, "u"))
    )


async def reconcile(bucket: Bucket, *sheets: SheetState, **how: bool) -> CheckedSheets:
    """The result of ``check_sheets``."""
    return await ActivityEnvironment().run(activities(bucket).check_sheets, CheckSheets(str(REF), sheets, **how))


@pytest.mark.parametrize("layout", WITH_ARCHIVE)
async def test_broken_sheet_loses_its_markers(bucket: Bucket, layout: Layout) -> None:
    """Then it is not committed any more, also for a later run; the other sheet still is."""
    manifest = put_upload(bucket, layout=layout)
    assert await reconcile(bucket, *manifest.sheets) == CheckedSheets()
    bucket.put(REF.archive(1), bucket.get(REF.archive(1)).body[:-1])
    checked = await reconcile(bucket, *manifest.sheets)
    assert [sheet.number for sheet in checked.broken] == [1]
    state = await ActivityEnvironment().run(activities(bucket).list_sheets, ListSheets(str(REF)))
    assert [(record.number, record.layout) for record in state.committed] == [(2, layout)]
    left = {info.key for info in bucket.objects(REF.sheet_prefix(1))}
    assert not left & {REF.descriptor(1), REF.archive(1)}


@pytest.mark.parametrize("layout", WITH_ARCHIVE)
async def test_lost_object_is_found_and_stored_object_is_counted(bucket: Bucket, layout: Layout) -> None:
    """A sheet without its object is broken; a whole sheet that the progress lacks is counted."""
    manifest = put_upload(bucket, layout=layout)
    bucket.delete([REF.archive(1)])
    first, second = manifest.sheets
    checked = await reconcile(bucket, first, replace(second, status=SheetStatus.PENDING, tiles=None, bytes=None))
    assert [sheet.number for sheet in checked.broken] == [1]
    assert [(record.number, record.layout, record.transform) for record in checked.committed] == [(2, layout, None)]


async def test_surplus_of_another_layout_is_pruned(bucket: Bucket) -> None:
    """A conversion that was interrupted leaves objects that the sheet does not own."""
    manifest = put_upload(bucket, layout=Layout.PACKED)
    put_sheet(bucket, 1, layout=Layout.BOTH)
    put_sheet(bucket, 1, layout=Layout.PACKED)
    assert check(bucket)[1].foreign_count == len(NAMES) + 1
    checked = await reconcile(bucket, *manifest.sheets)
    assert (checked.broken, checked.removed) == ((), len(NAMES) + 1)
    assert check(bucket)[1].verified


async def test_unfinished_sheet_is_discarded_whole(bucket: Bucket) -> None:
    """Also its ``.pmtiles``."""
    accept(bucket, layout=Layout.BOTH)
    put_sheet(bucket, 1, layout=Layout.BOTH)
    bucket.delete([REF.descriptor(1)])
    await reconcile(bucket, SheetState(1, SheetStatus.PENDING, 1, None, 300, 200, 300), discard=True)
    assert not list(bucket.objects(REF.sheet_prefix(1)))


@pytest.mark.parametrize("size", [1, LARGEST_PUT_BYTES, LARGEST_PUT_BYTES + 1, LARGEST_PUT_BYTES + PART_BYTES // 2])
def test_etag_of_an_archive_is_known_before_it_is_sent(bucket: Bucket, size: int) -> None:
    """In one PUT or in parts, the S3 server computes the same; the bytes arrive as they were."""

    def chunks() -> Iterable[bytes]:
        for at in range(0, size, 1_000_003):
            yield bytes([at // 1_000_003 % 256]) * min(1_000_003, size - at)

    bucket.put_archive("a/b.pmtiles", chunks(), size)
    info = bucket.head("a/b.pmtiles")
    assert info.size == size
    assert etag(bucket.get("a/b.pmtiles").body) == etag(b"".join(chunks()))
    if not bucket.answers_prove_writes:
        assert info.etag == f'"{etag_of(chunks(), size)}"'


@pytest.mark.parametrize("size", [1 << 20, LARGEST_PUT_BYTES + PART_BYTES])
def test_tile_file_that_is_cut_off_leaves_no_object(bucket: Bucket, size: int) -> None:
    """The named error of the tile file comes through, and the earlier object stays."""
    bucket.put("a/b.pmtiles", b"earlier")

    def chunks() -> Iterable[bytes]:
        for _ in range(0, size - (1 << 20), 1 << 20):
            yield bytes(1 << 20)
        msg = "cut off"
        raise TilesMissing(msg)

    with pytest.raises(TilesMissing, match="cut off"):
        bucket.put_archive("a/b.pmtiles", chunks(), size)
    assert bucket.get("a/b.pmtiles").body == b"earlier"
    assert [info.key for info in bucket.objects("")] == ["a/b.pmtiles"]


def test_range_of_a_replaced_object_is_missing(bucket: Bucket) -> None:
    """So an old index reads no new object."""
    bucket.put("a", b"0123456789")
    stored = bucket.get_range("a", 2, 5)
    assert (stored.body, stored.info.size) == (b"234", 10)
    assert bucket.get_range("a", 8, 50, stored.info.etag).body == b"89"
    assert bucket.get_range("a", 10, 50).body == b""
    bucket.put("a", b"abcdefghij!")
    with pytest.raises(ObjectMissing):
        bucket.get_range("a", 2, 5, stored.info.etag)
    with pytest.raises(ObjectMissing):
        bucket.get_range("b", 2, 5)


def test_archive_that_is_no_archive_is_a_damaged_record(bucket: Bucket) -> None:
    """The error has the key."""
    bucket.put(REF.archive(1), b"no archive")
    with pytest.raises(DamagedRecord, match=r"sheet-1\.pmtiles cannot be read: it is no PMTiles archive"):
        read_packed(bucket, REF.archive(1))


def test_etag_of_the_list_proves_a_packed_sheet(tmp_path: Path) -> None:
    """Nothing of the object is read."""

    class NoRanges(Md5Bucket):
        def get_range(self, key: str, start: int, end: int, etag: str | None = None) -> Any:
            raise AssertionError(key)

    bucket = NoRanges(BucketSettings(tmp_path.as_uri()))
    put_upload(bucket, layout=Layout.PACKED)
    assert check(bucket)[1].proof is Proof.DIGEST


async def test_upload_of_an_earlier_release_is_exploded(bucket: Bucket) -> None:
    """Its records do not name a layout."""
    put_upload(bucket)
    for key, kind in ((REF.record, UploadRecord), (REF.sheet_record(1), SheetRecord)):
        text = to_json(from_json(cast("type[Any]", kind), bucket.get(key).body)).replace(b',"layout":"exploded"', b"")
        assert b"layout" not in text
        bucket.put(key, text)
    assert check(bucket)[1].verified
    assert UploadRef.parse(str(REF)) == REF
    committed = UploadStore(bucket).committed(REF, 1)
    assert committed
    assert committed.layout is Layout.EXPLODED
