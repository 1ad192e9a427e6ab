"""``upload_page`` over a real directory: the order of its writes, and the leftovers of a killed attempt."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.bucket.dzi import Pyramid, tile_name
from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import Layer, Note, SheetRecord, UploadOptions, UploadRecord, from_json, scaled_note, to_json
from activities.bucket.report import SheetReport
from activities.bucket.storage import Bucket, StoredObject
from activities.bucket.verify import verify_upload
from activities.errors import StorageUnavailable
from activities.host import Host
from activities.interface import Page, TiledPage, TilePage, UploadedSheet, UploadPage, host_queue
from activities.render.child import ChildPool
from activities.render.measure import USER_UNIT_UNCERTAIN
from activities.render.tilefile import THUMBNAIL, TILES, write_tile_file
from activities.scratch import Scratch
from activities.threads import FairThreads
from tests.resources import make_pdfs
from tests.resources.jpeg import outline
from tests.unit.sheets import Md5Bucket, accept, etag
from tests.waiting import until_async
from worker.app import Activities
from workflows.processing.progress import Progress

REF = UploadRef("acme", "tower", "a1", "u1")
PYRAMID = Pyramid(600, 300)
NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
RECORD = UploadRecord("plan.pdf", 9, "0" * 64, UploadOptions(), "2026-01-31T09:30:00.250Z")


class OrderedBucket(Bucket):
    """A real bucket that remembers the order of its writes."""

    def __init__(self, directory: Path) -> None:
        super().__init__(BucketSettings(directory.as_uri()))
        self.written: list[str] = []
        self.read: list[str] = []
        self.reached, self.open = threading.Event(), threading.Event()
        self.open.set()
        self.holds = ""
        self.failing: set[str] = set()

    def get(self, key: str) -> StoredObject:
        """Records the key."""
        self.read.append(key)
        return super().get(key)

    def put(self, key: str, body: bytes) -> None:
        """Waits until the bucket is open, if the key has ``holds`` in it; records the key once the object is written."""
        if self.holds in key:
            self.reached.set()
            self.open.wait(120)
        if key in self.failing:
            msg = "503"
            raise StorageUnavailable(msg)
        super().put(key, body)
        self.written.append(key)

    def put_all(self, objects: Iterable[tuple[str, bytes]]) -> None:
        """One after the other."""
        for key, body in objects:
            self.put(key, body)


@pytest.fixture
def bucket(tmp_path: Path) -> OrderedBucket:
    """A bucket with an accepted upload."""
    bucket = OrderedBucket(tmp_path / "bucket")
    bucket.put(REF.record, to_json(RECORD))
    bucket.written.clear()
    bucket.reached.clear()
    return bucket


@pytest.fixture
async def host(bucket: OrderedBucket, tmp_path: Path) -> AsyncIterator[Host]:
    """A host that has tiled no page yet."""
    with (
        FairThreads(2, "bucket") as threads,
        FairThreads(1, "upload") as uploads,
        closing(Scratch(tmp_path / "scratch", 1 << 30, 3)) as scratch,
    ):
        yield Host(bucket=bucket, scratch=scratch, children=ChildPool(1), threads=threads, uploads=uploads)


def tiled(host: Host, *, without: str = "", pyramid: Pyramid = PYRAMID) -> UploadPage:
    """A tiled page on the scratch, ``without`` one of its tiles."""
    page = host.scratch.new_page(REF, 1)
    (page / THUMBNAIL).write_bytes(outline(512, 256))
    with (page / TILES).open("wb") as file:
        tiles = ((tile, outline(*pyramid.tile_rectangle(*tile)[2:], tile_name(*tile).encode())) for tile in pyramid.tiles())
        write_tile_file(file, ((tile, jpeg) for tile, jpeg in tiles if tile_name(*tile) != without), ())
    result = TiledPage(host_queue(host.scratch.host), host.scratch.publish(page), {"pretended": "1"})
    return UploadPage(str(REF), Page(1, "A-101", pyramid.width, pyramid.height, 300), UploadOptions(), result)


@pytest.mark.parametrize("fails", [False, True])
async def test_thumbnail_is_in_the_bucket_before_the_tiles_are_sent(host: Host, bucket: OrderedBucket, fails: bool) -> None:
    """``tile_page`` writes the thumbnail and says so. If the bucket fails, the page is tiled all the same, and ``upload_page`` does it."""
    pdf = make_pdfs.plan_set(1)
    bucket.put(REF.source, pdf)
    bucket.put(REF.record, to_json(replace(RECORD, size_bytes=len(pdf), sha256=hashlib.sha256(pdf).hexdigest())))
    bucket.written.clear()
    bucket.failing = {REF.thumbnail(1)} if fails else set()
    freed: list[int] = []
    host = replace(host, free_render_slot=lambda: freed.append(len(bucket.written)))
    try:
        result = await ActivityEnvironment().run(Activities(host).tile_page, TilePage(str(REF), 1, 600, 300, UploadOptions()))
    finally:
        await host.children.close()
    assert result.thumbnail is not fails
    assert bucket.written == ([] if fails else [REF.thumbnail(1)])
    assert freed == [0]  # before the bucket was asked
    bucket.failing = set()
    args = UploadPage(str(REF), Page(1, "A-101", 600, 300, 300), UploadOptions(), result)
    await ActivityEnvironment().run(Activities(host).upload_page, args)
    assert bucket.written.count(REF.thumbnail(1)) == 1
    assert bucket.written[0] == REF.thumbnail(1)
    (report, _) = verify_upload(bucket, REF)
    assert (report.verified, report.problems) == (True, ())


async def test_layers_are_in_the_record_of_the_sheet(host: Host, bucket: OrderedBucket) -> None:
    """As they are drawn. The workflow, which does not need them, gets a record without."""
    pdf = make_pdfs.layered("/OFF [@B]", member="/OCGs [@A @B]")
    options = UploadOptions(layers={"A": False})
    bucket.put(REF.source, pdf)
    bucket.put(REF.record, to_json(replace(RECORD, size_bytes=len(pdf), sha256=hashlib.sha256(pdf).hexdigest(), options=options)))
    try:
        tiled = await ActivityEnvironment().run(Activities(host).tile_page, TilePage(str(REF), 1, 100, 100, options))
    finally:
        await host.children.close()
    record = await ActivityEnvironment().run(
        Activities(host).upload_page, UploadPage(str(REF), Page(1, None, 100, 100, 72), options, tiled)
    )
    stored = from_json(SheetRecord, bucket.get(REF.sheet_record(1)).body)
    assert stored.layers == (Layer("A", on=False), Layer("B", on=False))
    assert record == UploadedSheet(**vars(replace(stored, layers=())), committed_at=record.committed_at)


async def test_sheets_of_an_upload_are_sent_one_after_the_other(host: Host, bucket: OrderedBucket) -> None:
    """The tiles of the second sheet wait for those of the first one, so that the first one is ready as early as it can be."""
    tiles = {number: REF.tiles_prefix(number) for number in (1, 2)}
    args = {1: tiled(host), 2: tiled(host)}
    args[2] = replace(args[2], page=replace(args[2].page, number=2))
    bucket.open.clear()
    bucket.holds = "_files/"
    with FairThreads(1, "bucket") as threads, FairThreads(2, "upload") as uploads:
        activities = Activities(replace(host, threads=threads, uploads=uploads))
        first = asyncio.create_task(ActivityEnvironment().run(activities.upload_page, args[1]))
        await until_async(bucket.reached.is_set)
        second = asyncio.create_task(ActivityEnvironment().run(activities.upload_page, args[2]))
        await until_async(lambda: REF.thumbnail(2) in bucket.written)
        bucket.open.set()
        await asyncio.gather(first, second)
    sent = [key for key in bucket.written if "_files/" in key]
    assert [key.startswith(tiles[2]) for key in sent] == [False] * PYRAMID.tile_count + [True] * PYRAMID.tile_count


async def test_thumbnail_that_was_lost_meanwhile_is_written_again(host: Host, bucket: OrderedBucket) -> None:
    """An answer to a write is no proof: the LIST before the tiles tells."""
    args = tiled(host)
    await ActivityEnvironment().run(Activities(host).upload_page, replace(args, tiled=replace(args.tiled, thumbnail=True)))
    assert bucket.written[0] == REF.thumbnail(1)


async def test_commit_marker_is_written_last(host: Host, bucket: OrderedBucket) -> None:
    """The order is thumbnail, tiles, ``sheet.json``, ``.dzi``. Then the page is removed from the scratch."""
    record = await ActivityEnvironment().run(Activities(host).upload_page, tiled(host))
    tiles = {REF.tiles_prefix(1) + tile_name(*tile) for tile in PYRAMID.tiles()}
    assert bucket.written[0] == REF.thumbnail(1)
    assert set(bucket.written[1:-2]) == tiles
    assert bucket.written[-2:] == [REF.sheet_record(1), REF.descriptor(1)]
    assert record.tiles == PYRAMID.tile_count
    assert not host.scratch.has_pages


async def test_sheet_of_a_deleted_upload_is_not_committed(host: Host, bucket: OrderedBucket) -> None:
    """The mark is read just before the ``.dzi`` is written. A mark that was set meanwhile ends the activity for good."""
    args = tiled(host)
    Bucket.put(bucket, REF.record, to_json(replace(RECORD, deleted_at="2026-01-31T09:31:00.000Z")))
    with pytest.raises(ApplicationError) as failure:
        await ActivityEnvironment().run(Activities(host).upload_page, args)
    assert (failure.value.type, failure.value.non_retryable) == ("UploadNotFound", True)
    assert bucket.written[-1] == REF.sheet_record(1)


async def test_lost_tile_leaves_no_commit_marker(host: Host, bucket: OrderedBucket) -> None:
    """A tile that is neither in the archive nor blank makes TilesMissing."""
    with pytest.raises(ApplicationError) as failure:
        await ActivityEnvironment().run(Activities(host).upload_page, tiled(host, without="9/1_0.jpeg"))
    assert (failure.value.type, failure.value.non_retryable) == ("TilesMissing", True)
    assert REF.descriptor(1) not in bucket.written


class LossyBucket(Md5Bucket):
    """A bucket whose ETags are MD5s, like those of an S3 server, and that loses chosen writes."""

    def __init__(self, directory: Path) -> None:
        super().__init__(BucketSettings(directory.as_uri()))
        accept(Bucket(BucketSettings(directory.as_uri())), REF)
        self.lost: dict[str, bytes | None] = {}
        """The end of a key, and the body that is written instead; None if nothing is written."""
        self.written: list[str] = []

    @property
    def answers_prove_writes(self) -> bool:
        """Like those of an S3 server, its answers prove no write."""
        return False

    def put(self, key: str, body: bytes) -> None:
        """Writes the object, unless it is to be lost or replaced."""
        for end, instead in self.lost.items():
            if key.endswith(end):
                if instead is not None:
                    super().put(key, instead)
                return
        super().put(key, body)
        self.written.append(key)

    def put_all(self, objects: Iterable[tuple[str, bytes]]) -> None:
        """One after the other."""
        for key, body in objects:
            self.put(key, body)


@pytest.mark.parametrize(
    ("lost", "instead", "told"),
    [
        ("9/1_0.jpeg", None, "1 of 17 tiles of sheet 1, the first of them 9/1_0.jpeg"),
        ("9/1_0.jpeg", b"9/1_0", "1 of 17 tiles of sheet 1"),
        ("9/1_0.jpeg", b"9/0_0.jpeg", "1 of 17 tiles of sheet 1"),
        ("_0.jpeg", None, "14 of 17 tiles"),
        ("sheet.json", None, "sheet.json of sheet 1"),
        ("thumbnail.jpeg", b"", "thumbnail.jpeg of sheet 1"),
    ],
)
async def test_lost_write_leaves_no_commit_marker(host: Host, tmp_path: Path, lost: str, instead: bytes | None, told: str) -> None:
    """One LIST before the ``.dzi`` finds objects that are missing or not as they were sent. The tiles stay for the next attempt."""
    bucket = LossyBucket(tmp_path / "lossy")
    activities = Activities(replace(host, bucket=bucket))
    page = tiled(host)
    bucket.lost = {lost: instead}
    with pytest.raises(ApplicationError, match=told) as failure:
        await ActivityEnvironment().run(activities.upload_page, page)
    assert (failure.value.type, failure.value.non_retryable) == ("StorageUnavailable", False)
    assert REF.descriptor(1) not in bucket.written
    bucket.lost = {}
    await ActivityEnvironment().run(activities.upload_page, page)
    assert bucket.written[-1] == REF.descriptor(1)


async def test_tiles_in_the_bucket_are_not_written_again(host: Host, tmp_path: Path) -> None:
    """A repair, or the attempt after a killed one, writes only the tiles that are missing or wrong."""
    bucket = LossyBucket(tmp_path / "lossy")
    activities = Activities(replace(host, bucket=bucket))
    await ActivityEnvironment().run(activities.upload_page, tiled(host))
    before = {info.key: bucket.get(info.key).body for info in bucket.objects("")}
    missing, other, empty = (REF.tiles_prefix(1) + name for name in ("9/1_0.jpeg", "9/0_0.jpeg", "0/0_0.jpeg"))
    bucket.delete([missing, REF.descriptor(1)])
    bucket.put(other, b"9/1_0.jpeg")
    bucket.put(empty, b"")
    bucket.written.clear()
    await ActivityEnvironment().run(activities.upload_page, tiled(host))
    assert bucket.written[0] == REF.thumbnail(1)
    assert sorted(bucket.written[1:-2]) == sorted([missing, other, empty])
    assert bucket.written[-2:] == [REF.sheet_record(1), REF.descriptor(1)]
    assert {info.key: bucket.get(info.key).body for info in bucket.objects("")} == before


@pytest.mark.parametrize("is_committed", [False, True])
@pytest.mark.parametrize("kind", ["directory", "s3"])
async def test_sheet_of_another_size_has_no_tiles_of_the_earlier_one(
    host: Host, bucket: Bucket, request: pytest.FixtureRequest, kind: str, is_committed: bool
) -> None:
    """Its ``.dzi``, if it was committed, is removed before anything is written, and its tiles before the new ``.dzi`` is written."""
    if kind == "s3":
        bucket = Bucket(request.getfixturevalue("s3_server").new_bucket())
        bucket.put(REF.record, to_json(RECORD))
    done: list[tuple[str, str]] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(bucket, name)

        def put(self, key: str, body: bytes) -> None:
            done.append(("put", key))
            bucket.put(key, body)

        def put_all(self, objects: Iterable[tuple[str, bytes]]) -> None:
            for key, body in objects:
                self.put(key, body)

        def put_seen(self, key: str, body: bytes) -> None:
            done.append(("put", key))
            bucket.put_seen(key, body)

        def delete(self, keys: Iterable[str]) -> None:
            keys = list(keys)
            done.extend(("delete", key) for key in keys)
            bucket.delete(keys)

    activities = Activities(replace(host, bucket=cast("Bucket", Watched())))
    await ActivityEnvironment().run(activities.upload_page, tiled(host))
    assert not any(verb == "delete" for verb, _ in done)
    if not is_committed:
        bucket.delete([REF.descriptor(1)])
    bucket.put(REF.sheet_prefix(1) + "stray.txt", b"x")
    done.clear()
    half = Pyramid(300, 150)
    await ActivityEnvironment().run(activities.upload_page, tiled(host, pyramid=half))
    assert (done[0] == ("delete", REF.descriptor(1))) == is_committed
    assert done[-1] == ("put", REF.descriptor(1))
    tiles = {info.key.removeprefix(REF.tiles_prefix(1)) for info in bucket.objects(REF.tiles_prefix(1))}
    assert tiles == {tile_name(*tile) for tile in half.tiles()}
    (report, _) = verify_upload(bucket, REF)
    assert (report.verified, report.foreign_count, report.problems) == (True, 0, ())


async def test_sheets_of_two_cutters_verify_together(host: Host, bucket: OrderedBucket) -> None:
    """An upload may begin on a host with the cutter and go on, or be repaired, on one without: each sheet has its own digest."""
    source = host.scratch.new_page(REF, 9) / "plan.pdf"
    source.write_bytes(make_pdfs.plan_set(2))
    for number, dzsave in ((1, False), (2, True), (1, True)):
        pool = ChildPool(1, dzsave=dzsave)
        page = host.scratch.new_page(REF, number)
        try:
            made = await pool.tile_page("a", source, TilePage(str(REF), number, 600, 300, UploadOptions()), page, lambda: None)
        finally:
            await pool.close()
        result = TiledPage(host_queue(host.scratch.host), host.scratch.publish(page), made.engines, made.notes, made.chroma)
        args = UploadPage(str(REF), Page(number, None, 600, 300, 300), UploadOptions(), result)
        record = await ActivityEnvironment().run(Activities(host).upload_page, args)
        assert record.chroma == ("4:2:0" if dzsave else "4:4:4")
        report = next(report for report in verify_upload(bucket, REF) if isinstance(report, SheetReport) and report.number == number)
        assert (report.verified, report.problems) == (True, ())


async def test_notes_are_the_same_after_a_repair(host: Host, bucket: OrderedBucket) -> None:
    """``sheet.json`` is equal, letter for letter: counted notes come from the progress, and notes of the drawing are found again."""
    counted = (scaled_note(150, 300, "the page is large"), Note("UserUnitUncertain", USER_UNIT_UNCERTAIN))
    drawn = tuple(Note("FontMissing", f"The font number {number} of this page is not in the PDF.") for number in range(6))
    progress = Progress(NOW)
    progress.begin([replace(tiled(host).page, notes=counted)], [], NOW)

    async def make(notes: tuple[Note, ...]) -> bytes:
        args = tiled(host)
        page, found = replace(args.page, notes=progress.sheet(1).notes), replace(args.tiled, notes=notes)
        record = await ActivityEnvironment().run(Activities(host).upload_page, replace(args, page=page, tiled=found))
        progress.mark_ready([record], NOW)
        return bucket.get(REF.sheet_record(1)).body

    first = await make(drawn)
    assert b"MoreNotes" in first
    for _ in range(2):
        progress.reconcile([], [1], NOW)
        assert progress.sheet(1).notes == counted
        assert await make(drawn) == first
    progress.reconcile([], [1], NOW)
    assert b"FontMissing" not in await make(())  # the font is there now


async def test_etags_that_are_no_md5_prove_names_and_sizes(host: Host, tmp_path: Path) -> None:
    """The ETags of an encrypted bucket only look like MD5s. A sheet is committed all the same."""

    class Encrypted(LossyBucket):
        def get(self, key: str) -> StoredObject:
            stored = super().get(key)
            return replace(stored, info=replace(stored.info, etag=f'"{etag(key.encode())}"'))

    bucket = Encrypted(tmp_path / "encrypted")
    await ActivityEnvironment().run(Activities(replace(host, bucket=bucket)).upload_page, tiled(host))
    assert bucket.written[-1] == REF.descriptor(1)


async def test_files_of_killed_writes_are_gone_after_the_next_attempt(host: Host, bucket: OrderedBucket, tmp_path: Path) -> None:
    """``sheets/**`` is the same as if no worker had been killed. Other sheets are not changed."""
    sheet, other = (tmp_path / "bucket" / REF.tiles_prefix(number) / "9" for number in (1, 2))
    for directory in (sheet, other):
        directory.mkdir(parents=True)
        (directory / "0_0.jpeg#1").write_bytes(b"half a ti")
    await ActivityEnvironment().run(Activities(host).upload_page, tiled(host))
    assert sorted(path.name for path in sheet.iterdir()) == ["0_0.jpeg", "1_0.jpeg"]
    assert (other / "0_0.jpeg#1").exists()


async def test_no_page_is_tiled_while_too_many_wait_for_their_upload(host: Host, bucket: OrderedBucket) -> None:
    """A page that waits for its next attempt counts like one that is being uploaded, or that waits for a thread with heartbeats."""
    activities = Activities(host)
    environments = [ActivityEnvironment() for _ in range(3)]
    beaten = [asyncio.Event() for _ in environments]
    for environment, event in zip(environments, beaten, strict=True):
        environment.on_heartbeat = lambda *_, event=event: event.set()
    bucket.open.clear()
    waiting = tiled(host)
    uploads = [asyncio.create_task(environment.run(activities.upload_page, tiled(host))) for environment in environments[:2]]
    await asyncio.to_thread(bucket.reached.wait, 120)
    tiling = asyncio.create_task(environments[2].run(activities.tile_page, TilePage(str(REF), 2, 600, 300, UploadOptions())))
    async with asyncio.timeout(120):
        for event in beaten:
            await event.wait()
    assert [path.name for path in host.scratch.uploads()[REF] if path.suffix == ".part"] == []
    host.scratch.remove(host.scratch.page(waiting.tiled.scratch))
    with pytest.raises(ApplicationError, match="SourceMissing"):  # this far it comes without a PDF
        await asyncio.wait_for(tiling, 120)
    bucket.open.set()
    await asyncio.gather(*uploads)


async def test_page_that_another_attempt_is_at_is_not_removed(host: Host, bucket: OrderedBucket) -> None:
    """An attempt that Temporal has given up is cancelled while the next attempt uploads the same page."""
    args = tiled(host)
    bucket.open.clear()
    attempts = [asyncio.create_task(ActivityEnvironment().run(Activities(host).upload_page, args)) for _ in range(2)]
    await asyncio.to_thread(bucket.reached.wait, 120)
    attempts[0].cancel()
    bucket.open.set()
    with pytest.raises(asyncio.CancelledError):
        await attempts[0]
    assert (await attempts[1]).tiles == PYRAMID.tile_count
    assert not host.scratch.has_pages
