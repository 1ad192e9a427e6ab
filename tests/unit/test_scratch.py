"""The scratch directory of a host: PDFs are fetched once, pages are published by rename, and a crash leaves nothing for ever."""

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.attempt import Attempt
from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import UploadOptions, UploadRecord, timestamp
from activities.bucket.storage import Bucket
from activities.bucket.uploads import UploadStore
from activities.errors import ShareFull, SourceAltered, SourceMissing
from activities.scratch import IDLE_S, SHARE_BEATS, UNKNOWN_AGE_S, Scratch, ScratchInUse
from tests.unit.full_disk import full_disk
from tests.unit.hostile_files import as_ordinary_user, leave_everything
from tests.waiting import DEADLINE_S, until_async

REF = UploadRef("acme", "tower", "a1", "u1")
BODY = b"%PDF-1.7 " + b"x" * 100_000
RECORD = UploadRecord("plan.pdf", len(BODY), hashlib.sha256(BODY).hexdigest(), UploadOptions(), timestamp(datetime.now(UTC)))


class CountingBucket(Bucket):
    """A real bucket that counts the reads of the source."""

    reads = 0

    def chunks(self, key: str, start: int = 0) -> Iterator[bytes]:
        """Counts the read, then does it."""
        self.reads += 1
        return super().chunks(key, start)


@pytest.fixture
def bucket(tmp_path: Path) -> CountingBucket:
    """A bucket that holds the PDF."""
    bucket = CountingBucket(BucketSettings((tmp_path / "bucket").as_uri()))
    bucket.put(REF.source, BODY)
    return bucket


@pytest.fixture
def open_scratch(tmp_path: Path) -> Iterator[Callable[..., Scratch]]:
    """Opens the scratch in the test's directory, as a new worker process would."""
    with ExitStack() as stack:
        yield lambda *limits, later_s=0, **settings: stack.enter_context(
            closing(Scratch(tmp_path / "scratch", *(limits or [1 << 30]), clock=lambda: time.time() + later_s, **settings))
        )


async def test_source_is_fetched_once_and_kept_while_used(
    open_scratch: Callable[..., Scratch], tmp_path: Path, bucket: CountingBucket
) -> None:
    """Many pages share one download. Discarding the upload does not remove a PDF that another activity reads."""
    scratch = open_scratch()

    async def read() -> bytes:
        async with scratch.source(REF, RECORD, bucket, Attempt()) as path:
            scratch.discard(REF)
            return await asyncio.to_thread(path.read_bytes)

    async def many() -> list[bytes]:
        return list(await asyncio.gather(*(read() for _ in range(8))))

    assert await ActivityEnvironment().run(many) == [BODY] * 8
    assert bucket.reads == 1
    scratch.discard(REF)
    assert not list((tmp_path / "scratch" / "sources").iterdir())


async def test_download_under_way_is_not_discarded(open_scratch: Callable[..., Scratch], bucket: CountingBucket, tmp_path: Path) -> None:
    """An attempt that Temporal has given up may still discard the upload's scratch while the next attempt fetches the PDF.

    So may the run, when it ends meanwhile. Then the upload stays known, so that the next cleaning of the scratch removes the PDF.
    """
    scratch = open_scratch()

    class Interrupted(Bucket):
        """A bucket that discards the upload's scratch during a read."""

        def chunks(self, key: str, start: int = 0) -> Iterator[bytes]:
            """Discards the scratch before each chunk."""
            for chunk in super().chunks(key, start):
                scratch.discard(REF)
                yield chunk

    interrupted = Interrupted(BucketSettings((tmp_path / "bucket").as_uri()))
    assert bucket.get(REF.source).body == BODY

    async def read() -> bytes:
        async with scratch.source(REF, RECORD, interrupted, Attempt()) as path:
            return await asyncio.to_thread(path.read_bytes)

    assert await ActivityEnvironment().run(read) == BODY
    (paths,) = scratch.uploads().values()
    scratch.remove_unused(paths)
    assert not list((tmp_path / "scratch" / "sources").iterdir())


async def test_fetch_that_is_stopped_goes_on_where_it_was(
    open_scratch: Callable[..., Scratch], bucket: CountingBucket, tmp_path: Path
) -> None:
    """An attempt has minutes, and a large PDF from a bucket far away may take more. The run's end removes what was fetched."""
    scratch, starts, fetched, stopped = open_scratch(), [], threading.Event(), threading.Event()

    class Slow(Bucket):
        """A bucket that gives 2,000 bytes, the second half when the reader is stopped; and the rest when somebody asks for it."""

        def chunks(self, key: str, start: int = 0) -> Iterator[bytes]:
            """2,000 bytes, or the rest."""
            starts.append(start)
            if start:
                yield from super().chunks(key, start)
            else:
                yield BODY[:1000]
                fetched.set()
                stopped.wait(DEADLINE_S)
                yield BODY[1000:2000]

    slow = Slow(BucketSettings((tmp_path / "bucket").as_uri()))

    async def read() -> bytes:
        async with scratch.source(REF, RECORD, slow, Attempt()) as path:
            return await asyncio.to_thread(path.read_bytes)

    for _ in range(2):
        first = asyncio.create_task(ActivityEnvironment().run(read))
        await asyncio.to_thread(fetched.wait, DEADLINE_S)
        first.cancel()
        for _ in range(20):  # turns of the event loop
            await asyncio.sleep(0)
        stopped.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        fetched.clear()
        stopped.clear()
        if len(starts) == 1:
            scratch.discard(REF)
            assert not list((tmp_path / "scratch" / "sources").iterdir())
    assert await ActivityEnvironment().run(read) == BODY
    assert starts == [0, 0, 2000]


async def test_source_that_is_gone_or_another_is_named(
    open_scratch: Callable[..., Scratch], tmp_path: Path, bucket: CountingBucket
) -> None:
    """Only the answer 'no such object' makes SourceMissing. Neither error leaves a file on the disk."""
    scratch = open_scratch()

    async def read() -> None:
        async with scratch.source(REF, RECORD, bucket, Attempt()):
            pass

    bucket.put(REF.source, BODY[:-1] + b"y")
    with pytest.raises(SourceAltered, match=r"source.pdf has sha256 .* was accepted"):
        await ActivityEnvironment().run(read)
    bucket.delete([REF.source])
    with pytest.raises(SourceMissing):
        await ActivityEnvironment().run(read)
    assert not list((tmp_path / "scratch" / "sources").iterdir())


async def test_first_whole_read_decides_which_source_was_accepted(open_scratch: Callable[..., Scratch], bucket: CountingBucket) -> None:
    """Without the client's SHA-256, every host gets the PDF that the first host got, or an error. Half of it decides nothing."""
    scratch, record, store = open_scratch(), replace(RECORD, sha256=None), UploadStore(bucket)

    async def read() -> bytes:
        async with scratch.source(REF, record, bucket, Attempt()) as path:
            return await asyncio.to_thread(path.read_bytes)

    bucket.put(REF.source, BODY[:-1])
    with pytest.raises(SourceAltered, match="100,008 bytes, 100,009 were accepted"):
        await ActivityEnvironment().run(read)
    assert store.source_sha256(REF, record) is None
    bucket.put(REF.source, BODY)
    assert await ActivityEnvironment().run(read) == BODY
    assert store.source_sha256(REF, record) == RECORD.sha256
    scratch.discard(REF)  # as another host
    assert await ActivityEnvironment().run(read) == BODY
    scratch.discard(REF)
    bucket.put(REF.source, BODY[:-1] + b"y")
    with pytest.raises(SourceAltered, match=r"sha256 .* was accepted"):
        await ActivityEnvironment().run(read)


def test_host_whose_id_was_lost_gets_another(open_scratch: Callable[..., Scratch], tmp_path: Path) -> None:
    """After a power cut the file may be empty. Two hosts without an id would take each other's tiles."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "host").write_text("")
    assert len(open_scratch().host) == 12


def test_second_worker_is_refused_and_the_host_keeps_its_id(open_scratch: Callable[..., Scratch]) -> None:
    """Two workers on one scratch would remove each other's pages."""
    first = open_scratch()
    with pytest.raises(ScratchInUse, match="SITELINK_SCRATCH_DIR"):
        open_scratch()
    host = first.host
    first.close()
    assert open_scratch().host == host


def test_start_removes_what_a_crash_left_unfinished(open_scratch: Callable[..., Scratch], tmp_path: Path) -> None:
    """Unpublished pages and downloads are removed. Published ones stay, however old, unless their upload is not known."""
    scratch = open_scratch()
    unfinished = scratch.new_page(REF, 1)
    kept = scratch.page(scratch.publish(scratch.new_page(REF, 2)))
    foreign = scratch.page(f"{kept.name[1:]}0")
    foreign.mkdir()
    download = tmp_path / "scratch" / "sources" / "x.part"
    download.touch()
    scratch.close()
    open_scratch().close()
    assert [path.exists() for path in (unfinished, kept, foreign, download)] == [False, True, True, False]
    open_scratch(later_s=UNKNOWN_AGE_S + 60)
    assert [path.exists() for path in (kept, foreign)] == [True, False]


def test_full_disk_changes_nothing_about_whose_the_files_are(open_scratch: Callable[..., Scratch], tmp_path: Path) -> None:
    """A page that finds no room leaves nothing, and takes nothing from the pages before it. What a killed worker had written of it goes."""
    scratch = open_scratch()
    kept = scratch.page(scratch.publish(scratch.new_page(REF, 1)))
    for ref in (REF, replace(REF, upload="u2")):
        with full_disk(), pytest.raises(OSError, match="File too large"):
            scratch.new_page(ref, 2)
    assert scratch.uploads().keys() == {REF}
    assert kept in scratch.uploads()[REF]
    refs = tmp_path / "scratch" / "uploads"
    (whole,) = refs.iterdir()
    whole.with_suffix(".part").touch()
    assert scratch.uploads().keys() == {REF}
    scratch.close()
    assert open_scratch().uploads().keys() == {REF}
    assert [*refs.iterdir()] == [whole]


def test_page_is_idle_only_when_no_attempt_was_at_it_for_a_while(open_scratch: Callable[..., Scratch]) -> None:
    """It is not idle while it is being uploaded, nor soon after it was published or an attempt ended."""
    scratch = open_scratch()
    scratch.new_page(REF, 1)
    name = scratch.publish(scratch.new_page(REF, 2))
    assert scratch.idle_pages(REF) == []
    scratch.close()
    scratch = open_scratch(later_s=2 * IDLE_S)
    assert scratch.idle_pages(REF) == [scratch.page(name)]
    with scratch.claim_page(name):
        assert scratch.idle_pages(REF) == []
    assert scratch.idle_pages(REF) == []


def test_page_of_an_upload_is_discarded_with_it(open_scratch: Callable[..., Scratch]) -> None:
    """The scratch of a cancelled upload is removed; that of other uploads stays."""
    scratch = open_scratch()
    other = UploadRef("acme", "tower", "a1", "u2")
    mine, theirs = (scratch.page(scratch.publish(scratch.new_page(ref, 1))) for ref in (REF, other))
    scratch.discard(REF)
    assert (mine.exists(), theirs.exists(), scratch.has_pages) == (False, True, True)


async def test_pages_wait_for_room_with_heartbeats(open_scratch: Callable[..., Scratch]) -> None:
    """A full scratch delays tiling, but does not make it fail."""
    scratch = open_scratch(10)
    page = scratch.page(scratch.publish(scratch.new_page(REF, 1)))
    (page / "tiles.zip").write_bytes(b"x" * 11)
    beats = []

    async def wait() -> None:
        async with scratch.room(REF, lambda: beats.append(1)):
            pass

    waiting = asyncio.create_task(wait())
    await until_async(lambda: beats)
    assert not waiting.done()
    scratch.remove(page)
    await asyncio.wait_for(waiting, 120)


async def test_room_is_measured_while_pages_come_and_go(open_scratch: Callable[..., Scratch]) -> None:
    """A page that is removed during the measurement is not counted, and causes no error."""
    scratch, measured = open_scratch(), threading.Event()

    def come_and_go() -> None:
        while not measured.is_set():
            pages = [scratch.page(scratch.publish(scratch.new_page(REF, number))) for number in range(30)]
            for page in pages:
                scratch.remove(page)

    with ThreadPoolExecutor(1) as threads:
        coming = threads.submit(come_and_go)
        try:
            for _ in range(100):
                async with scratch.room(REF, lambda: None):
                    pass
        finally:
            measured.set()
        coming.result()


async def test_files_are_listed_by_upload_and_used_files_stay(
    open_scratch: Callable[..., Scratch], bucket: CountingBucket, tmp_path: Path
) -> None:
    """The upload of pages and PDF is known also after a crash. A PDF that an activity uses is not removed, and its upload stays known."""
    scratch = open_scratch()
    other = UploadRef("acme", "tower", "a1", "u2")
    scratch.publish(scratch.new_page(REF, 1))
    scratch.publish(scratch.new_page(other, 1))
    scratch.close()
    scratch = open_scratch()

    async def use() -> list[str]:
        async with scratch.source(REF, RECORD, bucket, Attempt()) as source:
            left = scratch.uploads()
            assert set(left) == {REF, other}
            scratch.new_page(REF, 2)  # came later: it is not among them
            scratch.remove_unused(left[REF])
            assert source.exists()
            return sorted(path.name.split("-")[1] for path in (tmp_path / "scratch" / "pages").iterdir() if path.suffix)

    assert await ActivityEnvironment().run(use) == ["2"]
    (tmp_path / "scratch" / "uploads" / "0123").write_text("")  # a killed worker was writing it
    assert {ref: len(paths) for ref, paths in scratch.uploads().items()} == {REF: 3, other: 2}
    scratch.discard(REF)
    scratch.discard(other)
    assert scratch.uploads() == {}
    assert not scratch.has_pages


async def test_activity_that_waits_for_the_source_beats(
    open_scratch: Callable[..., Scratch], tmp_path: Path, bucket: CountingBucket
) -> None:
    """An activity sends heartbeats while another activity fetches the PDF, however long this takes."""
    scratch = open_scratch()
    fetching, released = threading.Event(), threading.Event()

    class Slow(Bucket):
        def chunks(self, key: str, start: int = 0) -> Iterator[bytes]:
            fetching.set()
            released.wait(30)
            yield from super().chunks(key, start)

    slow, beaten = Slow(BucketSettings((tmp_path / "bucket").as_uri())), asyncio.Event()

    async def read() -> bytes:
        async with scratch.source(REF, RECORD, slow, Attempt()) as path:
            return await asyncio.to_thread(path.read_bytes)

    first = asyncio.create_task(ActivityEnvironment().run(read))
    await asyncio.to_thread(fetching.wait, 120)
    environment = ActivityEnvironment()
    environment.on_heartbeat = lambda *_: beaten.set()
    second = asyncio.create_task(environment.run(read))
    await asyncio.wait_for(beaten.wait(), 120)
    released.set()
    assert await first == await second == BODY


async def test_pages_being_made_count_too(open_scratch: Callable[..., Scratch]) -> None:
    """Two callers that ask at the same moment do not both get the room for one page."""
    scratch = open_scratch(1 << 30, 1)
    most = now = 0

    async def make() -> None:
        nonlocal most, now
        async with scratch.room(REF, lambda: None):
            now += 1
            most = max(most, now)
            await asyncio.sleep(0)
            now -= 1

    await asyncio.gather(make(), make())
    assert most == 1


async def test_one_upload_does_not_take_the_whole_room(open_scratch: Callable[..., Scratch]) -> None:
    """Waiting pages and pages that are being made count as the share. A further page gives its slot back; another upload gets room."""
    scratch = open_scratch(1 << 30, 4, 2, beat_s=0)
    page = scratch.page(scratch.publish(scratch.new_page(REF, 1)))
    other, beats = UploadRef("acme", "tower", "a1", "u2"), []
    async with scratch.room(REF, lambda: None):
        with pytest.raises(ShareFull, match="2 sheets of this upload"):
            async with scratch.room(REF, lambda: beats.append(1)):
                pytest.fail("there is no room")
        assert len(beats) == SHARE_BEATS
        async with scratch.room(other, lambda: pytest.fail("it waits")):
            pass
        scratch.remove(page)
        async with scratch.room(REF, lambda: pytest.fail("it waits")):
            pass


async def test_a_full_share_is_tried_again_by_its_own_time() -> None:
    """It is never final, and its delay is longer than that of a sheet's failed upload."""

    async def refuse() -> None:
        with Attempt().named_errors():
            raise ShareFull("full")

    with pytest.raises(ApplicationError) as failure:
        await ActivityEnvironment().run(refuse)
    assert (failure.value.type, failure.value.non_retryable) == ("ShareFull", False)
    assert failure.value.next_retry_delay == timedelta(seconds=60)


@pytest.mark.parametrize(
    "before", [leave_everything, lambda page, elsewhere: (page.rmdir(), page.symlink_to(elsewhere))], ids=["all", "link"]
)
def test_whatever_a_render_child_leaves_is_removed(open_path: Path, before: Callable[[Path, Path], object]) -> None:
    """Without root's rights, without following a link, and while it is there other pages find room."""
    elsewhere = open_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "other.pdf").write_bytes(BODY)

    def leave_and_remove() -> None:
        with closing(Scratch(open_path / "scratch", 1 << 30)) as scratch:
            page = scratch.new_page(REF, 1)
            before(page, elsewhere)
            asyncio.run(asyncio.wait_for(enter_room(scratch), 60))
            with scratch.claim_page(page.name):
                pass
            scratch.remove(page)
            assert not scratch.has_pages
        assert (elsewhere / "other.pdf").read_bytes() == BODY
        assert list(elsewhere.iterdir()) == [elsewhere / "other.pdf"]

    (open_path / "scratch").mkdir()
    as_ordinary_user(leave_and_remove, open_path / "scratch", elsewhere, elsewhere / "other.pdf")
    assert (elsewhere / "other.pdf").stat().st_mtime > 1_000_000_000


async def enter_room(scratch: Scratch) -> None:
    """Finds room for one more page."""
    async with scratch.room(REF, lambda: None):
        pass
