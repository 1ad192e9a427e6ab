"""``DELETE …/uploads/{upload}``: the upload is gone at once for everybody, with or without Temporal."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx2
import pytest
from temporalio.exceptions import WorkflowAlreadyStartedError

from activities.bucket.records import SheetStatus, UploadRecord, from_json
from activities.bucket.storage import Bucket
from api.progress.runs import Runs
from api.progress.sse import Hub
from api.progress.status import Status
from tests.unit.api_fakes import (
    BASE,
    PATH,
    PDF,
    REF,
    UNAVAILABLE,
    FakeTemporal,
    Upstream,
    accept,
    client_of,
    make_app,
    snapshot,
)
from tests.waiting import until_async

TILE = f"{PATH}/sheets/sheet-1/thumbnail.jpeg"


@pytest.fixture
async def client(bucket: Bucket, temporal: FakeTemporal) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the API."""
    async with client_of(make_app(bucket, temporal)) as client:
        yield client


async def test_deleted_upload_is_gone_at_once(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """It has no state, tile, stream, list entry or action, although its record was just read. A second deletion is no error."""
    temporal.state = snapshot(SheetStatus.READY, SheetStatus.TILING)
    await accept(bucket)
    await bucket.put_async(REF.thumbnail(1), b"jpeg")
    assert (await client.get(TILE)).status_code == 200
    assert [(await client.delete(PATH)).status_code for _ in range(2)] == [202, 202]
    for path in (PATH, TILE, f"{PATH}/events", f"{PATH}/verify"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["type"]) == (404, "UploadNotFound"), path
    for path in ("cancel", "reconcile", "sheets/1/retry", "sheets/1/prioritize"):
        assert (await client.post(f"{PATH}/{path}")).status_code == 404, path
    assert (await client.get(BASE)).json()["uploads"] == []
    assert from_json(UploadRecord, (await bucket.get_async(REF.record)).body).deleted_at is not None
    assert [start["id"] for start in temporal.starts] == [f"delete/{REF}"] * 2


async def test_deletion_that_runs_already_is_no_error(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """Temporal's refusal of a second workflow is success."""
    await accept(bucket, deleted_at="2026-01-31T09:30:00.250Z")
    temporal.start_error = WorkflowAlreadyStartedError(REF.delete_workflow_id, "DeleteUpload")
    assert (await client.delete(PATH)).status_code == 202
    record = from_json(UploadRecord, (await bucket.get_async(REF.record)).body)
    assert record.deleted_at == "2026-01-31T09:30:00.250Z"


async def test_deletion_without_temporal_is_accepted(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """The mark is enough: the sweep will find it and start the removal."""
    temporal.start_error = UNAVAILABLE
    await accept(bucket)
    assert (await client.delete(PATH)).status_code == 202
    assert (await client.get(PATH)).status_code == 404


async def test_unknown_upload_cannot_be_deleted(client: httpx2.AsyncClient, temporal: FakeTemporal) -> None:
    """An upload that never existed, or whose objects are removed already, is not found."""
    answer = await client.delete(PATH)
    assert (answer.status_code, answer.json()["type"]) == (404, "UploadNotFound")
    assert temporal.starts == []


async def test_read_that_began_before_the_mark_brings_nothing_back(bucket: Bucket, temporal: FakeTemporal) -> None:
    """A read whose answer comes after the mark was set does not hide the mark."""
    reading, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Bucket):
        """Delays its first answer until the test lets it go."""

        async def get_async(self, key: str):  # type: ignore[no-untyped-def]
            answer = await super().get_async(key)
            if not reading.is_set():
                reading.set()
                await go_on.wait()
            return answer

    bucket.__class__ = Slow
    await accept(bucket)
    status = Status(bucket, Runs(temporal.connect))
    before = asyncio.create_task(status.record(REF))
    await reading.wait()
    await status.mark_deleted(REF)
    go_on.set()
    await before
    assert [type(result).__name__ for result in await asyncio.gather(status.record(REF), return_exceptions=True)] == ["UploadNotFound"]


async def test_deletion_ends_the_streams_here_at_once(bucket: Bucket) -> None:
    """They end without an ``end`` event, because the upload did not finish. Later changes do not bring the upload back."""
    upstream = Upstream(snapshot(SheetStatus.TILING))
    await accept(bucket)
    runs = Runs(upstream.connect)
    status = Status(bucket, runs)
    hub = Hub(bucket, status, runs)
    watcher = hub.subscribe(REF)
    async with asyncio.timeout(120):
        while watcher.snapshot is None:
            await watcher.changed.wait()
        await status.mark_deleted(REF)
        hub.end(REF)
        assert watcher.deleted
        await upstream.set(replace(snapshot(SheetStatus.READY), version=200))
        await until_async(lambda: bool(upstream.updates))
        assert watcher.deleted
        assert watcher.final is None
    hub.release(watcher)
    await hub.close()


async def test_key_of_a_deleted_upload_is_refused_until_the_removal(
    client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal
) -> None:
    """The key is refused until the upload is removed. Then the same request makes a new upload."""
    headers = {"Content-Type": "application/pdf", "Idempotency-Key": "once"}
    first = (await client.post(BASE, content=PDF, headers=headers)).json()
    await client.delete(f"{BASE}/{first['upload']}")
    refused = await client.post(BASE, content=PDF, headers=headers)
    assert (refused.status_code, refused.json()["type"]) == (422, "IdempotencyConflict")
    assert "was deleted" in refused.json()["detail"]
    bucket.delete([info.key for info in bucket.objects(REF.plan_ref.prefix)])
    second = await client.post(BASE, content=PDF, headers=headers)
    assert second.status_code == 202
    assert second.json()["upload"] != first["upload"]
    assert json.loads((await bucket.get_async(REF.plan_ref.idempotency_key("once"))).body)["upload"] == second.json()["upload"]
