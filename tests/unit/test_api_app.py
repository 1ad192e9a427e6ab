"""The API without a socket: states, lists, actions, tiles, refusals."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from activities import errors
from activities.bucket.forecast import Forecaster
from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import ReopenedRecord, SheetStatus, UploadOptions, UploadStatus, timestamp, to_json, to_wire
from activities.bucket.storage import Bucket
from activities.interface import Page
from api.http.problems import STATUS
from api.settings import ApiSettings
from tests.unit.api_fakes import (
    BASE,
    NO_WORKER,
    NOT_FOUND,
    PATH,
    REF,
    UNAVAILABLE,
    FakeTemporal,
    RawRequest,
    accept,
    client_of,
    closed_run,
    make_app,
    snapshot,
)
from tests.unit.sheets import put_sheet
from tests.waiting import until_async
from workflows.messages import Reconcile, SheetNumbers

READY, PENDING, FAILED = SheetStatus.READY, SheetStatus.PENDING, SheetStatus.FAILED


@pytest.fixture
def app(bucket: Bucket, temporal: FakeTemporal) -> Starlette:
    """The API."""
    return make_app(bucket, temporal)


@pytest.fixture
async def client(app: Starlette) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the API."""
    async with client_of(app) as client:
        yield client


# States


async def test_running_upload_shows_the_progress_of_its_run(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """GET gives the whole progress, the fields of ``upload.json``, and links."""
    record = await accept(bucket)
    temporal.state = snapshot(READY, PENDING)
    answer = await client.get(PATH)
    assert answer.status_code == 200
    assert answer.json() == {
        **to_wire(temporal.state),
        "ref": str(REF),
        "upload": REF.upload,
        "fileName": "A-101.pdf",
        "sizeBytes": 5009,
        "createdAt": record.created_at,
        "links": {"self": PATH, "events": f"{PATH}/events", "page": f"/?ref={REF}"},
    }


async def test_unchanged_state_is_not_sent_again(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """The strong ETag answers If-None-Match with 304 until something changes."""
    await accept(bucket)
    temporal.state = snapshot(READY, PENDING)
    etag = (await client.get(PATH)).headers["etag"]
    assert not etag.startswith("W/")
    unchanged = await client.get(PATH, headers={"If-None-Match": f'"other", {etag}'})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    temporal.state = snapshot(READY, READY, version=101)
    assert (await client.get(PATH, headers={"If-None-Match": etag})).status_code == 200


async def test_upload_whose_run_has_ended_shows_the_manifest(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """When the run has ended, or its history is gone, the manifest is the answer, and no run is started."""
    await accept(bucket)
    final = snapshot(READY, FAILED, status=UploadStatus.PARTIAL)
    await bucket.put_async(REF.manifest, to_json(final))
    for state in (closed_run(), NOT_FOUND):
        temporal.state = state
        assert (await client.get(PATH)).json()["status"] == "partial"
    assert temporal.starts == []


async def test_accepted_upload_that_never_ran_is_started(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """When there is neither a run nor a manifest, GET starts the workflow."""
    await accept(bucket)
    answer = await client.get(PATH)
    assert (answer.json()["status"], answer.json()["warning"]) == ("queued", None)
    assert [start["id"] for start in temporal.starts] == [REF.workflow_id]


async def test_first_answer_after_a_lost_history_counts_what_is_committed(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal
) -> None:
    """A fresh process waits for the run. If that takes too long, it counts the sheets in the bucket, and the version stays right."""
    await accept(bucket)
    await asyncio.to_thread(put_sheet, bucket, 2, REF)
    await bucket.put_async(REF.thumbnail(3), b"of a sheet that was only begun")
    temporal.state = UNAVAILABLE
    answer = (await client.get(PATH)).json()
    assert (answer["status"], answer["completedPages"]) == ("queued", 1)
    assert "may not be the latest" in answer["warning"]
    temporal.state, temporal.started = NOT_FOUND, snapshot(version=1_800_000_000_000)
    answer = (await client.get(PATH)).json()
    assert (answer["status"], answer["completedPages"], answer["totalPages"]) == ("queued", 1, 0)
    assert answer["version"] == 1_800_000_000_000
    assert [(sheet["number"], sheet["status"], sheet["width"]) for sheet in answer["sheets"]] == [(2, "ready", 300)]
    (entry,) = (await client.get(BASE)).json()["uploads"]
    assert entry["completedPages"] == 1
    temporal.state = snapshot(PENDING, READY, PENDING, version=1_800_000_000_001)
    answer = (await client.get(PATH)).json()
    assert (answer["completedPages"], answer["totalPages"]) == (1, 3)


async def test_lost_run_of_a_reopened_upload_is_followed_by_another(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal
) -> None:
    """GET starts it. Until it has loaded, the manifest is an old state, and the answer says so."""
    await accept(bucket)
    ended = replace(snapshot(READY, FAILED, status=UploadStatus.PARTIAL, version=100), updated_at="2026-01-31T09:30:00.000Z")
    await bucket.put_async(REF.manifest, to_json(ended))
    await bucket.put_async(REF.reopened, to_json(ReopenedRecord(100, retries=((2,),))))
    temporal.started = snapshot(version=1_800_000_000_000)
    answer = (await client.get(PATH)).json()
    assert (answer["status"], answer["version"]) == ("partial", 100)
    assert "may not be the latest" in answer["warning"]
    assert [(start["id"], start["argument"].lost) for start in temporal.starts] == [(REF.workflow_id, True)]
    temporal.pending = [_pending_activity(3)]
    assert (await client.get(PATH)).json()["warning"].endswith("; StorageUnavailable: the bucket failed (attempt 3)")
    temporal.state = snapshot(READY, PENDING, version=1_800_000_000_001)
    answer = (await client.get(PATH)).json()
    assert (answer["completedPages"], answer["version"], answer["warning"]) == (1, 1_800_000_000_001, None)


async def test_what_this_process_knows_of_a_lost_run_may_be_old(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """Another process may have told a newer state, so the answer says so until the new run has loaded."""
    await accept(bucket)
    temporal.state = snapshot(READY, PENDING)
    assert (await client.get(PATH)).json()["warning"] is None
    temporal.state, temporal.started = NOT_FOUND, snapshot(version=1_800_000_000_000)
    answer = (await client.get(PATH)).json()
    assert (answer["completedPages"], answer["version"]) == (1, 100)
    assert "the run was lost, and the new run has not loaded yet" in answer["warning"]
    temporal.state = snapshot(READY, PENDING, version=1_800_000_000_001)
    answer = (await client.get(PATH)).json()
    assert (answer["version"], answer["warning"]) == (1_800_000_000_001, None)


async def test_reopened_upload_whose_run_is_lost_can_be_cancelled(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal
) -> None:
    """A run that follows the lost one is started, and asked to end."""
    await accept(bucket)
    await bucket.put_async(REF.manifest, to_json(snapshot(READY, FAILED, status=UploadStatus.PARTIAL)))
    await bucket.put_async(REF.reopened, to_json(ReopenedRecord(100)))
    temporal.cancel_error, temporal.started = NOT_FOUND, snapshot(version=1_800_000_000_000)
    assert (await client.post(f"{PATH}/cancel")).status_code == 202
    assert (len(temporal.starts), temporal.cancels) == (1, 2)


async def test_upload_that_waits_for_its_run_does_not_spoil_the_list(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is shown with a warning, but Temporal answers, so it is asked about the uploads that follow in the list."""
    monkeypatch.setattr("api.plans.READS_AT_ONCE", 1)
    newest = other_upload(1)
    for ref in (REF, newest):
        await accept(bucket, ref)
    await bucket.put_async(newest.manifest, to_json(snapshot(READY, FAILED, status=UploadStatus.PARTIAL)))
    await bucket.put_async(newest.reopened, to_json(ReopenedRecord(100)))
    temporal.state = snapshot(version=1_800_000_000_000)
    waits, other = (await client.get(BASE)).json()["uploads"]
    assert (waits["upload"], waits["status"], other["status"], other["warning"]) == (newest.upload, "partial", "queued", None)
    assert "the run was lost, and the new run has not loaded yet" in waits["warning"]


async def test_run_that_was_started_just_now_has_a_version(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """Before a worker answers, the version is the start time: newer than a lost run's, and not newer than the new run's."""
    await accept(bucket)
    assert (await client.get(PATH)).json()["version"] == int(temporal.start_time.timestamp() * 1000)


async def test_reopened_run_serves_the_manifest_until_it_has_loaded(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal
) -> None:
    """A run that has not loaded yet does not hide the state of an earlier run."""
    await accept(bucket)
    days_ago = timestamp(datetime.now(UTC) - timedelta(days=3))
    await bucket.put_async(REF.manifest, to_json(replace(snapshot(READY, READY, version=100), updated_at=days_ago)))
    temporal.state = snapshot(version=200)
    answer = (await client.get(PATH)).json()
    assert (answer["status"], answer["version"], answer["warning"]) == ("complete", 100, None)


@pytest.mark.parametrize("silence", [UNAVAILABLE, NO_WORKER, RuntimeError("Failed client connect: refused")])
async def test_last_known_state_is_served_while_temporal_is_away(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal, silence: Exception
) -> None:
    """Without Temporal or workers, the state is ``queued``, then the last known state, then a newer manifest. It has a warning."""
    await accept(bucket)
    temporal.state = silence
    answer = (await client.get(PATH)).json()
    assert (answer["status"], answer["totalPages"]) == ("queued", 0)
    assert "may not be the latest" in answer["warning"]
    temporal.state = snapshot(READY, PENDING, version=100)
    assert (await client.get(PATH)).json()["warning"] is None
    temporal.state = silence
    answer = (await client.get(PATH)).json()
    assert (answer["status"], answer["completedPages"]) == ("processing", 1)
    assert answer["warning"]
    await bucket.put_async(REF.manifest, to_json(snapshot(READY, READY, version=200)))
    answer = (await client.get(PATH)).json()
    assert (answer["status"], bool(answer["warning"])) == ("complete", True)


async def test_terminated_run_is_failed(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """A run that an operator ended has no manifest. The upload is failed as ``Terminated``, and keeps its last known sheets."""
    await accept(bucket)
    forecast = Forecaster().forecast([Page(1, None, 100, 50, 300)], UploadOptions(), 1)
    temporal.state = replace(snapshot(READY, PENDING), forecast=forecast, sheet_puts=11)
    await client.get(PATH)
    temporal.state = closed_run(WorkflowExecutionStatus.TERMINATED)
    answer = (await client.get(PATH)).json()
    assert (answer["status"], answer["reason"], answer["completedPages"]) == ("failed", "Terminated", 1)
    assert answer["receipt"]["puts"] == 13
    assert answer["completedAt"] == "2026-01-31T00:00:00.000Z"
    assert answer["version"] > 100
    assert (await client.get(PATH)).json()["version"] == answer["version"]


async def test_run_that_an_operator_resets_does_not_end_the_upload(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal
) -> None:
    """A query that waited for the old run is told of its end while the new run is open: the last known state is served, with a warning."""
    await accept(bucket)
    temporal.state = snapshot(READY, PENDING)
    await client.get(PATH)
    temporal.state, temporal.close_time = closed_run(WorkflowExecutionStatus.TERMINATED), None
    answer = (await client.get(PATH)).json()
    assert (answer["status"], answer["completedPages"]) == ("processing", 1)
    assert "the run was replaced by another one" in answer["warning"]


@pytest.mark.parametrize("how", [WorkflowExecutionStatus.COMPLETED, WorkflowExecutionStatus.FAILED, WorkflowExecutionStatus.CANCELED])
async def test_ended_run_whose_manifest_is_missing_was_not_terminated(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal, how: WorkflowExecutionStatus
) -> None:
    """The run's last progress is the final state. While the run does not answer, the last known state is served with a warning."""
    await accept(bucket)
    temporal.state = snapshot(READY, PENDING)
    await client.get(PATH)
    temporal.state = closed_run(how)
    answer = (await client.get(PATH)).json()
    assert (answer["status"], answer["reason"], answer["completedPages"]) == ("processing", None, 1)
    assert "this may not be the latest state" in answer["warning"]
    temporal.last = snapshot(READY, READY, version=200)
    answer = (await client.get(PATH)).json()
    assert (answer["status"], answer["warning"], answer["version"]) == ("complete", None, 200)


@pytest.mark.parametrize(
    ("began", "went_on", "status"),
    [(timedelta(minutes=1), False, "failed"), (timedelta(minutes=-1), False, "complete"), (timedelta(minutes=-1), True, "failed")],
)
async def test_terminated_run_does_not_show_an_earlier_manifest(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal, began: timedelta, went_on: bool, status: str
) -> None:
    """A run that is terminated keeps its own findings, unless it had written its manifest, and did not go on after that."""
    await accept(bucket)
    manifest = snapshot(READY, READY, version=100)
    await bucket.put_async(REF.manifest, to_json(manifest))
    if went_on:
        await bucket.put_async(REF.reopened, to_json(ReopenedRecord(100)))
    temporal.state = snapshot(READY, PENDING, version=200)
    await client.get(PATH)
    temporal.start_time = datetime.fromisoformat(manifest.updated_at) + began
    temporal.state = closed_run(WorkflowExecutionStatus.TERMINATED)
    answer = (await client.get(PATH)).json()
    assert answer["status"] == status
    if status == "failed":
        assert (answer["reason"], answer["completedPages"], answer["version"] > 200) == ("Terminated", 1, True)


def _pending_activity(attempt: int) -> PendingActivityInfo:
    activity = PendingActivityInfo(attempt=attempt)
    activity.last_failure.message = "the bucket failed"
    activity.last_failure.application_failure_info.type = "StorageUnavailable"
    return activity


@pytest.mark.parametrize(
    ("idle", "attempt", "warning"),
    [
        (timedelta(seconds=1), 12, None),
        (timedelta(seconds=30), None, None),
        (timedelta(seconds=30), 2, None),
        (timedelta(seconds=30), 12, "StorageUnavailable: the bucket failed (attempt 12)"),
        (timedelta(minutes=7), None, "nothing moved for 7 minutes"),
        (timedelta(minutes=7), 12, "nothing moved for 7 minutes; StorageUnavailable: the bucket failed (attempt 12)"),
    ],
)
async def test_standstill_has_a_warning(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal, idle: timedelta, attempt: int | None, warning: str | None
) -> None:
    """When the progress stands still, the answer says so and has the last failure of an activity."""
    await accept(bucket)
    temporal.state = replace(snapshot(READY, PENDING), updated_at=timestamp(datetime.now(UTC) - idle))
    temporal.pending = [_pending_activity(1), _pending_activity(attempt)] if attempt else []
    assert (await client.get(PATH)).json()["warning"] == warning


async def test_deleted_upload_is_not_found(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """A marked upload does not exist for clients, and no run is started."""
    await accept(bucket, deleted_at="2026-01-31T00:00:00.000Z")
    for path in (PATH, f"{PATH}/events", f"{PATH}/sheets/sheet-1/thumbnail.jpeg"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["type"]) == (404, "UploadNotFound")
    for path in ("cancel", "reconcile", "sheets/1/retry", "sheets/1/prioritize"):
        assert (await client.post(f"{PATH}/{path}")).status_code == 404
    assert (temporal.starts, temporal.cancels) == ([], 0)


# Lists


async def test_list_is_newest_first(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """The list has only accepted uploads, the newest first, at most ``limit``."""
    temporal.state = snapshot(READY, PENDING)
    refs = [UploadRef("acme", "tower", "a1", f"0198c0de-0000-7000-8000-00000000000{n}") for n in range(1, 6)]
    for ref in refs[:3]:
        await accept(bucket, ref)
    await bucket.put_async(refs[3].source, b"still coming in")
    await accept(bucket, refs[4], deleted_at="2026-01-31T00:00:00.000Z")
    uploads = (await client.get(BASE)).json()["uploads"]
    assert [entry["upload"] for entry in uploads] == [ref.upload for ref in reversed(refs[:3])]
    assert {name: uploads[0][name] for name in ("ref", "fileName", "status", "progress", "completedPages", "totalPages")} == {
        "ref": str(refs[2]),
        "fileName": "A-101.pdf",
        "status": "processing",
        "progress": 0,
        "completedPages": 1,
        "totalPages": 2,
    }
    assert [entry["upload"] for entry in (await client.get(BASE, params={"limit": 2})).json()["uploads"]] == [
        refs[2].upload,
        refs[1].upload,
    ]
    assert (await client.get(BASE.replace("a1", "other"))).json() == {"uploads": [], "nextCursor": None}
    assert (await client.get(BASE, params={"limit": "0"})).status_code == 400


async def test_list_stops_asking_temporal_after_no_answer(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """A list of many uploads does not wait again and again for a Temporal that does not answer."""
    temporal.state = UNAVAILABLE
    for number in range(60):
        await accept(bucket, UploadRef("acme", "tower", "a1", f"upload-{number:02}"))
    assert len((await client.get(BASE, params={"limit": 60})).json()["uploads"]) == 60
    assert temporal.queries <= 16


# Actions


async def test_cancel_asks_the_run(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """A cancel request cancels the workflow in Temporal."""
    await accept(bucket)
    answer = await client.post(f"{PATH}/cancel")
    assert (answer.status_code, answer.json(), temporal.cancels) == (202, {"ref": str(REF)}, 1)


@pytest.mark.parametrize(("status", "code"), [(UploadStatus.COMPLETE, 409), (UploadStatus.FAILED, 409), (UploadStatus.CANCELLED, 202)])
async def test_cancel_of_an_upload_that_has_ended(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal, status: UploadStatus, code: int
) -> None:
    """It is refused, but a second cancel of a cancelled upload is no error."""
    await accept(bucket)
    await bucket.put_async(REF.manifest, to_json(snapshot(READY, status=status)))
    temporal.cancel_error, temporal.state = NOT_FOUND, closed_run()
    answer = await client.post(f"{PATH}/cancel")
    assert answer.status_code == code
    if code == 409:
        assert answer.json()["type"] == "AlreadyFinished"
        assert status in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "signal", "args"),
    [
        ("reconcile", "force_reconcile", (Reconcile(),)),
        ("reconcile?deep=true", "force_reconcile", (Reconcile(deep=True),)),
        ("sheets/2/retry", "retry_sheets", (SheetNumbers((2,)),)),
    ],
)
async def test_reopening_actions_start_with_a_signal(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal, path: str, signal: str, args: tuple[object, ...]
) -> None:
    """Reconcile and retry reach the run, also one that has ended."""
    await accept(bucket)
    await bucket.put_async(REF.manifest, to_json(snapshot(READY, FAILED, status=UploadStatus.PARTIAL)))
    temporal.state = closed_run()
    assert (await client.post(f"{PATH}/{path}")).status_code == 202
    assert [(start["start_signal"], tuple(start["start_signal_args"])) for start in temporal.starts] == [(signal, args)]


async def test_dry_run_reports_and_reopens_nothing(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """The answer has the repair of each sheet, and no run is started."""
    await accept(bucket)
    await bucket.put_async(REF.manifest, to_json(snapshot(READY, FAILED, status=UploadStatus.PARTIAL)))
    temporal.state = closed_run()
    answer = (await client.post(f"{PATH}/reconcile?dryRun=true")).json()
    assert [sheet["repair"] for sheet in answer["sheets"]] == ["tile", None]
    assert not answer["verified"]
    assert temporal.starts == []


async def test_reconcile_of_a_plan_reaches_each_of_its_uploads(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """Only accepted uploads are reconciled; other objects below ``uploads/`` are left alone."""
    await accept(bucket)
    await bucket.put_async(replace(REF, upload="never-accepted").source, b"%PDF")
    plan = BASE.removesuffix("/uploads")
    answer = await client.post(f"{plan}/reconcile")
    assert (answer.status_code, answer.json()) == (202, {"plan": "acme/tower/a1", "refs": [str(REF)], "passedOver": []})
    assert [start["start_signal"] for start in temporal.starts] == ["force_reconcile"]
    assert (await client.post(f"{plan.replace('a1', 'none')}/reconcile")).json()["refs"] == []


async def test_prioritize_signals_the_run(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """The run tiles the sheet next. When the upload has ended, the request is refused."""
    await accept(bucket)
    temporal.state = snapshot(READY, PENDING)
    assert (await client.post(f"{PATH}/sheets/2/prioritize")).status_code == 202
    assert temporal.signals == [("prioritize", SheetNumbers((2,)))]
    temporal.signal_error = NOT_FOUND
    assert (await client.post(f"{PATH}/sheets/2/prioritize")).json()["type"] == "AlreadyFinished"


@pytest.mark.parametrize(("sheet", "status"), [("3", 404), ("0", 404), ("-1", 404), ("x", 404), ("9" * 30, 404), ("1", 409)])
async def test_retry_of_an_unknown_or_ready_sheet_is_refused(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal, sheet: str, status: int
) -> None:
    """An unknown sheet is 404, a ready sheet is 409. No run is started."""
    await accept(bucket)
    temporal.state = snapshot(READY, FAILED)
    assert (await client.post(f"{PATH}/sheets/{sheet}/retry")).status_code == status
    assert temporal.starts == []


@pytest.mark.parametrize(("status", "code"), [(UploadStatus.CANCELLED, 202), (UploadStatus.FAILED, 404)])
async def test_upload_cancelled_before_its_pages_were_counted_can_be_resumed(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal, status: UploadStatus, code: int
) -> None:
    """A cancelled upload may have the sheet, so a retry resumes it. A failed document has no sheets, so the retry is refused."""
    await accept(bucket)
    await bucket.put_async(REF.manifest, to_json(snapshot(status=status)))
    temporal.state = closed_run()
    assert (await client.post(f"{PATH}/sheets/1/retry")).status_code == code
    assert len(temporal.starts) == (code == 202)


@pytest.mark.parametrize("path", ["cancel", "reconcile", "sheets/1/retry", "sheets/1/prioritize"])
async def test_action_without_temporal_says_so(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal, path: str) -> None:
    """An action that Temporal does not take is a 503 ``TemporalUnavailable`` with ``Retry-After``."""
    await accept(bucket)
    temporal.state = temporal.start_error = temporal.cancel_error = temporal.signal_error = UNAVAILABLE
    answer = await client.post(f"{PATH}/{path}")
    assert (answer.status_code, answer.json()["type"]) == (503, "TemporalUnavailable")
    assert answer.headers["retry-after"]


# Tiles


async def test_tiles_may_be_cached_for_a_year_and_other_objects_are_revalidated(client: httpx2.AsyncClient, bucket: Bucket) -> None:
    """Each object has its media type, its ``Cache-Control``, and an ETag that gives 304."""
    await accept(bucket)
    immutable = "private, max-age=31536000, immutable"
    for path, key, media_type, cache in (
        ("sheet-2/thumbnail.jpeg", REF.thumbnail(2), "image/jpeg", "no-cache"),
        ("sheet-2/tiles/sheet-2.dzi", REF.descriptor(2), "application/xml", "no-cache"),
        ("sheet-2/tiles/sheet-2_files/10/3_12.jpeg", REF.tiles_prefix(2) + "10/3_12.jpeg", "image/jpeg", immutable),
        ("sheet-2/tiles/sheet-2_files/0/0_0.jpeg", REF.tiles_prefix(2) + "0/0_0.jpeg", "image/jpeg", immutable),
    ):
        await bucket.put_async(key, key.encode())
        answer = await client.get(f"{PATH}/sheets/{path}")
        assert (answer.status_code, answer.content) == (200, key.encode())
        assert answer.headers["content-type"].startswith(media_type)
        assert answer.headers["cache-control"] == cache
        again = await client.get(f"{PATH}/sheets/{path}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content, again.headers["cache-control"]) == (304, b"", cache)


@pytest.mark.parametrize(
    "path",
    [
        "sheet-1/thumbnail.jpeg",
        "sheet-01/tiles/sheet-01.dzi",
        "sheet-1/tiles/sheet-2.dzi",
        "sheet-1/tiles/sheet-1_files/0/0_0.png",
        "sheet-1/tiles/sheet-1_files/00/0_0.jpeg",
        "sheet-1/tiles/sheet-1_files/0/%2e%2e/%2e%2e/sheet.json",
        "sheet-1/sheet.json",
        "..%2fsource.pdf",
        "sheet-1/tiles/sheet-1_files/0/-1_0.jpeg",
    ],
)
async def test_path_of_no_sheet_object_is_not_found(client: httpx2.AsyncClient, bucket: Bucket, path: str) -> None:
    """Only names of a sheet's objects are looked up, and a 404 is not cached."""
    await accept(bucket)
    await bucket.put_async(REF.sheet_record(1), b"{}")
    await bucket.put_async(REF.source, b"%PDF-")
    answer = await client.get(f"{PATH}/sheets/{path}")
    assert answer.status_code == 404
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["content-type"] == "application/problem+json"


# Records that cannot be read

CUT, NEWER = b'{"status": "comp', b'{"schema": 2}'


def other_upload(number: int) -> UploadRef:
    """Another upload of the plan, newer than ``REF`` by ``number``."""
    return replace(REF, upload=f"0198c0de-0000-7000-8000-{number + 1:012}")


@pytest.mark.parametrize("body", [CUT, NEWER, b"\xff", b'{"status":"complete","version":1,"updatedAt":"noon"}'])
@pytest.mark.parametrize("name", ["record", "manifest", "reopened"])
async def test_record_that_cannot_be_read_is_a_warning_of_its_upload(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal, name: str, body: bytes
) -> None:
    """The list and the upload's own state have the warning. Other uploads have none, no run is started, no record is overwritten."""
    for ref in (REF, other_upload(1)):
        await accept(bucket, ref)
        await bucket.put_async(ref.manifest, to_json(snapshot(READY)))
    key = getattr(REF, name)
    await bucket.put_async(key, body)
    await asyncio.to_thread(put_sheet, bucket, 1, REF)
    newest, broken = (await client.get(BASE)).json()["uploads"]
    assert (newest["upload"], newest["status"], newest["warning"]) == (other_upload(1).upload, "complete", None)
    shown = (await client.get(PATH)).json()
    for answer in (broken, shown):
        assert (answer["ref"], answer["completedPages"]) == (str(REF), 1)
        assert f"{key} cannot be read: it" in answer["warning"]
        assert answer["createdAt"]
        assert (answer["fileName"], answer["sizeBytes"]) == ((None, None) if name == "record" else ("A-101.pdf", 5009))
    assert temporal.starts == []
    assert (await bucket.get_async(key)).body == body


@pytest.mark.parametrize(
    ("name", "state"), [("record", NOT_FOUND), ("manifest", NOT_FOUND), ("reopened", NOT_FOUND), ("reopened", closed_run())]
)
async def test_action_on_an_unreadable_record_is_refused(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal, name: str, state: Exception
) -> None:
    """It is refused by name, and nothing is started or changed. Objects of its sheets are still served."""
    await accept(bucket)
    await bucket.put_async(REF.manifest, to_json(snapshot(READY, FAILED, status=UploadStatus.PARTIAL)))
    await bucket.put_async(getattr(REF, name), NEWER)
    await asyncio.to_thread(put_sheet, bucket, 1, REF)
    temporal.state = state
    for path in ("cancel", "reconcile", "sheets/1/retry", "sheets/1/prioritize") if state is NOT_FOUND else ("reconcile", "sheets/2/retry"):
        temporal.cancel_error = NOT_FOUND
        answer = await client.post(f"{PATH}/{path}")
        assert (answer.status_code, answer.json()["type"]) == (409, "NewerSchema"), path
    if name == "record":
        answer = await client.delete(PATH)
        assert (answer.status_code, answer.json()["type"]) == (409, "NewerSchema")
    assert temporal.starts == []
    assert (await bucket.get_async(getattr(REF, name))).body == NEWER
    assert (await client.get(f"{PATH}/sheets/sheet-1/tiles/sheet-1.dzi")).status_code == 200


async def test_run_can_be_cancelled_despite_an_unreadable_record(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal
) -> None:
    """A run that waits until the record can be read is shown with a warning, and can be cancelled."""
    await bucket.put_async(REF.record, CUT)
    temporal.state = snapshot(READY, PENDING)
    shown = (await client.get(PATH)).json()
    assert (shown["status"], shown["totalPages"]) == ("processing", 2)
    assert "cannot be read" in shown["warning"]
    assert (await client.post(f"{PATH}/cancel")).status_code == 202
    assert temporal.cancels == 1


async def test_reconcile_of_a_plan_passes_over_unreadable_uploads(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal
) -> None:
    """The answer names them, and all other uploads are reconciled."""
    for number in range(4):
        await accept(bucket, other_upload(number))
    await bucket.put_async(other_upload(1).record, CUT)
    await bucket.put_async(other_upload(2).manifest, NEWER)
    answer = await client.post(f"{BASE.removesuffix('/uploads')}/reconcile")
    assert answer.status_code == 202
    assert sorted(answer.json()["refs"]) == [str(other_upload(0)), str(other_upload(3))]
    passed_over = sorted(answer.json()["passedOver"], key=lambda upload: str(upload["ref"]))
    assert [(upload["ref"], upload["type"]) for upload in passed_over] == [
        (str(other_upload(1)), "DamagedRecord"),
        (str(other_upload(2)), "NewerSchema"),
    ]
    assert all("cannot be read: it " in upload["detail"] for upload in passed_over)
    assert len(temporal.starts) == 2


async def test_sheet_whose_record_cannot_be_read_is_not_counted(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """The warning names the sheet, and the other sheets are counted."""
    await accept(bucket)
    for number in (1, 2):
        await asyncio.to_thread(put_sheet, bucket, number, REF)
    await bucket.put_async(REF.sheet_record(2), CUT)
    temporal.started = snapshot(version=1_800_000_000_000)
    temporal.state = temporal.started
    answer = (await client.get(PATH)).json()
    assert (answer["completedPages"], [sheet["number"] for sheet in answer["sheets"]]) == (1, [1])
    assert f"1 sheets are not counted: {REF.sheet_record(2)} cannot be read" in answer["warning"]


async def test_list_of_unreadable_events_leaves_out_unreadable_records(client: httpx2.AsyncClient, bucket: Bucket) -> None:
    """A record of a newer release hides no other record."""
    await bucket.put_async("events/unreadable/a.json", NEWER)
    await bucket.put_async(
        "events/unreadable/b.json", b'{"message":"m","attempts":5,"error":"e","keptAt":"2026-01-31T09:30:00Z","body":""}'
    )
    assert [event["message"] for event in (await client.get("/v1/events/unreadable")).json()["unreadable"]] == ["m"]


# Pages of a list


async def test_list_is_followed_to_its_end(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """By ``nextCursor`` or the link, each upload comes once, newest first. New uploads change nothing; the last page has no link."""
    temporal.state = snapshot(READY)
    for number in range(7):
        await accept(bucket, other_upload(number))
    await bucket.put_async(other_upload(3).source, b"still coming in")
    await asyncio.to_thread(bucket.delete, [other_upload(3).record])
    found, path = [], f"{BASE}?limit=2"
    while path:
        answer = await client.get(path)
        found += [entry["upload"] for entry in answer.json()["uploads"]]
        await accept(bucket, other_upload(10 + len(found)))
        cursor = answer.json()["nextCursor"]
        path = answer.links["next"]["url"] if "next" in answer.links else ""
        assert (path != "") == (cursor is not None)
        assert not path or (await client.get(BASE, params={"limit": 2, "cursor": cursor})).json() == (await client.get(path)).json()
    assert found == [other_upload(number).upload for number in (6, 5, 4, 2, 1, 0)]
    assert (await client.get(BASE, params={"cursor": other_upload(0).upload})).json() == {"uploads": [], "nextCursor": None}


@pytest.mark.parametrize("cursor", ["", "-", "a/b", "../x", "x" * 65])
async def test_malformed_cursor_is_refused(client: httpx2.AsyncClient, cursor: str) -> None:
    """It is an ``InvalidRequest``."""
    answer = await client.get(BASE, params={"cursor": cursor})
    assert (answer.status_code, answer.json()["type"]) == (400, "InvalidRequest")


# Refusals, health, headers


@pytest.mark.parametrize(
    ("method", "path", "status", "name"),
    [
        ("GET", "/nothing", 404, "NotFound"),
        ("GET", "/static/nothing.js", 404, "NotFound"),
        ("DELETE", "/livez", 405, "MethodNotAllowed"),
        ("PUT", BASE, 405, "MethodNotAllowed"),
        ("GET", PATH, 404, "UploadNotFound"),
        ("GET", PATH.replace("acme", "-acme"), 422, "MalformedId"),
        ("POST", BASE.replace("a1", "a%201"), 422, "MalformedId"),
    ],
)
async def test_every_refusal_has_one_shape(client: httpx2.AsyncClient, method: str, path: str, status: int, name: str) -> None:
    """Each error answer has type, title, status, detail and instance (RFC 9457)."""
    answer = await client.request(method, path)
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(body) == {"type", "title", "status", "detail", "instance"}
    assert (answer.status_code, body["status"], body["type"]) == (status, status, name)
    assert body["title"]
    assert body["detail"]
    assert body["instance"].startswith("/")


async def test_unexpected_error_shows_no_internals(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """A bug is a 500 of the same shape, without the error's message."""
    await accept(bucket)
    temporal.state = ZeroDivisionError("a secret")
    answer = await client.get(PATH)
    assert (answer.status_code, answer.json()["type"]) == (500, "InternalError")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "secret" not in answer.text
    assert {"content-security-policy", "x-request-id"} <= answer.headers.keys()


@pytest.mark.parametrize(("method", "path", "allowed"), [("PUT", BASE, "GET, HEAD, POST"), ("POST", PATH, "DELETE, GET, HEAD")])
async def test_allow_names_the_methods_of_all_routes_at_a_path(client: httpx2.AsyncClient, method: str, path: str, allowed: str) -> None:
    """Not only those of the first route: https://www.rfc-editor.org/rfc/rfc9110#section-15.5.6."""
    answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize(("span", "status"), [("bytes=9999999-", 416), ("bytes=9-1", 400)])
async def test_refused_range_is_a_problem(client: httpx2.AsyncClient, span: str, status: int) -> None:
    """Starlette refuses a range of a static file in plain text."""
    answer = await client.get("/static/style.css", headers={"Range": span})
    assert (answer.status_code, answer.headers["content-type"], answer.json()["status"]) == (status, "application/problem+json", status)


def test_every_named_error_has_a_status() -> None:
    """Each named error has its own status, or that of a base class."""
    assert STATUS[errors.SiteLinkError] == 500
    assert all(issubclass(kind, errors.SiteLinkError) for kind in STATUS)


async def test_health(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal, tmp_path: Path) -> None:
    """The process is always alive. It is ready only with Temporal and the bucket, and the answer names the missing one."""
    assert (await client.get("/readyz")).status_code == 200
    temporal.healthy = RPCError("down", RPCStatusCode.UNAVAILABLE, b"")
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["type"]) == (503, "TemporalUnavailable")
    temporal.healthy = True
    (tmp_path / "bucket").rmdir()
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["type"]) == (503, "NoSuchBucket")
    temporal.healthy = False
    answer = await client.get("/readyz")
    assert "Temporal" in answer.json()["detail"]
    assert "bucket" in answer.json()["detail"]
    assert (await client.get("/livez")).status_code == 200


async def test_questions_about_readiness_share_a_check(client: httpx2.AsyncClient, temporal: FakeTemporal) -> None:
    """A stranger who asks often makes no more requests to Temporal and to the bucket."""
    answered, checks = asyncio.Event(), 0

    async def check_health(**_: object) -> bool:
        nonlocal checks
        checks += 1
        await answered.wait()
        return True

    temporal.check_health = check_health  # type: ignore[method-assign]
    requests = [asyncio.create_task(client.get("/readyz")) for _ in range(50)]
    await until_async(lambda: checks > 0)
    requests[0].cancel()
    await asyncio.sleep(0)
    answered.set()
    assert {(await request).status_code for request in requests[1:]} == {200}
    assert checks == 1
    assert (await client.get("/readyz")).status_code == 200
    assert checks == 2


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
@pytest.mark.parametrize("host", [None, "", "sitelink.example", "["])
async def test_health_checks_answer_under_any_host_name(app: Starlette, path: str, host: str | None) -> None:
    """The check of a load balancer has another host name, or none, like HAProxy's check by HTTP/1.0."""
    request = RawRequest(app, "GET", path, {}, host)
    request.feed(b"", more=False)
    await request.task
    assert request.status == 200


class _FullBucket(Bucket):
    """Needs more room than any disk has, until ``has_room``. Counts how often the room is checked."""

    looks = 0
    has_room = False

    async def check_room(self, least_bytes: int = 1 << 62) -> None:
        """Checks the real disk."""
        self.looks += 1
        await super().check_room(0 if self.has_room else least_bytes)


async def test_full_bucket_is_not_ready(temporal: FakeTemporal, tmp_path: Path) -> None:
    """``/readyz`` gives the numbers but no path, and does not check the room at every call. ``/livez`` still answers 200."""
    bucket = _FullBucket(BucketSettings((tmp_path / "bucket").as_uri()))
    async with client_of(make_app(bucket, temporal)) as client:
        for _ in range(5):
            answer = await client.get("/readyz")
            assert (answer.status_code, answer.json()["type"]) == (503, "StorageUnavailable")
            assert "bytes free" in answer.json()["detail"]
            assert str(tmp_path) not in answer.text
        assert (await client.get("/livez")).status_code == 200
        assert bucket.looks == 1
    bucket.has_room = True
    async with client_of(make_app(bucket, temporal)) as client:
        for _ in range(5):
            assert (await client.get("/readyz")).status_code == 200
        assert bucket.looks == 2
        shutil.rmtree(tmp_path / "bucket")
        assert (await client.get("/readyz")).json()["type"] == "NoSuchBucket"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 404),
        ({"Host": "localhost:8000"}, 404),
        ({"Host": "[::1]:8000"}, 404),
        ({"Host": "evil.example:8000"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "["}, 421),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:8000"}, 404),
        ({"Sec-Fetch-Site": "none"}, 404),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9000"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
async def test_pages_of_other_sites_are_refused(client: httpx2.AsyncClient, headers: dict[str, str], status: int) -> None:
    """DNS rebinding and requests from pages of other sites are refused. Programs and our own page may use the API."""
    answer = await client.post(f"{PATH}/cancel", headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", [PATH, f"{PATH}/events", f"{PATH}/verify?deep=true", BASE])
@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"}])
async def test_page_of_another_site_starts_nothing_by_a_get(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal, path: str, headers: dict[str, str]
) -> None:
    """An image or a link of another site's page starts no workflow and no verification. A link to our page works."""
    await accept(bucket)
    answer = await client.get(path, headers={"Sec-Fetch-Mode": "navigate", **headers})
    assert (answer.status_code, answer.json()["type"]) == (403, "ForeignOrigin")
    assert temporal.starts == []
    assert (await client.get("/", headers=headers)).status_code == 200


@pytest.mark.parametrize("headers", [{"Content-Length": "5"}, {"Transfer-Encoding": "chunked"}])
async def test_get_with_a_body_is_refused(client: httpx2.AsyncClient, headers: dict[str, str]) -> None:
    """The server would hold a part of the body for as long as an event stream is open."""
    answer = await client.request("GET", f"{PATH}/events", headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (400, "InvalidRequest")


async def test_answers_carry_the_policy(client: httpx2.AsyncClient) -> None:
    """The page may load only its own scripts and styles, and nobody may frame it."""
    for path in ("/", "/static/nothing.js", "/livez"):
        policy = (await client.get(path)).headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy


# Settings


def test_settings_are_read_from_the_environment() -> None:
    """Each variable sets its field, and has a default."""
    settings = ApiSettings.from_env(
        {"SITELINK_PORT": "0", "SITELINK_HOST": "::1", "SITELINK_MAX_FILE_BYTES": "5", "SITELINK_DATA_DIR": "/d"}
    )
    assert settings == ApiSettings(BucketSettings("file:///d/bucket"), "::1", 0, 5)
    assert (ApiSettings.from_env({}).host, ApiSettings.from_env({}).port) == ("127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SITELINK_HOST", "0.0.0.0"),  # noqa: S104 - it must be refused
        ("SITELINK_HOST", "example.org"),
        ("SITELINK_PORT", "x"),
        ("SITELINK_PORT", "65536"),
        ("SITELINK_PORT", "+8000"),
        ("SITELINK_MAX_FILE_BYTES", "0"),
        ("SITELINK_MAX_FILE_BYTES", "1_000"),
        ("SITELINK_EVENTS_ATTEMPTS", "5 "),
    ],
)
def test_unusable_setting_is_refused_by_name(name: str, value: str) -> None:
    """The error has the variable and its value. A host other than loopback is refused, because there is no authentication."""
    with pytest.raises(ValueError, match=name) as refusal:
        ApiSettings.from_env({name: value})
    assert value in str(refusal.value)
