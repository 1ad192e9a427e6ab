"""The activities that compare the bucket with the progress, on a real directory: broken sheets are found, and nothing else is changed."""

import json
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import ReopenedRecord, SheetRecord, SheetState, SheetStatus, UploadStatus, from_json
from activities.bucket.storage import Bucket
from activities.bucket.verify import verify_upload
from activities.errors import ObjectMissing, RenderCrashed
from activities.host import Host
from activities.interface import BucketState, CheckedSheets, CheckSheets, ListSheets, PruneSheets, RecordReopening, WriteManifest
from activities.reconcile import ReconcileActivities
from activities.threads import FairThreads
from tests.unit.attempts import Attempts
from tests.unit.sheets import NAMES, PYRAMID, REF, Md5Bucket, accept, progress, put_sheet, put_upload
from worker.app import Activities

A = TypeVar("A")
T = TypeVar("T")

PENDING = SheetState(1, SheetStatus.PENDING, 1, None, PYRAMID.width, PYRAMID.height, 300)


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    """An empty bucket."""
    return Bucket(BucketSettings(tmp_path.as_uri()))


def activities(bucket: Bucket) -> ReconcileActivities:
    """The activities of a host that has nothing but a bucket."""
    host = SimpleNamespace(bucket=bucket, threads=FairThreads(2, "test"))
    return Activities(cast("Host", host))


async def run(activity: Callable[[A], Coroutine[Any, Any, T]], args: A) -> T:
    """The activity, as a worker runs it."""
    return await ActivityEnvironment().run(activity, args)


async def check(bucket: Bucket, *sheets: SheetState, **how: bool) -> CheckedSheets:
    """The result of ``check_sheets`` for these sheets."""
    return await run(activities(bucket).check_sheets, CheckSheets(str(REF), sheets, **how))


def keys(bucket: Bucket) -> set[str]:
    """Every key below ``sheets/``, relative to it."""
    return {info.key.removeprefix(REF.sheets_prefix) for info in bucket.objects(REF.sheets_prefix)}


async def test_whole_sheets_are_left_alone(bucket: Bucket) -> None:
    """No fault is reported, and no object is changed."""
    manifest = put_upload(bucket)
    before = keys(bucket)
    assert await check(bucket, *manifest.sheets) == CheckedSheets()
    assert keys(bucket) == before


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        (REF.tiles_prefix(1) + NAMES[3], f"1 of {len(NAMES)} tiles missing, the first is {NAMES[3]}"),
        (REF.thumbnail(1), "thumbnail.jpeg is missing"),
        (REF.sheet_record(1), "sheet.json is missing"),
        (REF.descriptor(1), "the .dzi is missing"),
    ],
)
async def test_broken_sheet_loses_its_commit_marker_and_is_told(bucket: Bucket, key: str, sentence: str) -> None:
    """Whatever is missing, the sheet is not committed any more, and the other sheet still is."""
    manifest = put_upload(bucket)
    bucket.delete([key])
    checked = await check(bucket, *manifest.sheets)
    assert [(sheet.number, sheet.detail) for sheet in checked.broken] == [(1, sentence)]
    assert not checked.committed
    assert {key for key in keys(bucket) if key.endswith(".dzi")} == {"sheet-2/tiles/sheet-2.dzi"}
    assert (await check(bucket, *manifest.sheets)).broken[0].number == 1, "a repair that is killed is found broken again"


async def test_wrong_bytes_are_found_by_etag_and_in_a_directory_by_reading(bucket: Bucket, tmp_path: Path) -> None:
    """A tile has the right name and size, but other bytes."""
    manifest = put_upload(bucket)
    tile = REF.tiles_prefix(1) + NAMES[0]
    body = bytearray(bucket.get(tile).body)
    body[-3] ^= 1
    bucket.put(tile, bytes(body))
    assert not (await check(bucket, *manifest.sheets, repair=False)).broken
    assert [sheet.number for sheet in (await check(bucket, *manifest.sheets, repair=False, deep=True)).broken] == [1]
    assert [sheet.number for sheet in (await check(Md5Bucket(BucketSettings(tmp_path.as_uri())), *manifest.sheets)).broken] == [1]


async def test_decoder_that_cannot_start_is_final_at_the_third_attempt(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deep reconcile then fails with a warning; with retries without end, the upload could neither go on nor be cancelled."""
    manifest = put_upload(bucket)
    monkeypatch.setenv("PYTHONHOME", "/nowhere")  # no Python starts with it
    attempts, finals = Attempts(), []
    for _ in range(RenderCrashed.tries):
        with pytest.raises(ApplicationError, match="did not start") as failure:
            await attempts.next().run(activities(bucket).check_sheets, CheckSheets(str(REF), manifest.sheets, repair=True, deep=True))
        assert failure.value.type == RenderCrashed.__name__
        finals.append(failure.value.non_retryable)
    assert finals == [False, False, True]


async def test_whole_sheet_that_the_progress_does_not_have_is_counted(bucket: Bucket) -> None:
    """Its record is returned, shortened for the history. A half sheet is not returned; a sheet that was not begun takes no request."""
    accept(bucket)
    put_sheet(bucket, 1)
    record = from_json(SheetRecord, bucket.get(REF.sheet_record(1)).body)
    checked = await check(bucket, PENDING, replace(PENDING, number=2))
    assert checked == CheckedSheets(committed=(replace(record, digest="", engines={}),))
    bucket.delete([REF.tiles_prefix(1) + NAMES[0]])
    checked = await check(bucket, PENDING, repair=False)
    assert ([sheet.number for sheet in checked.broken], checked.committed) == ([1], ())
    assert bucket.head(REF.descriptor(1))


async def test_sheet_of_another_geometry_is_not_this_one(bucket: Bucket) -> None:
    """A sheet that was committed with another size than its page has now is tiled again."""
    accept(bucket)
    put_sheet(bucket, 1)
    checked = await check(bucket, replace(PENDING, width=PYRAMID.width + 1))
    assert [sheet.number for sheet in checked.broken] == [1]


async def test_objects_that_no_sheet_owns_are_pruned(bucket: Bucket) -> None:
    """Such objects are removed below the prefix of a sheet, whole or not, and beside the sheets."""
    manifest = put_upload(bucket)
    before = keys(bucket)
    junk = {"sheet-1/junk.txt", "sheet-1/tiles/sheet-1_files/99/0_0.jpeg", "sheet-2/tiles/sheet-1.dzi"}
    beside = {"sheet-3/tiles/sheet-3.dzi", "sheet-0/x", "other/y", "loose.txt"}
    for name in junk | beside:
        bucket.put(REF.sheets_prefix + name, b"junk")
    assert (await check(bucket, *manifest.sheets)).removed == len(junk)
    assert keys(bucket) == before | beside
    assert await run(activities(bucket).prune_sheets, PruneSheets(str(REF), 2)) == len(beside)
    assert keys(bucket) == before


async def test_half_a_sheet_that_nobody_will_finish_is_removed(bucket: Bucket) -> None:
    """All its objects are removed. A whole sheet stays and is counted, even if the progress did not have it."""
    accept(bucket)
    for number in (1, 2):
        put_sheet(bucket, number)
    bucket.delete([REF.descriptor(1)])
    checked = await check(bucket, PENDING, replace(PENDING, number=2), discard=True)
    assert ([record.number for record in checked.committed], checked.removed) == ([2], len(NAMES) + 2)
    assert {key.split("/")[0] for key in keys(bucket)} == {"sheet-2"}


async def test_sheet_of_a_newer_release_is_not_repaired(bucket: Bucket) -> None:
    """Its record cannot be read. The activity ends with the error's name, and the sheet stays."""
    manifest = put_upload(bucket, 1)
    record = json.loads(bucket.get(REF.sheet_record(1)).body)
    bucket.put(REF.sheet_record(1), json.dumps({**record, "schema": 2}).encode())
    before = keys(bucket)
    with pytest.raises(ApplicationError) as failure:
        await check(bucket, *manifest.sheets)
    assert (failure.value.type, failure.value.non_retryable) == ("NewerSchema", False)
    assert keys(bucket) == before


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"number": 1}'])
async def test_records_that_cannot_be_read_stop_nothing(bucket: Bucket, body: bytes) -> None:
    """A broken sheet.json makes its sheet uncommitted."""
    put_upload(bucket)
    bucket.put(REF.sheet_record(1), body)
    state: BucketState = await run(activities(bucket).list_sheets, ListSheets(str(REF)))
    assert [record.number for record in state.committed] == [2]
    with pytest.raises(ObjectMissing):
        bucket.head(REF.descriptor(1))


@pytest.mark.parametrize("name", ["record", "manifest", "reopened"])
@pytest.mark.parametrize("body", [b"", b"{", b'{"schema": 2}'])
async def test_no_run_goes_on_without_its_records(bucket: Bucket, name: str, body: bytes) -> None:
    """A run that cannot read the manifest or the options says so and waits. Otherwise it would write over them."""
    put_upload(bucket)
    key = getattr(REF, name)
    bucket.put(key, body)
    with pytest.raises(ApplicationError, match=f"^[A-Za-z]+: {key} cannot be read: it ") as failure:
        await run(activities(bucket).list_sheets, ListSheets(str(REF)))
    assert failure.value.type == ("NewerSchema" if b"schema" in body else "DamagedRecord")
    assert not failure.value.non_retryable
    assert bucket.get(key).body == body


async def test_reopening_is_in_the_bucket_until_the_run_has_ended(bucket: Bucket) -> None:
    """The next run finds the record, if this one is lost. The manifest may be the same as before."""
    manifest = put_upload(bucket)
    reopened = ReopenedRecord(manifest.version, reconcile=True, retries=((2,), ()))
    host = activities(bucket)
    assert (await run(host.list_sheets, ListSheets(str(REF)))).reopened is None
    await run(host.record_reopening, RecordReopening(str(REF), reopened))
    assert (await run(host.list_sheets, ListSheets(str(REF)))).reopened == reopened
    await run(host.write_manifest, WriteManifest(str(REF), manifest, reopened=manifest.version))
    assert (await run(host.list_sheets, ListSheets(str(REF)))).reopened is None


@pytest.mark.parametrize("deleted_at", [None, "2026-01-31T09:30:00.000Z"])
async def test_upload_that_does_not_exist_is_neither_judged_nor_pruned(bucket: Bucket, deleted_at: str | None) -> None:
    """The upload was never accepted, or is marked deleted."""
    ref = UploadRef("acme", "tower", "a1", "gone")
    if deleted_at:
        accept(bucket, ref, deleted_at)
    for work in (
        run(activities(bucket).check_sheets, CheckSheets(str(ref), (PENDING,))),
        run(activities(bucket).prune_sheets, PruneSheets(str(ref), 0)),
        run(activities(bucket).record_reopening, RecordReopening(str(ref), ReopenedRecord(1))),
    ):
        with pytest.raises(ApplicationError) as failure:
            await cast("Coroutine[Any, Any, Any]", work)
        assert failure.value.type == "UploadNotFound"


JUNK = st.sampled_from(["sheet-1/junk", "sheet-2/tiles/sheet-2_files/99/0_0.jpeg", "sheet-1/tiles/sheet-1_files/0/0_00.jpeg"])
OWN = [f"sheet-{number}/{name}" for number in (1, 2) for name in ("thumbnail.jpeg", "sheet.json", f"tiles/sheet-{number}.dzi")] + [
    f"sheet-{number}/tiles/sheet-{number}_files/{name}" for number in (1, 2) for name in NAMES
]


@settings(max_examples=40, deadline=None)
@given(
    deleted=st.sets(st.sampled_from(OWN), max_size=6),
    emptied=st.sets(st.sampled_from(OWN), max_size=2),
    junk=st.sets(JUNK),
    known=st.sets(st.sampled_from([1, 2])),
)
async def test_any_damage_is_found_and_whole_sheets_verify(deleted: set[str], emptied: set[str], junk: set[str], known: set[int]) -> None:
    """After a check, exactly the sheets that it leaves ready have a commit marker. They verify, and no junk is left."""
    with tempfile.TemporaryDirectory() as directory:
        bucket = Bucket(BucketSettings(Path(directory).as_uri()))
        accept(bucket)
        states = [put_sheet(bucket, number) for number in (1, 2)]
        states = [state if state.number in known else replace(PENDING, number=state.number) for state in states]
        bucket.delete([REF.sheets_prefix + name for name in deleted])
        for name in emptied | junk:
            bucket.put(REF.sheets_prefix + name, b"")
        checked = await check(bucket, *states)
        broken = {sheet.number for sheet in checked.broken}
        ready = known - broken | {record.number for record in checked.committed}
        damaged = {int(name[6]) for name in deleted | emptied}
        assert ready == {1, 2} - damaged
        assert {int(key[6]) for key in keys(bucket) if key.endswith(".dzi")} == ready
        assert keys(bucket) <= set(OWN)
        *_, report = verify_upload(bucket, REF, progress(*states, status=UploadStatus.PROCESSING)) if ready == known else (None,)
        assert report is None or report.verified
