"""Requests that come when a run has ended, or is about to end."""

import pytest
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ActivityError

from activities.bucket.keys import UploadRef
from activities.bucket.records import UploadStatus
from activities.errors import PageUnreadable, SourceMissing, UploadNotFound
from tests.waiting import until_async
from tests.workflow.fakes import FakeActivities, pages, working
from tests.workflow.runs import cancelled_after_one, handle_of
from workflows.messages import Reconcile, SheetNumbers
from workflows.starting import reopen_upload, start_upload


async def test_retry_of_a_failed_sheet_makes_a_partial_upload_complete(client: Client, ref: UploadRef) -> None:
    """Only the failed sheet is tiled again."""
    fake = FakeActivities(pages(3))
    fake.tile_errors[2] = [PageUnreadable("page 2 cannot be loaded")]
    async with working(client, fake):
        await start_upload(client, ref)
        assert (await handle_of(client, ref).result()).status is UploadStatus.PARTIAL
        await reopen_upload(client, ref, "retry_sheets", SheetNumbers((2,)))
        result = await handle_of(client, ref).result()
    assert (result.status, result.progress) == (UploadStatus.COMPLETE, 100)
    assert sorted(fake.tiled) == [1, 2, 2, 3]


async def test_cancelled_upload_is_resumed_only_when_asked(client: Client, ref: UploadRef) -> None:
    """Reconciling a cancelled upload tiles nothing; retrying it does the rest."""
    fake = FakeActivities(pages(4), window=1)
    fake.closes_after = 1
    async with working(client, fake):
        tiled = await cancelled_after_one(client, ref, fake)
        await reopen_upload(client, ref, "force_reconcile")
        reconciled = await handle_of(client, ref).result()
        assert (reconciled.status, reconciled.reconciled) == (UploadStatus.CANCELLED, True)
        assert fake.tiled == tiled
        await reopen_upload(client, ref, "retry_sheets", SheetNumbers())
        resumed = await handle_of(client, ref).result()
    assert resumed.status is UploadStatus.COMPLETE


@pytest.mark.parametrize("signal", ["force_reconcile", "retry_sheets"])
async def test_signal_while_a_refused_upload_closes_is_heard(client: Client, ref: UploadRef, signal: str) -> None:
    """Someone puts the missing file back and asks again while the manifest is being written: the upload is done."""
    fake = FakeActivities(SourceMissing("the bucket has no source.pdf"))
    fake.stubborn = "write_manifest"
    async with working(client, fake):
        await start_upload(client, ref)
        await until_async(lambda: fake.reached == "write_manifest")
        fake.pages = pages(2)
        await reopen_upload(client, ref, signal, SheetNumbers() if signal == "retry_sheets" else Reconcile())
        fake.released.set()
        result = await handle_of(client, ref).result()
    assert (result.status, result.completed_pages) == (UploadStatus.COMPLETE, 2)
    assert sorted(fake.tiled) == [1, 2]


async def test_reopened_run_that_cannot_read_the_records_leaves_the_manifest(client: Client, ref: UploadRef) -> None:
    """A manifest that cannot be read is not written over."""
    fake = FakeActivities(pages(2))
    async with working(client, fake):
        await start_upload(client, ref)
        await handle_of(client, ref).result()
        before = fake.manifest
        fake.list_errors = [UploadNotFound("it is gone")]
        await reopen_upload(client, ref, "force_reconcile")
        with pytest.raises(WorkflowFailureError) as failure:
            await handle_of(client, ref).result()
    assert isinstance(failure.value.cause, ActivityError)
    assert fake.manifest == before
