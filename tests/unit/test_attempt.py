"""Activities beat while the bucket is silent, and a cancel reaches them."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.attempt import Attempt
from activities.child import ChildPool
from activities.document import Host
from activities.errors import StorageUnavailable
from activities.interface import CountPages, TilePage, WriteManifest
from activities.records import Snapshot, UploadOptions, UploadStatus
from activities.scratch import Scratch
from activities.storage import Bucket, BucketSettings, StoredObject
from worker.app import Activities

REF = "acme/tower/a1/u1"


class SilentBucket(Bucket):
    """A bucket that takes its time, and then fails."""

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
    """One that answers nobody before it is released."""
    bucket = SilentBucket(tmp_path / "bucket")
    yield bucket
    bucket.released.set()


@asynccontextmanager
async def activities(bucket: Bucket, directory: Path) -> AsyncIterator[Activities]:
    """The real activities around it."""
    with ThreadPoolExecutor(1) as threads, closing(Scratch(directory, 1 << 30)) as scratch:
        yield Activities(Host(bucket, scratch, ChildPool(1), threads))


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


@pytest.mark.parametrize("more_follows", [True, False])
async def test_cancel_of_a_thread_that_ends_well(more_follows: bool) -> None:
    """What was finished counts, unless it was only a step on the way."""
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
