"""``UploadStore``: missing, damaged, newer and deleted records, in both forms of a read; and no write is taken on trust."""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from activities.bucket.location import BucketSettings
from activities.bucket.records import KeyRecord, ReopenedRecord, SheetRecord, Snapshot, UploadRecord, from_json, to_json
from activities.bucket.storage import Bucket
from activities.bucket.uploads import CLAIM_TRIES, Manifest, UploadStore
from activities.errors import DamagedRecord, NewerSchema, ObjectMissing, StorageUnavailable, UploadNotFound
from tests.unit.sheets import AT, OPTIONS, PYRAMID, REF, accept, put_sheet, put_upload

KEY = REF.plan_ref.idempotency_key("one")
KEY_RECORD = KeyRecord(REF.upload, "0" * 64)
RECORD = UploadRecord("plan.pdf", 9, "0" * 64, OPTIONS, AT)
DESCRIPTOR = PYRAMID.descriptor().encode()

DAMAGED, NEWER = b"{", b'{"schema": 2}'


@pytest.fixture(params=["directory", "s3"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Bucket:
    """An empty bucket, of either kind."""
    settings = BucketSettings(tmp_path.as_uri()) if request.param == "directory" else request.getfixturevalue("s3_server").new_bucket()
    return Bucket(settings)


READS: dict[str, Callable[[UploadStore], Any]] = {
    "record": lambda store: store.record(REF),
    "accepted": lambda store: store.accepted(REF),
    "manifest": lambda store: store.manifest(REF),
    "manifest_written_at": lambda store: store.manifest_written_at(REF),
    "begun": lambda store: store.begun(REF),
    "committed": lambda store: store.committed(REF, 1),
    "key_record": lambda store: store.key_record(KEY),
    "reopened_record": lambda store: store.reopened_record(REF, snapshot()),
}
READS_ASYNC: dict[str, Callable[[UploadStore], Awaitable[Any]]] = {
    "record": lambda store: store.record_async(REF),
    "accepted": lambda store: store.accepted_async(REF),
    "manifest": lambda store: store.manifest_async(REF),
    "manifest_written_at": lambda store: store.manifest_written_at_async(REF),
    "begun": lambda store: store.begun_async(REF),
    "committed": lambda store: store.committed_async(REF, 1),
    "key_record": lambda store: store.key_record_async(KEY),
    "reopened_record": lambda store: store.reopened_record_async(REF, snapshot()),
}


async def outcome(bucket: Bucket, name: str) -> Any:
    """The result of a read, or the error that it raises. Both forms must agree."""
    store = UploadStore(bucket)
    said: list[Any] = []
    try:
        said.append(await asyncio.to_thread(READS[name], store))
    except (ObjectMissing, UploadNotFound, DamagedRecord, NewerSchema) as error:
        said.append(error)
    try:
        said.append(await READS_ASYNC[name](store))
    except (ObjectMissing, UploadNotFound, DamagedRecord, NewerSchema) as error:
        said.append(error)
    first, second = said
    if isinstance(first, Exception):
        assert (type(first), str(first)) == (type(second), str(second))
    else:
        assert first == second
    return first


def test_every_read_has_two_forms_named_alike() -> None:
    """Each read for threads has one for event loops, with the same arguments."""
    blocking = {name: getattr(UploadStore, name) for name in READS}
    for name, method in blocking.items():
        twin = getattr(UploadStore, f"{name}_async")
        assert not inspect.iscoroutinefunction(method)
        assert inspect.iscoroutinefunction(twin)
        assert inspect.signature(method) == inspect.signature(twin)


async def test_an_upload_is_read_as_it_was_written(bucket: Bucket) -> None:
    """The records, the manifest with its exact bytes, the sheets that were begun, and the committed sheets."""
    snapshot = put_upload(bucket, 1)
    bucket.put(REF.manifest, to_json(snapshot) + b"\n")
    bucket.put(REF.thumbnail(3), b"of a sheet that was only begun")
    bucket.put(KEY, to_json(KEY_RECORD))
    assert await outcome(bucket, "record") == await outcome(bucket, "accepted") == RECORD
    assert await outcome(bucket, "manifest") == Manifest(snapshot, to_json(snapshot) + b"\n")
    assert await outcome(bucket, "manifest_written_at") == bucket.head(REF.manifest).modified
    assert await outcome(bucket, "begun") == [1, 3]
    assert await outcome(bucket, "committed") == from_json(SheetRecord, bucket.get(REF.sheet_record(1)).body)
    assert await outcome(bucket, "key_record") == KEY_RECORD


async def test_a_missing_record_is_no_fault(bucket: Bucket) -> None:
    """An upload that was never accepted is an error. A missing manifest, sheet or key is not."""
    assert isinstance(await outcome(bucket, "record"), ObjectMissing)
    assert isinstance(await outcome(bucket, "accepted"), UploadNotFound)
    for name in ("manifest", "manifest_written_at", "committed", "key_record", "reopened_record"):
        assert await outcome(bucket, name) is None, name
    assert await outcome(bucket, "begun") == []


@pytest.mark.parametrize("lost", [REF.descriptor(1), REF.sheet_record(1)])
async def test_a_sheet_without_dzi_or_record_is_not_committed(bucket: Bucket, lost: str) -> None:
    """Both are needed."""
    put_sheet(bucket, 1)
    bucket.delete([lost])
    assert await outcome(bucket, "committed") is None


async def test_a_deleted_upload_is_found_only_by_who_asks_for_the_mark(bucket: Bucket) -> None:
    """``accepted`` says when it was deleted."""
    accept(bucket, deleted_at=AT)
    assert (await outcome(bucket, "record")).deleted_at == AT
    refusal = await outcome(bucket, "accepted")
    assert isinstance(refusal, UploadNotFound)
    assert AT in str(refusal)


@pytest.mark.parametrize(("body", "kind"), [(DAMAGED, DamagedRecord), (NEWER, NewerSchema)])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("record", REF.record),
        ("accepted", REF.record),
        ("manifest", REF.manifest),
        ("committed", REF.sheet_record(1)),
        ("key_record", KEY),
        ("reopened_record", REF.reopened),
    ],
)
async def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, name: str, key: str, body: bytes, kind: type[Exception]) -> None:
    """The record is never taken for a missing one, and the message has its key."""
    bucket = Bucket(BucketSettings(tmp_path.as_uri()))
    put_sheet(bucket, 1)
    bucket.put(key, body)
    said = await outcome(bucket, name)
    assert isinstance(said, kind)
    assert str(said).startswith(f"{key} cannot be read: it ")


async def test_a_manifest_that_cannot_be_read_has_a_time(tmp_path: Path) -> None:
    """To know whether a run has ended, its manifest need not be read."""
    bucket = Bucket(BucketSettings(tmp_path.as_uri()))
    bucket.put(REF.manifest, DAMAGED)
    assert await outcome(bucket, "manifest_written_at") == bucket.head(REF.manifest).modified


async def test_reads_of_an_event_loop_need_no_thread(tmp_path: Path) -> None:
    """They answer while all threads of the pool wait for a bucket that hangs."""
    bucket = Bucket(BucketSettings(tmp_path.as_uri()))
    put_upload(bucket, 1)
    bucket.put(KEY, to_json(KEY_RECORD))
    bucket.put(REF.reopened, to_json(REOPENED))
    released = threading.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    hanging = asyncio.create_task(asyncio.to_thread(released.wait))
    try:
        for name, read in READS_ASYNC.items():
            async with asyncio.timeout(120):
                assert await read(UploadStore(bucket)) is not None, name
        assert not hanging.done()
    finally:
        released.set()
        await hanging


# Writes


async def pdf() -> AsyncIterator[bytes]:
    """A PDF, in chunks."""
    for chunk in (b"%PDF-1.7\n", b"x" * 5000):
        yield chunk


def snapshot() -> Snapshot:
    """A final progress of an upload."""
    return from_json(Snapshot, b'{"status":"complete","version":9,"updatedAt":"2026-01-31T09:30:00.000Z"}')


REOPENED = ReopenedRecord(9, retries=((2,),))

WRITES: dict[str, tuple[str, Callable[[UploadStore], Awaitable[Any]]]] = {
    "accept": (REF.record, lambda store: store.accept_async(REF, RECORD)),
    "mark_deleted": (REF.record, lambda store: store.mark_deleted_async(REF)),
    "put_source": (REF.source, lambda store: store.put_source_async(REF, pdf())),
    "write_manifest": (REF.manifest, lambda store: asyncio.to_thread(store.write_manifest, REF, snapshot())),
    "write_reopened_record": (REF.reopened, lambda store: asyncio.to_thread(store.write_reopened_record, REF, REOPENED)),
    "create_manifest": (REF.manifest, lambda store: store.create_manifest_async(REF, snapshot())),
    "commit": (REF.descriptor(1), lambda store: asyncio.to_thread(store.commit, REF, 1, DESCRIPTOR)),
}
"""Each write that decides a state, and the key that it writes."""


class LyingBucket(Bucket):
    """A bucket that confirms each write, but writes nothing."""

    @property
    def answers_prove_writes(self) -> bool:
        """Its answers prove no write."""
        return False

    def put(self, key: str, body: bytes) -> None:
        """Not written."""

    async def put_async(self, key: str, body: bytes) -> None:
        """Not written."""

    async def create_async(self, key: str, body: bytes) -> bool:
        """Not written."""
        return True

    async def put_stream(self, key: str, body: AsyncIterator[bytes]) -> None:
        """Reads the stream to its end, and writes nothing."""
        async for _ in body:
            pass


@pytest.mark.parametrize("name", WRITES)
async def test_no_write_that_decides_a_state_is_taken_on_trust(tmp_path: Path, name: str) -> None:
    """Where the answer proves nothing, the store itself notices the missing object."""
    key, write = WRITES[name]
    honest = Bucket(BucketSettings(tmp_path.as_uri()))
    if name != "accept":
        accept(honest)
    with pytest.raises(StorageUnavailable, match=f"said that it has written {key}"):
        await write(UploadStore(LyingBucket(BucketSettings(tmp_path.as_uri()))))


@pytest.mark.parametrize("name", WRITES)
async def test_a_write_is_there(bucket: Bucket, name: str) -> None:
    """On a bucket that writes."""
    key, write = WRITES[name]
    if name != "accept":
        accept(bucket)
    await write(UploadStore(bucket))
    wanted = {
        "accept": to_json(RECORD),
        "put_source": b"%PDF-1.7\n" + b"x" * 5000,
        "write_manifest": to_json(snapshot()),
        "write_reopened_record": to_json(REOPENED),
        "create_manifest": to_json(snapshot()),
        "commit": DESCRIPTOR,
    }
    if name == "mark_deleted":
        assert UploadStore(bucket).record(REF).deleted_at is not None
    else:
        assert bucket.get(key).body == wanted[name]


async def test_an_upload_is_accepted_once(bucket: Bucket) -> None:
    """The second request is told so, and the first record stays. A manifest that somebody else wrote stays, too."""
    store = UploadStore(bucket)
    other = UploadRecord("other.pdf", 8, "1" * 64, OPTIONS, AT)
    assert [await store.accept_async(REF, record) for record in (RECORD, other)] == [True, False]
    assert store.accepted(REF) == RECORD
    bucket.put(REF.manifest, b"another")
    assert not await store.create_manifest_async(REF, snapshot())
    assert bucket.get(REF.manifest).body == b"another"


async def test_the_first_sha256_of_a_source_counts(bucket: Bucket) -> None:
    """A later reader is told the first one. The SHA-256 of ``upload.json`` comes before both."""
    store, unread = UploadStore(bucket), replace(RECORD, sha256=None)
    assert store.source_sha256(REF, unread) is None
    assert [await store.set_source_sha256_async(REF, digest * 64) for digest in "ab"] == ["a" * 64] * 2
    assert [store.source_sha256(REF, record) for record in (unread, RECORD)] == ["a" * 64, RECORD.sha256]


async def test_a_mark_of_deletion_stays_as_it_is(bucket: Bucket) -> None:
    """A second mark is no error, and returns the time of the first. An upload that was never accepted cannot be marked."""
    store = UploadStore(bucket)
    with pytest.raises(UploadNotFound):
        await store.mark_deleted_async(REF)
    accept(bucket)
    first = await store.mark_deleted_async(REF)
    assert [await store.mark_deleted_async(REF), store.record(REF).deleted_at] == [first, first]


@pytest.mark.parametrize("deleted_at", [AT, None])
async def test_nothing_is_committed_for_an_upload_that_does_not_exist(tmp_path: Path, deleted_at: str | None) -> None:
    """A sheet of an upload that is marked deleted, or was never accepted, leaves no ``.dzi``."""
    bucket = Bucket(BucketSettings(tmp_path.as_uri()))
    if deleted_at:
        accept(bucket, deleted_at=deleted_at)
    with pytest.raises(UploadNotFound):
        UploadStore(bucket).commit(REF, 1, DESCRIPTOR)
    with pytest.raises(ObjectMissing):
        bucket.head(REF.descriptor(1))


async def test_an_uncommitted_sheet_is_not_committed(bucket: Bucket) -> None:
    """Only its ``.dzi`` is removed. A second time is no error."""
    put_sheet(bucket, 1)
    before = {info.key for info in bucket.objects(REF.prefix)}
    for _ in range(2):
        UploadStore(bucket).uncommit(REF, 1)
    assert {info.key for info in bucket.objects(REF.prefix)} == before - {REF.descriptor(1)}


# The Idempotency-Key


@pytest.mark.parametrize(
    ("has_source", "has_record", "deleted_at", "deleted"),
    [(True, True, None, False), (True, True, AT, True), (False, True, None, False), (True, False, None, False), (False, False, None, True)],
)
async def test_an_upload_that_was_begun_was_deleted_if_it_is_marked_or_nothing_is_left(
    tmp_path: Path, has_source: bool, has_record: bool, deleted_at: str | None, deleted: bool
) -> None:
    """An upload whose request died before ``upload.json`` still has its source. The next request completes it."""
    bucket = Bucket(BucketSettings(tmp_path.as_uri()))
    if has_source:
        bucket.put(REF.source, b"%PDF-")
    if has_record:
        accept(bucket, deleted_at=deleted_at)
    assert await UploadStore(bucket).was_deleted_async(REF) is deleted


async def test_the_first_claim_of_a_key_wins(bucket: Bucket) -> None:
    """The second request gets the record of the first."""
    store = UploadStore(bucket)
    assert await store.claim_key_async(KEY, KEY_RECORD) is None
    assert await store.claim_key_async(KEY, KeyRecord("another", "1" * 64)) == KEY_RECORD
    assert store.key_record(KEY) == KEY_RECORD


async def test_a_key_that_is_there_and_is_not_is_given_up(tmp_path: Path) -> None:
    """A bucket that contradicts itself is not asked for ever."""
    tries = 0

    class Contradictory(Bucket):
        async def create_async(self, key: str, body: bytes) -> bool:
            nonlocal tries
            tries += 1
            return False

    with pytest.raises(StorageUnavailable, match=KEY):
        await UploadStore(Contradictory(BucketSettings(tmp_path.as_uri()))).claim_key_async(KEY, KEY_RECORD)
    assert tries == CLAIM_TRIES


async def test_a_newer_manifest_ends_a_reopening(bucket: Bucket) -> None:
    """Even if the record was not removed. A write that comes late does not take the place of a later run's record."""
    store = UploadStore(bucket)
    assert not await store.has_reopened_record_async(REF)
    store.write_reopened_record(REF, REOPENED)
    store.write_reopened_record(REF, replace(REOPENED, manifest_version=8))
    assert await outcome(bucket, "reopened_record") == REOPENED
    newer = replace(snapshot(), version=10)
    assert await store.reopened_record_async(REF, newer) is store.reopened_record(REF, newer) is None
    assert await store.has_reopened_record_async(REF)
    store.remove_reopened_record(REF, 8)
    assert await store.has_reopened_record_async(REF), "an earlier run's late attempt to end leaves a later run's record"
    store.remove_reopened_record(REF, 9)
    assert not await store.has_reopened_record_async(REF)
