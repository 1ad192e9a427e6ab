"""Deletion, sweep and nightly reconciliation on a real Temporal server, over a real directory; only the work on sheets is pretended."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError

from activities.attempt import to_application_error
from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import (
    BegunRecord,
    KeyRecord,
    ReopenedRecord,
    SheetStatus,
    Snapshot,
    UploadOptions,
    UploadRecord,
    UploadStatus,
    from_json,
    milliseconds,
    timestamp,
    to_json,
)
from activities.bucket.report import NameList
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import Bucket, ObjectInfo
from activities.bucket.uploads import UploadStore
from activities.errors import NotAPdf, UploadNotFound
from activities.interface import (
    WORKFLOW_QUEUE,
    BucketState,
    ListSheets,
    ReconcileFinished,
    Removed,
    RemoveObjects,
    SweepBucket,
    Swept,
    WriteManifest,
    WrittenManifest,
)
from api.progress.runs import Runs
from api.progress.status import Status
from api.uploads import new_upload_id
from tests.waiting import until_async
from tests.workflow.fakes import FakeActivities, pages, working
from tests.workflow.runs import handle_of, keep_history
from worker.app import housekeeping_worker
from worker.housekeeping import UPLOADS_AT_ONCE, Housekeeping
from worker.schedules import RECONCILE, SWEEP, SWEEP_ALL, create_schedules
from workflows.messages import SheetNumbers
from workflows.starting import last_run, reopen_upload, start_deletion, start_upload
from workflows.sweep import NightlyReconcile, Sweep
from workflows.upload import ProcessUpload

OLD = timedelta(days=2)
PLAN = ("acme", "tower", "a1")


class Activities(FakeActivities):
    """Pretended activities whose manifests are real, and which see a mark as the real ones do."""

    def __init__(self, count: int, bucket: Bucket) -> None:
        super().__init__(pages(count))
        self.bucket = bucket

    def _accepted(self, ref: str) -> None:
        try:
            UploadStore(self.bucket).accepted(UploadRef.parse(ref))
        except UploadNotFound as error:
            raise to_application_error(error) from error

    @activity.defn
    async def list_sheets(self, args: ListSheets) -> BucketState:
        """With the manifest and the record of a reopening in the bucket."""
        self._accepted(args.ref)
        state, ref, store = await super().list_sheets(args), UploadRef.parse(args.ref), UploadStore(self.bucket)
        manifest = stored.snapshot if (stored := store.manifest(ref)) else None
        return replace(state, manifest=manifest, reopened=store.reopened_record(ref, manifest) if manifest else None)

    @activity.defn
    async def write_manifest(self, args: WriteManifest) -> WrittenManifest:
        """Into the bucket."""
        self._accepted(args.ref)
        written = await super().write_manifest(args)
        self.bucket.put(UploadRef.parse(args.ref).manifest, to_json(args.snapshot))
        return written


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The bucket's."""
    return tmp_path / "bucket"


@pytest.fixture
def bucket(directory: Path) -> Bucket:
    """An empty bucket."""
    return Bucket(BucketSettings(directory.as_uri()))


@pytest.fixture
async def house(client: Client, bucket: Bucket) -> AsyncIterator[Activities]:
    """Workers of every queue, around pretended sheets."""
    fake = Activities(2, bucket)
    async with at_work(client, fake):
        yield fake


@asynccontextmanager
async def at_work(
    client: Client, fake: Activities, setup: BucketSetup | None = None, housekeeping: Housekeeping | None = None
) -> AsyncIterator[None]:
    """Runs the workers; ``setup`` is the bucket's on an S3 server."""
    async with working(client, fake), housekeeping_worker(client, housekeeping or Housekeeping(client, fake.bucket, setup), 8):
        yield


def new_ref(age: timedelta = timedelta(0)) -> UploadRef:
    """An upload whose id was made some time ago."""
    name = new_upload_id()
    milliseconds = int((datetime.now(UTC) - age).timestamp() * 1000)
    digits = f"{milliseconds:012x}"
    return UploadRef(*PLAN, f"{digits[:8]}-{digits[8:]}{name[13:]}")


def accept(bucket: Bucket, ref: UploadRef, *, deleted: bool = False) -> UploadRef:
    """Writes what the API writes."""
    now = timestamp(datetime.now(UTC))
    bucket.put(ref.source, b"%PDF-1.7")
    bucket.put(ref.record, to_json(UploadRecord("plan.pdf", 8, "0" * 64, UploadOptions(), now, now if deleted else None)))
    return ref


def mark(bucket: Bucket, ref: UploadRef) -> None:
    """Marks it deleted, as the API does."""
    record = from_json(UploadRecord, bucket.get(ref.record).body)
    bucket.put(ref.record, to_json(replace(record, deleted_at=timestamp(datetime.now(UTC)))))


def make_old(directory: Path, prefix: str) -> None:
    """As if nothing had been written there for long."""
    long_ago = (datetime.now(UTC) - OLD).timestamp()
    for path in [directory / prefix, *(directory / prefix).rglob("*")]:
        os.utime(path, (long_ago, long_ago))


def files(directory: Path, prefix: str) -> list[str]:
    """Everything at and below a prefix, directories included."""
    root = directory / prefix
    # Not rglob: it fails where a directory goes meanwhile.
    below = (Path(path, name) for path, directories, names in os.walk(root) for name in directories + names)
    return sorted(str(path.relative_to(directory)) for path in (root, *below) if path.exists())


async def sweep(client: Client, days: int | None = None, *, keep: str = "") -> Swept:
    """One pass."""
    handle = await client.start_workflow(Sweep.run, SweepBucket(days), id=f"sweep-{new_upload_id()}", task_queue=WORKFLOW_QUEUE)
    swept = await handle.result()
    if keep:
        await keep_history(handle, keep)
    return swept


async def manifest_of(bucket: Bucket, ref: UploadRef) -> Snapshot:
    """``manifest.json``."""
    return from_json(Snapshot, (await bucket.get_async(ref.manifest)).body)


async def test_deleted_while_processing_leaves_nothing(client: Client, bucket: Bucket, directory: Path) -> None:
    """The run ends without a manifest, all objects go, the Idempotency-Key too; an object written late goes with the second removal."""
    ref, other = accept(bucket, new_ref()), accept(bucket, new_ref())
    ours, others = (ref.plan_ref.idempotency_key(name) for name in ("ours", "others"))
    for key, upload in ((ours, ref), (others, other)):
        bucket.put(key, to_json(KeyRecord(upload.upload, "0" * 64)))
    unreadable = {ref.plan_ref.idempotency_key(name): body for name, body in (("cut", b"{"), ("newer", b'{"schema":2}'))}
    for key, body in unreadable.items():
        bucket.put(key, body)
    left: list[list[str]] = []

    class BesideALateWriter(Housekeeping):
        @activity.defn
        async def remove_objects(self, args: RemoveObjects) -> Removed:
            """Somebody writes an object as soon as the first removal is done."""
            removed = await super().remove_objects(args)
            left.append(files(directory, ref.prefix))
            if len(left) == 1:
                bucket.put(ref.descriptor(1), b"late")
            return removed

    house = Activities(2, bucket)
    house.gate.clear()
    async with at_work(client, house, housekeeping=BesideALateWriter(client, bucket, None)):
        await start_upload(client, ref)
        await until_async(lambda: len(house.tiled) == 2)
        bucket.put(ref.tiles_prefix(1) + "0/0_0.jpeg", b"tile")
        (directory / ref.prefix / "manifest.json#1").write_bytes(b"half")
        mark(bucket, ref)
        assert await start_deletion(client, ref, look_again_s=2)
        assert not await start_deletion(client, ref)
        deletion = client.get_workflow_handle(ref.delete_workflow_id)
        result = await deletion.result()
        await keep_history(deletion, "deleted")
    assert left == [[ref.prefix.rstrip("/"), ref.record]] * 2
    assert await has_ended(client, ref)
    assert house.manifest is None
    assert (result["objects"], result["marked"]) == (3, False)  # source.pdf, a tile, the late descriptor
    assert files(directory, ref.prefix) == []
    assert files(directory, ref.plan_ref.keys_prefix)[1:] == sorted([others, *unreadable])  # whose they are, nobody can tell
    assert len(files(directory, other.prefix)) == 3


class WatchedBucket(Bucket):
    """A bucket that tells which prefixes were looked at."""

    def __init__(self, directory: Path) -> None:
        super().__init__(BucketSettings(directory.as_uri()))
        self.looked_at: list[str] = []

    def objects(self, prefix: str, after: str = "", last: str = "") -> Iterator[ObjectInfo]:
        """See ``Bucket.objects``."""
        self.looked_at.append(prefix)
        return super().objects(prefix, after, last)

    def remove_unfinished(self, prefix: str, *, before: datetime | None = None, deep: bool = True) -> int:
        """See ``Bucket.remove_unfinished``."""
        self.looked_at.append(prefix)
        return super().remove_unfinished(prefix, before=before, deep=deep)


async def test_deletion_frees_its_key_and_looks_at_no_other(client: Client, directory: Path) -> None:
    """``upload.json`` names the key, so the cost does not grow with the number of a plan's keys."""
    bucket = WatchedBucket(directory)
    ref, other = accept(bucket, new_ref()), accept(bucket, new_ref())
    ours, others = (ref.plan_ref.idempotency_key(name) for name in ("ours", "others"))
    for key, upload in ((ours, ref), (others, other)):
        bucket.put(key, to_json(KeyRecord(upload.upload, "0" * 64)))
    record = from_json(UploadRecord, bucket.get(ref.record).body)
    bucket.put(ref.record, to_json(replace(record, idempotency_key=ours, deleted_at=record.created_at)))
    async with at_work(client, Activities(2, bucket)):
        await start_deletion(client, ref, look_again_s=0.1)
        await client.get_workflow_handle(ref.delete_workflow_id).result()
    assert (bucket.has(ours), bucket.has(others)) == (False, True)
    assert ref.prefix in bucket.looked_at
    assert ref.plan_ref.keys_prefix not in bucket.looked_at


async def test_sweep_looks_once_at_the_keys_of_a_plan(client: Client, directory: Path) -> None:
    """However many uploads the plan has: else the cost of a sweep would grow with the square of their number."""
    bucket = WatchedBucket(directory)
    refs = [accept(bucket, new_ref()) for _ in range(2 * UPLOADS_AT_ONCE + 1)]
    for ref in refs:
        bucket.put(ref.manifest, b"{}")
    async with at_work(client, Activities(2, bucket)):
        assert (await sweep(client)).uploads == len(refs)
    assert bucket.looked_at.count(refs[0].plan_ref.keys_prefix) == 1
    assert all(ref.prefix in bucket.looked_at for ref in refs)


async def test_deletion_that_was_ended_is_begun_again(client: Client, bucket: Bucket, directory: Path, house: Activities) -> None:
    """Terminated between its two looks, or never begun: the sweep finds the mark, and starts one that goes to the end."""
    waiting, lost = accept(bucket, new_ref(), deleted=True), accept(bucket, new_ref(age=timedelta(days=30)), deleted=True)
    await start_deletion(client, waiting)
    await until_async(lambda: files(directory, waiting.prefix) == [waiting.prefix.rstrip("/"), waiting.record])
    assert (await sweep(client)).deleted == NameList(1, (str(lost),))  # the other is at it
    for ref in (waiting, lost):
        await client.get_workflow_handle(ref.delete_workflow_id).terminate()
    assert (await sweep(client)).deleted.count == 2
    for ref in (waiting, lost):
        await client.get_workflow_handle(ref.delete_workflow_id).terminate()
        await start_deletion(client, ref, look_again_s=0.1)
        await client.get_workflow_handle(ref.delete_workflow_id).result()
        assert files(directory, ref.prefix) == []
    # Once more, of what is gone: it has nothing to wait for.
    await start_deletion(client, lost)
    assert (await client.get_workflow_handle(lost.delete_workflow_id).result())["objects"] == 0


async def test_upload_without_a_mark_is_not_deleted(client: Client, bucket: Bucket, directory: Path, house: Activities) -> None:
    """Whoever starts the workflow: without the mark in ``upload.json`` it removes nothing."""
    ref = accept(bucket, new_ref())
    await start_deletion(client, ref)
    with pytest.raises(WorkflowFailureError):
        await client.get_workflow_handle(ref.delete_workflow_id).result()
    assert len(files(directory, ref.prefix)) == 3


async def test_run_of_a_deleted_upload_starts_nothing(client: Client, bucket: Bucket, house: Activities) -> None:
    """Who still starts or reopens it gets a run that ends at once."""
    ref = accept(bucket, new_ref(), deleted=True)
    await start_upload(client, ref)
    await until_async(lambda: has_ended(client, ref))
    await reopen_upload(client, ref, "force_reconcile")
    await until_async(lambda: has_ended(client, ref))
    assert house.tiled == []
    assert house.manifest is None


async def has_ended(client: Client, ref: UploadRef) -> bool:
    """Whether its run is over."""
    return (await handle_of(client, ref).describe()).status is not WorkflowExecutionStatus.RUNNING


async def test_sweep_starts_what_never_ran_and_removes_what_was_never_accepted(
    client: Client, bucket: Bucket, directory: Path, house: Activities
) -> None:
    """Old prefixes without ``upload.json`` go, with directory, leftovers and key; fresh ones, and those written lately, stay."""
    accepted = accept(bucket, new_ref())
    old, fresh, busy, slow, empty = (new_ref(age) for age in (OLD, timedelta(0), OLD, OLD, OLD))
    for ref in (old, fresh, busy):
        bucket.put(ref.source, b"%PDF-1.7")
    (directory / slow.prefix).mkdir(parents=True)
    (directory / f"{slow.source}#1").write_bytes(b"half of it")
    (directory / empty.prefix / "sheets").mkdir(parents=True)
    key = old.plan_ref.idempotency_key("begun and lost")
    bucket.put(key, to_json(KeyRecord(old.upload, "0" * 64)))
    for prefix in (old.prefix, empty.prefix):
        make_old(directory, prefix)
    make_old(directory, key)
    swept = await sweep(client, keep="swept")
    assert swept.uploads == 6
    assert swept.started == NameList(1, (str(accepted),))
    assert swept.removed.count == 2
    assert set(swept.removed.first) == {str(old), str(empty)}
    assert (await handle_of(client, accepted).result()).status is UploadStatus.COMPLETE
    for gone in (old.prefix, empty.prefix, key):
        assert files(directory, gone) == []
    for ref in (fresh, busy, slow):
        assert len(files(directory, ref.prefix)) == 2
    make_old(directory, slow.prefix)
    assert (await sweep(client)).removed == NameList(1, (str(slow),))


async def test_sweep_starts_reopened_uploads_whose_run_is_lost(client: Client, bucket: Bucket, house: Activities) -> None:
    """It does not start an upload that has ended again, whose manifest is newer than the record, nor an upload whose run goes on."""
    lost, ended, runs = (accept(bucket, new_ref()) for _ in range(3))
    manifest = Snapshot(UploadStatus.CANCELLED, 100, timestamp(datetime.now(UTC)))
    for ref in (lost, ended, runs):
        bucket.put(ref.manifest, to_json(manifest))
        bucket.put(ref.reopened, to_json(ReopenedRecord(99 if ref is ended else 100, retries=((),))))
    house.stubborn = "list_sheets"
    await reopen_upload(client, runs, "retry_sheets", SheetNumbers())
    assert (await sweep(client)).started == NameList(1, (str(lost),))
    house.released.set()
    for ref in (lost, runs):
        assert (await handle_of(client, ref).result()).status is UploadStatus.COMPLETE


async def test_upload_that_a_client_has_begun_goes_a_day_after_its_seven(
    client: Client, bucket: Bucket, directory: Path, house: Activities
) -> None:
    """With its parts and its key, however long ago the last part was written; until then it stays."""
    now = datetime.now(UTC)
    begun = {}
    for name, age in (("waits", timedelta(days=6)), ("just over", timedelta(days=7, hours=1)), ("over", timedelta(days=8, hours=1))):
        ref = begun[name] = new_ref(age)
        key = ref.plan_ref.idempotency_key(name)
        record = BegunRecord("plan.pdf", 8, None, 5 << 20, UploadOptions(), timestamp(now - age), part_secret="ab", idempotency_key=key)  # noqa: S106
        bucket.put(ref.begun, to_json(record))
        bucket.put(ref.part(1), b"%PDF-1.7")
        bucket.put(key, to_json(KeyRecord(ref.upload, "0" * 64)))
        if name != "over":  # whose parts were written lately
            make_old(directory, ref.prefix)
    accepted = accept(bucket, new_ref(timedelta(days=9)))
    bucket.put(accepted.begun, to_json(record))
    swept = await sweep(client)
    assert (swept.removed, swept.passed_over) == (NameList(1, (str(begun["over"]),)), NameList())
    assert files(directory, begun["over"].prefix) == []
    assert sorted(info.key for info in bucket.objects(accepted.plan_ref.keys_prefix)) == sorted(
        ref.plan_ref.idempotency_key(name) for name, ref in begun.items() if name != "over"
    )
    for name in ("waits", "just over"):
        assert bucket.get(begun[name].part(1)).body == b"%PDF-1.7"


async def test_hourly_sweep_looks_at_recent_uploads_only(client: Client, bucket: Bucket, house: Activities) -> None:
    """An id tells its age; an id of another kind is for the nightly pass."""
    recent, aged = accept(bucket, new_ref()), accept(bucket, new_ref(age=timedelta(days=8)))
    foreign = accept(bucket, UploadRef(*PLAN, f"made-by-hand-{recent.upload}"))
    first = await sweep(client, days=7)
    assert (first.uploads, first.started) == (1, NameList(1, (str(recent),)))
    second = await sweep(client)
    assert (second.uploads, second.started.count) == (3, 2)
    assert set(second.started.first) == {str(aged), str(foreign)}
    for ref in (recent, aged, foreign):
        await handle_of(client, ref).result()


async def sweep_that_finds_a_terminated_run(client: Client) -> Swept:
    """Sweeps until Temporal's index, which comes a little later, shows a terminated run; returns the report of that sweep."""
    swept = Swept()

    async def finds_one() -> bool:
        nonlocal swept
        swept = await sweep(client)
        return bool(swept.terminated.count)

    await until_async(finds_one)
    return swept


async def test_run_ended_from_outside_gets_its_manifest(client: Client, bucket: Bucket, house: Activities) -> None:
    """``failed`` with ``Terminated``, the sheets as last known, none left in flight, the version above all; also of a reopened one."""
    ref = accept(bucket, new_ref())
    house.committed = {1: house.commit(house.pages[0])}  # type: ignore[index]
    house.gate.clear()
    await start_upload(client, ref)
    await until_async(lambda: house.tiled == [2])
    before = await handle_of(client, ref).query(ProcessUpload.progress)
    await handle_of(client, ref).terminate()
    assert (await sweep(client)).terminated == NameList(1, (str(ref),))
    manifest = await manifest_of(bucket, ref)
    assert (manifest.status, manifest.reason, manifest.completed_pages) == (UploadStatus.FAILED, "Terminated", 1)
    assert [sheet.status for sheet in manifest.sheets] == [SheetStatus.READY, SheetStatus.PENDING]
    assert manifest.version > before.version
    assert manifest.completed_at is not None
    assert (await sweep(client)).terminated == NameList()

    # Somebody asks for the rest, and that run is ended from outside, too: now there is a manifest, an older one.
    await reopen_upload(client, ref, "retry_sheets", SheetNumbers())
    await until_async(lambda: house.tiled == [2, 2])
    await handle_of(client, ref).terminate()
    again = await sweep_that_finds_a_terminated_run(client)
    assert again.terminated == NameList(1, (str(ref),))
    second = await manifest_of(bucket, ref)
    assert (second.status, second.reason, second.completed_pages) == (UploadStatus.FAILED, "Terminated", 1)
    assert second.version > manifest.version

    house.gate.set()
    await reopen_upload(client, ref, "retry_sheets", SheetNumbers())
    assert (await handle_of(client, ref).result()).status is UploadStatus.COMPLETE


async def test_run_ended_from_outside_after_its_manifest_went_on(client: Client, bucket: Bucket, house: Activities) -> None:
    """A request came when the run had written its manifest. If the sweep left the record, a later run would do the terminated request."""
    ref = accept(bucket, new_ref())
    house.stubborn = "count_pages"
    await start_upload(client, ref)
    await until_async(lambda: house.reached == "count_pages")
    now = milliseconds(datetime.now(UTC))
    bucket.put(ref.manifest, to_json(Snapshot(UploadStatus.PARTIAL, now, timestamp(datetime.now(UTC)))))
    bucket.put(ref.reopened, to_json(ReopenedRecord(now)))
    await handle_of(client, ref).terminate()
    house.released.set()
    swept = await sweep_that_finds_a_terminated_run(client)
    manifest = await manifest_of(bucket, ref)
    assert (swept.terminated, manifest.reason, manifest.version > now) == (NameList(1, (str(ref),)), "Terminated", True)
    assert not await UploadStore(bucket).has_reopened_record_async(ref)


async def test_run_ended_from_outside_before_the_count_is_resumed_only_by_retry(client: Client, bucket: Bucket, house: Activities) -> None:
    """A reconcile counts the pages and the sheets that are there, and tiles nothing."""
    ref = accept(bucket, new_ref())
    house.stubborn = "count_pages"
    await start_upload(client, ref)
    await until_async(lambda: house.reached == "count_pages")
    await handle_of(client, ref).terminate()
    house.released.set()
    assert (await sweep(client)).terminated == NameList(1, (str(ref),))
    assert (await manifest_of(bucket, ref)).total_pages == 0
    house.commit(house.pages[0])  # type: ignore[index]

    await reopen_upload(client, ref, "force_reconcile")
    with pytest.raises(WorkflowFailureError):
        await handle_of(client, ref).result()
    await keep_history(handle_of(client, ref), "terminated-then-reconciled")
    manifest = await manifest_of(bucket, ref)
    assert (manifest.status, manifest.reason, manifest.reconciled) == (UploadStatus.FAILED, "Terminated", True)
    assert [sheet.status for sheet in manifest.sheets] == [SheetStatus.READY, SheetStatus.PENDING]
    assert house.tiled == []

    await reopen_upload(client, ref, "retry_sheets", SheetNumbers())
    assert (await handle_of(client, ref).result()).status is UploadStatus.COMPLETE
    assert house.tiled == [2]


@pytest.mark.parametrize("end", [UploadStatus.COMPLETE, UploadStatus.FAILED, UploadStatus.CANCELLED])
async def test_ended_run_without_manifest_gets_what_it_said_last(
    client: Client, bucket: Bucket, house: Activities, end: UploadStatus
) -> None:
    """The bucket lost the manifest, or lied about its one write: the run itself still knows how it ended, byte for byte."""
    ref = accept(bucket, new_ref())
    if end is UploadStatus.FAILED:
        house.pages = NotAPdf("the file starts with '<html>'")
    elif end is UploadStatus.CANCELLED:
        house.gate.clear()
    await start_upload(client, ref)
    if end is UploadStatus.CANCELLED:
        await until_async(lambda: len(house.tiled) == 2)
        await handle_of(client, ref).cancel()
    await until_async(lambda: has_ended(client, ref))
    body = bucket.get(ref.manifest).body
    bucket.delete([ref.manifest])
    status = Status(bucket, Runs(lambda: asyncio.sleep(0, client)))
    known = await status.read(ref)
    assert (known.snapshot.status, known.certain, known.final) == (end, True, body)
    swept = await sweep(client)
    assert (swept.mended, swept.passed_over.count, swept.terminated.count) == (NameList(1, (str(ref),)), 0, 0)
    assert bucket.get(ref.manifest).body == body
    assert (await sweep(client)).mended == NameList()


async def test_ended_run_that_does_not_know_how_is_followed_by_another(client: Client, bucket: Bucket, house: Activities) -> None:
    """A run of an older release ended in the middle of its work, and left nothing: the sweep begins again with what the bucket holds."""
    ref = accept(bucket, new_ref(), deleted=True)
    await start_upload(client, ref)
    await until_async(lambda: has_ended(client, ref))
    accept(bucket, ref)
    known = await Status(bucket, Runs(lambda: asyncio.sleep(0, client))).read(ref)
    assert (known.snapshot.status, known.certain, known.final) == (UploadStatus.QUEUED, False, None)
    assert (await sweep(client)).started == NameList(1, (str(ref),))
    assert (await handle_of(client, ref).result()).status is UploadStatus.COMPLETE
    assert (await manifest_of(bucket, ref)).status is UploadStatus.COMPLETE


async def test_broken_object_stops_no_sweep(client: Client, bucket: Bucket, house: Activities) -> None:
    """What cannot be read, or is not what it should be, is counted and named, and the others get their due."""
    broken, newer, odd, good = (accept(bucket, new_ref()) for _ in range(4))
    bucket.put(broken.record, b"{")
    bucket.put(newer.record, b'{"schema":2}')
    bucket.put(odd.record, b'{"options":[]}')
    swept = await sweep(client)
    assert swept.started == NameList(1, (str(good),))
    assert swept.passed_over.count == 3
    assert any("schema 2" in name for name in swept.passed_over.first)
    await handle_of(client, good).result()


async def test_leftovers_of_killed_writes_go_when_they_are_old(client: Client, bucket: Bucket, directory: Path, house: Activities) -> None:
    """Beside the objects of an upload and of the plan's keys; a fresh one may still become an object."""
    ref = accept(bucket, new_ref())
    await start_upload(client, ref)
    await handle_of(client, ref).result()
    old = [directory / f"{ref.source}#1", directory / f"{ref.manifest}#12", directory / f"{ref.plan_ref.keys_prefix}abc.json#1"]
    (directory / ref.plan_ref.keys_prefix).mkdir()
    for path in old:
        path.write_bytes(b"half")
        make_old(directory, str(path.relative_to(directory)))
    fresh = directory / f"{ref.record}#1"
    fresh.write_bytes(b"half")
    assert (await sweep(client)).leftovers == 3
    assert not any(path.exists() for path in old)
    assert fresh.exists()


async def test_nightly_pass_reconciles_what_finished_lately(client: Client, bucket: Bucket, house: Activities) -> None:
    """Complete and partial ones of the last days; what is not as the manifest says is corrected and named."""
    good, broken, earlier, cancelled, gone, cut, newer = (accept(bucket, new_ref()) for _ in range(7))
    for ref in (good, broken, earlier, cancelled, gone, cut, newer):
        await start_upload(client, ref)
        await handle_of(client, ref).result()
    long_ago = timestamp(datetime.now(UTC) - timedelta(days=8))
    bucket.put(earlier.manifest, to_json(replace(await manifest_of(bucket, earlier), completed_at=long_ago)))
    bucket.put(cancelled.manifest, to_json(replace(await manifest_of(bucket, cancelled), status=UploadStatus.CANCELLED)))
    mark(bucket, gone)
    bucket.put(broken.manifest, to_json(replace(await manifest_of(bucket, broken), total_pages=0, sheets=())))
    unreadable = {cut: "it is not JSON", newer: "it has schema 2, this release reads up to 1"}
    bucket.put(cut.manifest, b"{")
    bucket.put(newer.manifest, b'{"schema":2}')
    handle = await client.start_workflow(
        NightlyReconcile.run, ReconcileFinished(), id=f"nightly-{new_upload_id()}", task_queue=WORKFLOW_QUEUE
    )
    result = await handle.result()
    await keep_history(handle, "nightly")
    assert (result.uploads, result.corrected, result.unfinished) == (2, NameList(1, (str(broken),)), NameList())
    assert sorted(result.passed_over.first) == sorted(f"{ref}: {ref.manifest} cannot be read: {why}" for ref, why in unreadable.items())
    assert [bucket.get(ref.manifest).body for ref in unreadable] == [b"{", b'{"schema":2}']
    assert (await manifest_of(bucket, broken)).completed_pages == 2


async def test_pass_goes_on_where_its_worker_died(client: Client, bucket: Bucket) -> None:
    """What is done with is not looked at again, and the report keeps it."""
    refs = sorted((accept(bucket, new_ref()) for _ in range(40)), key=str)

    class Dying(Housekeeping):
        """Its third group of uploads fails once."""

        looked_at: list[UploadRef] = []  # noqa: RUF012 - of this test only
        died = False

        async def sweep_upload(self, ref: UploadRef, *args: Any) -> None:
            self.looked_at.append(ref)
            if ref == refs[-1] and not self.died:
                Dying.died = True
                await until_async(lambda: is_reported(client, refs[0]))
                msg = "the bucket is away"
                raise RuntimeError(msg)

    fake = Activities(1, bucket)
    async with working(client, fake), housekeeping_worker(client, Dying(client, bucket, None), 4):
        swept = await sweep(client)
    assert swept.uploads >= 40
    assert Dying.looked_at.count(refs[0]) == 1
    assert Dying.looked_at.count(refs[-1]) == 2


async def is_reported(client: Client, ref: UploadRef) -> bool:
    """Whether Temporal knows that the activity that asks is done with the upload."""
    description = await client.get_workflow_handle(str(activity.info().workflow_id)).describe()
    (pending,) = description.raw_description.pending_activities
    return any(json.loads(details.data) >= str(ref) for details in pending.heartbeat_details.payloads[:1])


async def test_schedules_are_made_once_and_stay_as_the_operator_left_them(client: Client, bucket: Bucket, house: Activities) -> None:
    """A start of the worker makes what is missing, and neither resumes nor changes what is there; a trigger runs a pass."""
    await create_schedules(client)
    handles = {name: client.get_schedule_handle(name) for name in (SWEEP, SWEEP_ALL, RECONCILE)}
    await handles[SWEEP].pause(note="an operator looks at something")
    await handles[RECONCILE].delete()
    await create_schedules(client)
    states = {name: (await handle.describe()).schedule.state for name, handle in handles.items()}
    assert {name: state.paused for name, state in states.items()} == {SWEEP: True, SWEEP_ALL: False, RECONCILE: False}
    assert states[SWEEP].note == "an operator looks at something"
    ref = accept(bucket, new_ref())
    await handles[SWEEP].trigger()
    await until_async(lambda: is_known(client, ref))
    assert (await handle_of(client, ref).result()).status is UploadStatus.COMPLETE
    for handle in handles.values():
        await handle.delete()


async def is_known(client: Client, ref: UploadRef) -> bool:
    """Whether there is a run."""
    return await last_run(client, ref) is not None
