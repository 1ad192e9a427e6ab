"""Requests that come when a run has ended, or is about to end."""

import asyncio

import pytest
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ActivityError

from activities.bucket.keys import UploadRef
from activities.bucket.records import ReopenedRecord, Snapshot, UploadStatus
from activities.errors import PageUnreadable, PasswordRequired, SourceMissing, UploadNotFound
from tests.waiting import until_async
from tests.workflow.fakes import FakeActivities, pages, working
from tests.workflow.runs import cancel_in_step, cancelled_after_one, end_as_failed, handle_of, keep_history
from workflows.messages import Reconcile, SheetNumbers
from workflows.starting import reopen_upload, start_upload
from workflows.upload import ProcessUpload


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


async def held_at_reopening(client: Client, ref: UploadRef, fake: FakeActivities, how: str) -> Snapshot:
    """Sheet 2 of 2 has failed, and a retry is requested. Returns the manifest when the run is held at the write of ``reopened.json``."""
    fake.tile_errors[2] = [PageUnreadable("page 2 cannot be loaded")]
    fake.stubborn = "write_manifest" if how == "while it ends" else "record_reopening"
    await start_upload(client, ref)
    if how == "while it ends":
        await until_async(lambda: fake.reached == "write_manifest")
        let_go = hold(fake, "record_reopening")
        await reopen_upload(client, ref, "retry_sheets", SheetNumbers((2,)))
        let_go.set()
    else:
        await handle_of(client, ref).result()
        if how == "after a loss":
            assert fake.manifest is not None
            fake.reopened = ReopenedRecord(fake.manifest.version, retries=((2,),))
        await reopen_upload(client, ref, "retry_sheets", SheetNumbers((2,)))
    await until_async(lambda: fake.reached == "record_reopening")
    assert fake.manifest is not None
    return fake.manifest


def hold(fake: FakeActivities, step: str) -> asyncio.Event:
    """Will hold the run at another step. Returns the event that lets the run leave its present step."""
    let_go, fake.stubborn, fake.released = fake.released, step, asyncio.Event()
    return let_go


@pytest.mark.parametrize("how", ["after its end", "while it ends"])
async def test_reopening_is_written_down_before_anything_changes(client: Client, ref: UploadRef, how: str) -> None:
    """The record has the request and the version of the manifest. The end of the run removes it."""
    fake = FakeActivities(pages(2))
    async with working(client, fake):
        manifest = await held_at_reopening(client, ref, fake, how)
        seen = await handle_of(client, ref).query(ProcessUpload.progress)
        assert (manifest.status, seen.version, seen.status) == (UploadStatus.PARTIAL, manifest.version, manifest.status)
        hold(fake, "write_manifest").set()
        await until_async(lambda: fake.reached == "write_manifest")
        assert fake.reopened == ReopenedRecord(manifest.version, retries=((2,),))
        fake.released.set()
        assert (await handle_of(client, ref).result()).status is UploadStatus.COMPLETE
        await keep_history(handle_of(client, ref), f"reopened-{how.replace(' ', '-')}")
    assert fake.reopened is None, "the end of the run removes the record"


async def test_run_that_was_terminated_is_not_made_up_for(client: Client, ref: UploadRef) -> None:
    """An operator has ended it. Another request does only what it asks for; what the terminated run committed stays."""
    fake = FakeActivities(pages(2))
    async with working(client, fake):
        manifest = await held_at_reopening(client, ref, fake, "after its end")
        await handle_of(client, ref).terminate()
        hold(fake, "").set()
        await until_async(lambda: fake.reopened is not None)
        await reopen_upload(client, ref, "force_reconcile")
        result = await handle_of(client, ref).result()
    assert (result.status, result.version > manifest.version, sorted(fake.tiled)) == (UploadStatus.PARTIAL, True, [1, 2])
    assert fake.reopened is None, "the end of the run removes the record"


@pytest.mark.parametrize("by_request", [False, True])
async def test_lost_run_of_a_reopened_upload_is_made_up_for(client: Client, ref: UploadRef, by_request: bool) -> None:
    """The next run does the requests of the lost run, also if another request starts it. It shows the lost run's sheets at once."""
    fake = FakeActivities(pages(4), window=1)
    fake.closes_after = 1
    async with working(client, fake):
        await cancelled_after_one(client, ref, fake)
        manifest = fake.manifest
        assert manifest is not None
        fake.commit(pages(4)[3])
        fake.reopened = ReopenedRecord(manifest.version, retries=((),))
        other = UploadRef.parse(f"{ref}-after-the-loss")
        fake.stubborn, fake.released = "record_reopening", asyncio.Event()
        await (reopen_upload(client, other, "force_reconcile") if by_request else start_upload(client, other, lost=True))
        await until_async(lambda: fake.reached == "record_reopening")
        seen = await handle_of(client, other).query(ProcessUpload.progress)
        assert (seen.version > manifest.version, seen.completed_pages, seen.reconciled) == (True, 2, True)
        fake.gate.set()
        fake.released.set()
        result = await handle_of(client, other).result()
        if not by_request:
            await keep_history(handle_of(client, other), "lost-and-resumed")
    assert (result.status, result.reconciled) == (UploadStatus.COMPLETE, True)
    assert sorted(fake.tiled)[-2:] == [2, 3]
    assert fake.reopened is None, "the end of the run removes the record"


async def test_lost_run_that_could_open_the_document_is_made_up_for(client: Client, ref: UploadRef) -> None:
    """It was lost with its password, so the next run cannot open the document, but shows at once what the lost one committed."""
    fake = FakeActivities(PasswordRequired("the document is encrypted"))
    fake.stubborn = "record_reopening"
    async with working(client, fake):
        await start_upload(client, ref)
        await end_as_failed(handle_of(client, ref))
        manifest = fake.manifest
        assert manifest is not None
        fake.commit(pages(2)[0])
        fake.reopened = ReopenedRecord(manifest.version, retries=((),))
        await reopen_upload(client, ref, "force_reconcile")
        await until_async(lambda: fake.reached == "record_reopening")
        seen = await handle_of(client, ref).query(ProcessUpload.progress)
        assert (seen.version > manifest.version, seen.completed_pages, seen.reconciled) == (True, 1, True)
        fake.released.set()
        assert (await end_as_failed(handle_of(client, ref))).type == "PasswordRequired"
    assert fake.reopened is None, "the end of the run removes the record"


@pytest.mark.parametrize("how", ["after its end", "while it ends", "after a loss"])
async def test_cancel_while_a_reopening_is_written_down_ends_it(client: Client, ref: UploadRef, how: str) -> None:
    """The state stays. Its version is newer than the one in the record, so a late write of that brings nothing back."""
    fake = FakeActivities(pages(2))
    async with working(client, fake):
        manifest = await held_at_reopening(client, ref, fake, how)
        await cancel_in_step(handle_of(client, ref), fake, "record_reopening")
        fake.released.set()
        await handle_of(client, ref).result()
    assert fake.reopened is None, "the end of the run removes the record"
    assert sorted(fake.tiled) == [1, 2]
    assert fake.manifest is not None
    assert (fake.manifest.version > manifest.version, fake.manifest.status) == (True, UploadStatus.PARTIAL)


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
