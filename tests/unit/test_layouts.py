"""The conversion of one sheet to another layout, over real directories: each way, killed at each step, and every refusal."""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.bucket.location import BucketSettings
from activities.bucket.records import Layout, SheetRecord, from_json, to_json
from activities.bucket.storage import Bucket
from activities.bucket.uploads import UploadStore
from activities.bucket.verify import verify_upload
from activities.errors import StorageUnavailable, UploadBusy, UploadNotFound
from activities.interface import ConvertedSheet, TellLayouts
from activities.layouts import SheetConversion
from activities.threads import FairThreads
from tests.unit.sheets import AT, NAMES, REF, Md5Bucket, accept, put_upload
from worker import layouts

WAYS = [(before, after) for before in Layout for after in (Layout.EXPLODED, Layout.PACKED)]
KINDS = pytest.mark.parametrize("kind", [Bucket, Md5Bucket])


class Killed(BaseException):
    """The worker is killed."""


class MortalBucket(Bucket):
    """A directory whose worker is killed before one of its changes.

    Args:
        directory: The directory.
        changes: So many changes are made before the kill.
    """

    def __init__(self, directory: Path, changes: int) -> None:
        super().__init__(BucketSettings(directory.as_uri()))
        self._left = changes
        self._mutex = threading.Lock()

    def _die(self) -> None:
        with self._mutex:
            self._left -= 1
            if self._left < 0:
                raise Killed

    def put(self, key: str, body: bytes) -> None:
        """A change."""
        self._die()
        super().put(key, body)

    def put_archive(self, key: str, chunks: Iterable[bytes], size_bytes: int) -> None:
        """A change."""
        self._die()
        super().put_archive(key, chunks, size_bytes)

    def delete(self, keys: Iterable[str]) -> None:
        """A change for each object."""
        for key in keys:
            self._die()
            super().delete([key])


@pytest.fixture
def threads() -> Iterator[FairThreads]:
    """Threads for requests."""
    with FairThreads(2, "bucket") as threads:
        yield threads


def bucket_in(directory: Path, kind: type[Bucket] = Bucket) -> Bucket:
    """A bucket in a directory."""
    return kind(BucketSettings(directory.as_uri()))


def objects_in(bucket: Bucket) -> dict[str, bytes]:
    """Every object of the upload."""
    return {info.key: bucket.get(info.key).body for info in bucket.objects(REF.prefix)}


def convert(bucket: Bucket, threads: FairThreads, layout: Layout, number: int = 1) -> ConvertedSheet:
    """Converts a sheet as the activity does."""
    conversion = SheetConversion(bucket, threads, REF, number, layout)
    written = conversion.write(threading.Event())
    return conversion.remove_earlier(threading.Event()) if conversion.is_written else written


@KINDS
@pytest.mark.parametrize(("before", "after"), WAYS)
def test_converted_sheet_is_as_if_it_had_been_made_so(
    tmp_path: Path, threads: FairThreads, before: Layout, after: Layout, kind: type[Bucket]
) -> None:
    """Byte for byte, and nothing of the earlier layout is left. The upload verifies; a second conversion does nothing."""
    made, converted = bucket_in(tmp_path / "made"), bucket_in(tmp_path / "converted", kind)
    put_upload(made, 1, after)
    put_upload(converted, 1, before)
    result = convert(converted, threads, after)
    assert result == ConvertedSheet(converted=True)
    expected = objects_in(made)
    expected[REF.record] = converted.get(REF.record).body  # which keeps its options
    assert objects_in(converted) == expected
    report = list(verify_upload(converted, REF, deep=True))[-1]
    assert report.verified
    assert convert(converted, threads, after) == ConvertedSheet(converted=True)
    assert objects_in(converted) == expected


@pytest.mark.parametrize(("before", "after"), [way for way in WAYS if way[0] is not way[1]])
def test_sheet_is_never_without_its_marker(tmp_path: Path, threads: FairThreads, before: Layout, after: Layout) -> None:
    """Whenever the worker is killed, the sheet is committed, and the next attempt finishes the conversion."""
    made = bucket_in(tmp_path / "made")
    put_upload(made, 1, after)
    expected = objects_in(made)
    for changes in range(200):
        directory = tmp_path / str(changes)
        bucket = bucket_in(directory)
        put_upload(bucket, 1, before)
        expected[REF.record] = bucket.get(REF.record).body
        try:
            convert(MortalBucket(directory, changes), threads, after)
        except Killed:
            record = UploadStore(bucket).committed(REF, 1)
            assert record is not None
            assert record.layout in (before, after)
            assert convert(bucket, threads, after).reason is None
            assert objects_in(bucket) == expected
        else:
            break
    else:
        pytest.fail("every attempt was killed")
    assert changes >= 2
    assert objects_in(bucket) == expected


def drop_tile(bucket: Bucket, layout: Layout) -> None:
    """One tile is gone."""
    if layout is Layout.EXPLODED:
        bucket.delete([REF.tiles_prefix(1) + NAMES[-1]])
    else:
        body = bucket.get(REF.archive(1)).body
        bucket.put(REF.archive(1), body[:-1])


def change_tile(bucket: Bucket, layout: Layout) -> None:
    """One tile has other bytes, and the same size."""
    key = REF.tiles_prefix(1) + NAMES[-1] if layout is Layout.EXPLODED else REF.archive(1)
    body = bucket.get(key).body
    bucket.put(key, body[:-3] + bytes([body[-3] ^ 1]) + body[-2:])


def change_record(bucket: Bucket, layout: Layout) -> None:
    """``sheet.json`` describes other tiles."""
    record = from_json(SheetRecord, bucket.get(REF.sheet_record(1)).body)
    bucket.put(REF.sheet_record(1), to_json(replace(record, digest="0" * 64)))


@KINDS
@pytest.mark.parametrize("layout", [Layout.EXPLODED, Layout.PACKED])
@pytest.mark.parametrize("damage", [drop_tile, change_tile, change_record])
def test_sheet_that_differs_is_left_as_it_is(
    tmp_path: Path, threads: FairThreads, damage: Callable[[Bucket, Layout], None], layout: Layout, kind: type[Bucket]
) -> None:
    """It is refused by name, and not one object of it is changed."""
    bucket = bucket_in(tmp_path, kind)
    put_upload(bucket, 1, layout)
    damage(bucket, layout)
    before = objects_in(bucket)
    result = convert(bucket, threads, Layout.PACKED if layout is Layout.EXPLODED else Layout.EXPLODED)
    assert (result.converted, result.reason) == (False, "SheetAltered")
    assert objects_in(bucket) == before


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b"{", "DamagedRecord"), (b'{"schema": 9}', "NewerSchema"), (None, "DamagedRecord")],
    ids=["no JSON", "newer", "no size"],
)
def test_sheet_whose_record_cannot_be_used_is_left_as_it_is(tmp_path: Path, threads: FairThreads, body: bytes | None, reason: str) -> None:
    """And the error has a name."""
    bucket = bucket_in(tmp_path)
    put_upload(bucket, 1)
    record = from_json(SheetRecord, bucket.get(REF.sheet_record(1)).body)
    bucket.put(REF.sheet_record(1), body or to_json(replace(record, width=0)))
    before = objects_in(bucket)
    assert convert(bucket, threads, Layout.PACKED).reason == reason
    assert objects_in(bucket) == before


def test_sheet_that_is_not_ready_is_left_as_it_is(tmp_path: Path, threads: FairThreads) -> None:
    """It has no marker, and a run may still make it; a sheet that does not exist is no error."""
    bucket = bucket_in(tmp_path)
    put_upload(bucket, 1)
    bucket.delete([REF.descriptor(1)])
    before = objects_in(bucket)
    assert convert(bucket, threads, Layout.PACKED) == ConvertedSheet()
    assert convert(bucket, threads, Layout.PACKED, number=7) == ConvertedSheet()
    assert objects_in(bucket) == before


def test_deleted_upload_is_not_converted(tmp_path: Path, threads: FairThreads) -> None:
    """Nor are its earlier objects removed if it was deleted meanwhile."""
    bucket = bucket_in(tmp_path)
    put_upload(bucket, 1)
    conversion = SheetConversion(bucket, threads, REF, 1, Layout.PACKED)
    conversion.write(threading.Event())
    accept(bucket, deleted_at=AT)
    before = objects_in(bucket)
    with pytest.raises(UploadNotFound):
        conversion.remove_earlier(threading.Event())
    with pytest.raises(UploadNotFound):
        convert(bucket, threads, Layout.PACKED)
    assert objects_in(bucket) == before


def test_run_that_removed_the_new_object_loses_nothing(tmp_path: Path, threads: FairThreads) -> None:
    """The earlier objects stay until the new one is there, and the next attempt writes it again."""
    bucket = bucket_in(tmp_path)
    put_upload(bucket, 1)
    conversion = SheetConversion(bucket, threads, REF, 1, Layout.PACKED)
    conversion.write(threading.Event())
    bucket.delete([REF.archive(1)])
    with pytest.raises(UploadBusy):
        conversion.remove_earlier(threading.Event())
    bucket.put(REF.archive(1), b"cut")
    with pytest.raises(StorageUnavailable):
        conversion.remove_earlier(threading.Event())
    assert convert(bucket, threads, Layout.PACKED) == ConvertedSheet(converted=True)
    assert list(verify_upload(bucket, REF, deep=True))[-1].verified


async def test_manifest_of_a_run_that_has_begun_and_ended_meanwhile_stays(
    tmp_path: Path, threads: FairThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look at many sheets takes time. The next attempt begins with the run's manifest."""
    bucket, looks = bucket_in(tmp_path), 0
    before = put_upload(bucket)
    newer = replace(before, version=before.version + 1000)
    convert(bucket, threads, Layout.PACKED)

    async def is_running(*_: object) -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            bucket.put(REF.manifest, to_json(newer))
        return False

    monkeypatch.setattr(layouts, "is_running", is_running)
    tell = layouts.Layouts(cast("Client", None), bucket, threads, tmp_path / "none").tell_layouts
    with pytest.raises(ApplicationError, match="has written another manifest meanwhile"):
        await ActivityEnvironment().run(tell, TellLayouts(str(REF)))
    manifest = UploadStore(bucket).manifest(REF)
    assert manifest is not None
    assert manifest.snapshot == newer
    await ActivityEnvironment().run(tell, TellLayouts(str(REF)))
    manifest = UploadStore(bucket).manifest(REF)
    assert manifest is not None
    assert [sheet.layout for sheet in manifest.snapshot.sheets] == [Layout.PACKED, *[sheet.layout for sheet in newer.sheets[1:]]]
    assert manifest.snapshot.version > newer.version
