"""Runs whose payloads are encrypted, and processes that lack the key."""

from collections.abc import Sequence

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError

from activities.bucket.keys import UploadRef
from activities.bucket.records import UploadStatus
from activities.errors import PageUnreadable, PayloadUnreadable, StorageUnavailable
from deploy.temporal import TemporalServer
from tests.waiting import until_async
from tests.workflow.fakes import FakeActivities, activity_workers, pages, working
from tests.workflow.runs import handle_of, keep_history
from worker.app import workflow_worker
from workflows.codec import data_converter
from workflows.messages import Reconcile, SheetNumbers
from workflows.starting import start_upload
from workflows.upload import ProcessUpload

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
"""The first is also that of ``tests/replay``."""
TITLE = "A-10"
"""How the titles of the pages begin."""


async def connected(server: TemporalServer, keys: Sequence[bytes]) -> Client:
    """A client with these keys."""
    return await Client.connect(server.address, identity="test", data_converter=data_converter(keys))


@pytest.fixture
async def sealed(temporal_server: TemporalServer, client: Client) -> Client:
    """A client with the key; ``client`` has ended the runs of earlier tests."""
    assert client
    return await connected(temporal_server, [KEY])


async def test_nothing_in_temporal_shows_a_title(sealed: Client, ref: UploadRef) -> None:
    """Neither the history nor the description of a run with a failed sheet; who has the key reads everything."""
    fake = FakeActivities(pages(5))
    fake.tile_errors[2] = [PageUnreadable("cannot draw A-102")]
    fake.upload_errors[3] = [StorageUnavailable("cannot write A-103")]
    async with working(sealed, fake):
        await start_upload(sealed, ref, request_id="mine-7")
        result = await handle_of(sealed, ref).result()
        last = await handle_of(sealed, ref).query(ProcessUpload.progress)
        await keep_history(handle_of(sealed, ref), "encrypted")
    assert (result.status, result.completed_pages) == (UploadStatus.PARTIAL, 4)
    assert fake.manifest == last
    assert [sheet.title for sheet in last.sheets] == ["A-101", "A-102", "A-103", "A-104", "A-105"]
    history = await handle_of(sealed, ref).fetch_history()
    description = await handle_of(sealed, ref).describe()
    stored = b"".join(event.SerializeToString() for event in history.events) + description.raw_description.SerializeToString()
    assert PageUnreadable.__name__.encode() in stored
    for word in (TITLE, "sheet 1", "mine-7", "count pages", "plan a1 of"):
        assert word.encode() not in stored
    assert await description.memo() == {"requestId": "mine-7"}
    assert await description.static_summary() == "plan a1 of tower, acme"


async def test_run_in_clear_goes_on_encrypted(temporal_server: TemporalServer, client: Client, sealed: Client, ref: UploadRef) -> None:
    """Workers with a key take over a run in flight, and a client without the key still signals it."""
    fake = FakeActivities(pages(4))
    async with workflow_worker(client):
        await start_upload(client, ref)
        await until_async(lambda: _has(handle_of(client, ref), EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED))
    await handle_of(client, ref).signal(ProcessUpload.prioritize, SheetNumbers((4,)))
    async with working(sealed, fake):
        await handle_of(client, ref).signal(ProcessUpload.force_reconcile, Reconcile())
        result = await handle_of(sealed, ref).result()
    assert (result.status, result.completed_pages, result.reconciled) == (UploadStatus.COMPLETE, 4, True)


@pytest.mark.parametrize("keys", [(), (OTHER,)], ids=["no key", "another key"])
async def test_run_waits_for_the_key(temporal_server: TemporalServer, sealed: Client, ref: UploadRef, keys: Sequence[bytes]) -> None:
    """Workers that cannot decrypt fail neither the run nor a sheet, and drop no signal. The error has its name."""
    fake, blind = FakeActivities(pages(3)), await connected(temporal_server, keys)
    handle = handle_of(sealed, ref)
    async with working(blind, fake):
        await start_upload(sealed, ref)
        await handle.signal(ProcessUpload.force_reconcile, Reconcile())
        await until_async(lambda: _has_failed_a_task(blind, handle))
    async with workflow_worker(sealed), activity_workers(blind, fake):
        await until_async(lambda: _has_failed_an_activity(handle))
    async with working(sealed, fake):
        result = await handle.result()
    assert (result.status, result.completed_pages, result.reconciled) == (UploadStatus.COMPLETE, 3, True)


async def _has(handle: WorkflowHandle[object, object], kind: EventType.ValueType) -> bool:
    return kind in {event.event_type for event in (await handle.fetch_history()).events}


async def _has_failed_a_task(blind: Client, handle: WorkflowHandle[object, object]) -> bool:
    for event in (await handle.fetch_history()).events:
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
            error = await blind.data_converter.decode_failure(event.workflow_task_failed_event_attributes.failure)
            assert isinstance(error, ApplicationError)
            assert error.type == PayloadUnreadable.__name__
            return True
    return False


async def _has_failed_an_activity(handle: WorkflowHandle[object, object]) -> bool:
    pending = (await handle.describe()).raw_description.pending_activities
    return any(activity.HasField("last_failure") for activity in pending)
