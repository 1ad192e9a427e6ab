"""Activities send heartbeats while the bucket is silent, and a cancellation ends them."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.attempt import Attempt
from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import Snapshot, UploadOptions, UploadStatus
from activities.bucket.storage import Bucket, StoredObject
from activities.errors import RenderTimeout, SourceAltered, StorageUnavailable
from activities.host import Host
from activities.interface import CountPages, TilePage, WriteManifest
from activities.render.attempt import RenderAttempt
from activities.render.child import ChildPool
from activities.scratch import Scratch
from activities.threads import FairThreads
from tests.unit.attempts import Attempts
from tests.unit.sheets import accept
from tests.waiting import until_async
from worker.app import Activities

REF = "acme/tower/a1/u1"


class SilentBucket(Bucket):
    """A bucket whose reads hang until it is released, and then fail."""

    def __init__(self, directory: Path) -> None:
        super().__init__(BucketSettings(directory.as_uri()))
        self.asked = threading.Event()
        self.released = threading.Event()

    def get(self, key: str) -> StoredObject:
        """Waits, then fails."""
        self.asked.set()
        self.released.wait(120)
        msg = f"the bucket failed at {key}: 503"
        raise StorageUnavailable(msg)


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[SilentBucket]:
    """A bucket that does not answer before it is released."""
    bucket = SilentBucket(tmp_path / "bucket")
    yield bucket
    bucket.released.set()


@asynccontextmanager
async def activities(bucket: Bucket, directory: Path) -> AsyncIterator[Activities]:
    """The real activities of a host with this bucket."""
    with FairThreads(1, "test") as threads, closing(Scratch(directory, 1 << 30)) as scratch:
        yield Activities(Host(bucket=bucket, scratch=scratch, children=ChildPool(1), threads=threads, uploads=threads))


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("count_pages", CountPages(REF)),
        ("tile_page", TilePage(REF, 1, 100, 50, UploadOptions())),
        ("write_manifest", WriteManifest(REF, Snapshot(UploadStatus.COMPLETE, 1, "2026-01-31T00:00:00.000Z"))),
    ],
)
async def test_activity_beats_while_the_bucket_is_silent(bucket: SilentBucket, tmp_path: Path, name: str, argument: object) -> None:
    """A slow bucket is not taken for a dead host."""
    beaten = asyncio.Event()
    environment = ActivityEnvironment()
    environment.on_heartbeat = lambda *_: beaten.set()
    async with activities(bucket, tmp_path / "scratch") as host:
        attempt = asyncio.create_task(environment.run(getattr(host, name), argument))
        await asyncio.wait_for(beaten.wait(), 120)
        bucket.released.set()
        with pytest.raises(ApplicationError, match="503"):
            await attempt


async def test_source_that_is_not_what_was_accepted_is_final_at_the_third_read(tmp_path: Path) -> None:
    """One read may be cut off or altered. The attempts are half a minute apart, and are counted across hosts."""
    bucket = Bucket(BucketSettings((tmp_path / "bucket").as_uri()))
    ref = UploadRef.parse(REF)
    accept(bucket, ref)
    bucket.put(ref.source, b"different")
    attempts, finals = Attempts(), []
    for host in range(SourceAltered.tries):
        async with activities(bucket, tmp_path / f"scratch {host}") as each:
            with pytest.raises(ApplicationError, match=r"source\.pdf has sha256 .* was accepted") as failure:
                await attempts.next().run(each.count_pages, CountPages(REF))
        assert (failure.value.type, failure.value.next_retry_delay) == ("SourceAltered", timedelta(seconds=30))
        finals.append(failure.value.non_retryable)
    assert finals == [False, False, True]


async def test_faults_of_different_kinds_are_counted_apart() -> None:
    """A download that was cut off does not count as a fault of the page, nor a fault of the page as a download."""

    async def fail_with(error: Exception, *details: object) -> ApplicationError:
        environment = ActivityEnvironment()
        environment.info = replace(environment.info, heartbeat_details=details)

        async def attempt() -> None:
            with RenderAttempt().named_errors():
                raise error

        with pytest.raises(ApplicationError) as failure:
            await environment.run(attempt)
        return failure.value

    altered, fault = SourceAltered("another"), RenderTimeout("not done after 120 s of CPU time")
    assert not (await fail_with(fault, 0, 2)).non_retryable
    assert (await fail_with(fault, 1, 0)).non_retryable
    assert (await fail_with(fault, 1)).non_retryable  # as an older release has beaten
    assert (await fail_with(RenderTimeout("not done after 120 s of CPU time", is_certain=True), 0, 0)).non_retryable
    assert not (await fail_with(altered, 2, 0)).non_retryable
    assert (await fail_with(altered, 0, 2)).non_retryable


@pytest.mark.parametrize("more_follows", [True, False])
async def test_cancel_of_a_thread_that_ends_well(more_follows: bool) -> None:
    """The result of work that was finished counts, unless the activity would go on after it."""
    begun, stopped = threading.Event(), threading.Event()

    def work(stop: threading.Event) -> str:
        begun.set()
        stopped.set() if stop.wait(120) else None
        return "finished"

    async def run() -> str:
        return await Attempt().in_thread(work, more_follows=more_follows)

    attempt = asyncio.create_task(ActivityEnvironment().run(run))
    await asyncio.to_thread(begun.wait, 120)
    attempt.cancel()
    if more_follows:
        with pytest.raises(asyncio.CancelledError):
            await attempt
    else:
        assert await attempt == "finished"
    assert stopped.is_set()


@pytest.mark.parametrize("fails", [True, False])
async def test_cancelled_attempt_beats_for_as_long_as_its_thread_lives(fails: bool) -> None:
    """Also when it is cancelled twice: by the workflow, and by a worker that stops. Without heartbeats it would be taken for dead."""
    begun, released = threading.Event(), threading.Event()
    beats = 0

    def work(stop: threading.Event) -> str:
        begun.set()
        released.wait(30)
        assert stop.is_set()
        if fails:
            raise StorageUnavailable("503")
        return "finished"

    def beat(*_: object) -> None:
        nonlocal beats
        beats += 1

    async def run() -> str:
        return await Attempt().in_thread(work)

    environment = ActivityEnvironment()
    environment.on_heartbeat = beat
    attempt = asyncio.create_task(environment.run(run))
    await asyncio.to_thread(begun.wait, 120)
    for _ in range(2):
        attempt.cancel()
        beats = 0
        await until_async(lambda: beats >= 3)  # noqa: B023 - called here
        assert not attempt.done()
    released.set()
    if fails:
        with pytest.raises(asyncio.CancelledError):
            await attempt
    else:
        assert await attempt == "finished"


async def test_cancel_of_work_that_waits_for_a_thread() -> None:
    """The attempt sends heartbeats while its work waits. When it is cancelled, it ends, and its work is never begun."""
    released, beaten = threading.Event(), asyncio.Event()
    did = []

    async def run() -> None:
        def submit(work: Callable[[threading.Event], None], stop: threading.Event) -> Future[None]:
            return threads.submit(("b",), work, stop)

        await Attempt().in_thread(lambda _: did.append(1), submit=submit)

    with FairThreads(1, "test") as threads:
        threads.submit(("a",), released.wait, 300)
        environment = ActivityEnvironment()
        environment.on_heartbeat = lambda *_: beaten.set()
        attempt = asyncio.create_task(environment.run(run))
        await asyncio.wait_for(beaten.wait(), 120)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(attempt, 120)
        released.set()
    assert did == []
