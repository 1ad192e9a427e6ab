"""A cancelled upload: nothing runs on, no half sheet stays, and later requests are done."""

import pytest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import SearchAttributeKey

from activities.bucket.keys import UploadRef
from activities.bucket.records import SheetStatus, UploadStatus
from activities.errors import NotAPdf, PageUnreadable, SiteLinkError, StorageUnavailable, TilesMissing, UploadNotFound
from tests.waiting import until_async
from tests.workflow.fakes import FakeActivities, activity_workers, pages, working
from tests.workflow.runs import (
    cancel_in_step,
    cancelled_after_one,
    end_as_cancelled,
    end_as_failed,
    handle_of,
    handover_in,
    has_cancelled_its_activities,
    held_in_flight,
    keep_history,
)
from worker.app import workflow_worker
from workflows.messages import Reconcile, SheetNumbers
from workflows.starting import reopen_upload, start_upload


async def test_cancel_leaves_nothing_in_flight(client: Client, ref: UploadRef) -> None:
    """A cancelled upload closes Canceled, says so in Temporal's UI, keeps its ready sheets, and no activity of it runs on."""
    fake = FakeActivities(pages(8), window=4)
    fake.closes_after = 1
    async with working(client, fake):
        await start_upload(client, ref)
        handle = handle_of(client, ref)
        await until_async(lambda: len(fake.committed) >= 1 and fake.in_flight > 0)
        await handle.cancel()
        await end_as_cancelled(handle)
        assert fake.in_flight == 0
        description = await handle.describe()
        metadata = await handle.query("__temporal_workflow_metadata")
        await keep_history(handle, "cancelled")
    assert description.status is WorkflowExecutionStatus.CANCELED
    assert description.typed_search_attributes[SearchAttributeKey.for_keyword("SiteLinkStatus")] == "cancelled"
    assert metadata.current_details == f"**cancelled**: {len(fake.committed)} of 8 sheets ready, 0 failed"
    assert fake.manifest is not None
    assert fake.manifest.status is UploadStatus.CANCELLED
    ready = [sheet.number for sheet in fake.manifest.sheets if sheet.status is SheetStatus.READY]
    assert ready == sorted(fake.committed)
    assert {sheet.status for sheet in fake.manifest.sheets} == {SheetStatus.READY, SheetStatus.PENDING}
    assert fake.discarded == [str(ref)]


async def test_receipt_of_a_cancelled_upload_is_in_its_manifest(client: Client, ref: UploadRef) -> None:
    """The receipt says what was done before the cancellation."""
    fake = FakeActivities(pages(3), window=1)
    fake.commit(pages(1)[0])
    async with held_in_flight(client, ref, fake, 1) as handle:
        await handle.cancel()
        await end_as_cancelled(handle)
    assert fake.manifest is not None
    assert fake.manifest.status is UploadStatus.CANCELLED
    assert fake.manifest.forecast is not None
    assert fake.manifest.receipt is not None
    assert (fake.manifest.forecast.tiles, fake.manifest.receipt.tiles, fake.manifest.receipt.puts) == (24, 8, 13)


@pytest.mark.parametrize("step", ["list_sheets", "count_pages", "tile_page"])
async def test_cancel_is_not_lost_in_an_activity_that_ends_well(client: Client, ref: UploadRef, step: str) -> None:
    """A cancellation that arrives during the first steps, or while a page is tiled, is obeyed although that step succeeds."""
    fake = FakeActivities(pages(2))
    fake.stubborn = step
    async with working(client, fake):
        await start_upload(client, ref)
        await cancel_in_step(handle_of(client, ref), fake, step)
        fake.released.set()
        await end_as_cancelled(handle_of(client, ref))
    assert fake.manifest is not None
    assert fake.manifest.status is UploadStatus.CANCELLED
    assert fake.committed == {}


@pytest.mark.parametrize("error", [TilesMissing("gone"), StorageUnavailable("503")])
async def test_cancelled_sheet_is_pending_whatever_ended_its_activity(client: Client, ref: UploadRef, error: SiteLinkError) -> None:
    """Neither lost tiles nor a fault of the bucket makes a cancelled sheet fail."""
    fake = FakeActivities(pages(1))
    fake.upload_errors[1] = [error]
    fake.stubborn = "upload_page"
    async with working(client, fake):
        await start_upload(client, ref)
        await cancel_in_step(handle_of(client, ref), fake, "upload_page")
        fake.released.set()
        await end_as_cancelled(handle_of(client, ref))
    assert fake.tiled == [1]
    assert fake.manifest is not None
    assert (fake.manifest.status, fake.manifest.sheets[0].status) == (UploadStatus.CANCELLED, SheetStatus.PENDING)


async def test_cancel_leaves_no_half_sheet(client: Client, ref: UploadRef) -> None:
    """The tiles of a sheet that will not be finished are removed before the run ends."""
    fake = FakeActivities(pages(3))
    fake.stubborn = "upload_page"
    async with working(client, fake):
        await start_upload(client, ref)
        await until_async(lambda: len(fake.partial) == 3)
        await handle_of(client, ref).cancel()
        fake.upload_errors = {1: [StorageUnavailable("503")], 2: [StorageUnavailable("503")]}
        fake.released.set()
        await end_as_cancelled(handle_of(client, ref))
        await keep_history(handle_of(client, ref), "cancelled-and-cleaned")
    assert fake.partial == set()
    assert fake.manifest is not None
    assert (fake.manifest.status, set(fake.committed)) == (UploadStatus.CANCELLED, {3})


async def test_cancel_ends_what_was_asked_before_it(client: Client, ref: UploadRef) -> None:
    """A retry of a cancelled upload is cancelled before the run has read the bucket: the upload stays as it was."""
    fake = FakeActivities(pages(4), window=1)
    fake.closes_after = 1
    async with working(client, fake):
        tiled = await cancelled_after_one(client, ref, fake)
        manifest = fake.manifest
        fake.stubborn, fake.reached = "list_sheets", ""
        await reopen_upload(client, ref, "retry_sheets", SheetNumbers())
        await cancel_in_step(handle_of(client, ref), fake, "list_sheets")
        fake.released.set()
        await end_as_cancelled(handle_of(client, ref))
    assert (fake.manifest, fake.tiled) == (manifest, tiled)


async def test_cancel_while_a_refused_upload_closes_leaves_its_manifest(client: Client, ref: UploadRef) -> None:
    """The document was refused before the cancellation, so the upload ends failed, with the name of the refusal."""
    fake = FakeActivities(NotAPdf("the file starts with '<html>'"))
    fake.manifest_errors = [StorageUnavailable("503")]
    async with working(client, fake):
        await start_upload(client, ref)
        await until_async(lambda: not fake.manifest_errors)
        await handle_of(client, ref).cancel()
        failure = await end_as_failed(handle_of(client, ref))
    assert fake.manifest is not None
    assert failure.type == fake.manifest.reason == "NotAPdf"


@pytest.mark.parametrize("how", ["it succeeds", "it fails", "pages are counted"])
async def test_reopened_run_cancelled_before_it_has_loaded_leaves_a_final_state(client: Client, ref: UploadRef, how: str) -> None:
    """Without an earlier manifest it is cancelled, with the sheets of the bucket. A reconcile tiles nothing; a retry does the rest."""
    fake = FakeActivities(pages(4))
    for page in (fake.pages[1], fake.pages[3]):  # type: ignore[index]
        fake.commit(page)
    fake.stubborn = "count_pages" if how == "pages are counted" else "list_sheets"
    fake.list_errors = [StorageUnavailable("503")] * (how == "it fails")
    async with working(client, fake):
        await reopen_upload(client, ref, "force_reconcile")
        await cancel_in_step(handle_of(client, ref), fake, fake.stubborn)
        fake.released.set()
        await end_as_cancelled(handle_of(client, ref))
        if how == "it succeeds":
            await keep_history(handle_of(client, ref), "cancelled-before-loaded")
        manifest = fake.manifest
        assert manifest is not None
        assert (manifest.status, manifest.completed_pages) == (UploadStatus.CANCELLED, 2)
        assert manifest.total_pages == (0 if how == "it fails" else 4)
        assert [sheet.number for sheet in manifest.sheets if sheet.status is SheetStatus.READY] == [2, 4]
        await reopen_upload(client, ref, "force_reconcile")
        looked = await handle_of(client, ref).result()
        assert (looked.status, looked.completed_pages, looked.total_pages, fake.tiled) == (UploadStatus.CANCELLED, 2, 4, [])
        await reopen_upload(client, ref, "retry_sheets", SheetNumbers((1,)))
        assert (await handle_of(client, ref).result()).status is UploadStatus.COMPLETE
    assert sorted(fake.tiled) == [1, 3]


async def test_upload_deleted_under_its_run_ends_without_a_manifest(client: Client, ref: UploadRef) -> None:
    """The run finds the mark of the deletion, ends as cancelled, and writes nothing."""
    fake = FakeActivities(pages(2))
    async with held_in_flight(client, ref, fake, 2) as handle:
        fake.manifest_errors, fake.check_errors = [UploadNotFound("deleted")], [UploadNotFound("deleted")]
        await handle.cancel()
        await end_as_cancelled(handle)
    assert fake.manifest is None


@pytest.mark.parametrize("step", ["tile_page", "write_manifest"])
@pytest.mark.parametrize("signal", ["retry_sheets", "force_reconcile", "sheets_stored"])
async def test_what_is_asked_while_a_cancelled_run_closes_is_done(client: Client, ref: UploadRef, signal: str, step: str) -> None:
    """However late the request comes, a retry resumes the upload; a reconcile and a report of the bucket tile nothing."""
    fake = FakeActivities(pages(4), window=1)
    fake.stubborn = step
    fake.gate.clear()
    async with working(client, fake):
        await start_upload(client, ref)
        await until_async(lambda: fake.tiled == [1])
        first_run = (await handle_of(client, ref).describe()).run_id
        await handle_of(client, ref).cancel()
        if step == "tile_page":
            await until_async(lambda: has_cancelled_its_activities(handle_of(client, ref)))
        await until_async(lambda: fake.reached == step)
        fake.commit(fake.pages[2])  # type: ignore[index]
        await reopen_upload(client, ref, signal, Reconcile() if signal == "force_reconcile" else SheetNumbers((3,)))
        fake.gate.set()
        fake.released.set()
        result = await handle_of(client, ref).result()
        assert (await handle_of(client, ref).describe()).run_id != first_run
        cancelled = client.get_workflow_handle(ref.workflow_id, run_id=first_run)
        if (signal, step) == ("retry_sheets", "write_manifest"):
            await keep_history(cancelled, "cancelled-then-retried")
        handover = handover_in(await cancelled.fetch_history())
    # While workers are replaced, a worker of the release before may get the next run: it reads the requests only there.
    assert handover["continued"] is None
    assert handover["asked"][{"retry_sheets": "retries", "force_reconcile": "reconcile", "sheets_stored": "stored"}[signal]]
    if signal == "retry_sheets":
        assert (result.status, result.completed_pages, fake.tiled) == (UploadStatus.COMPLETE, 4, [1, 1, 2, 4])
    else:
        assert (result.status, result.completed_pages, fake.tiled) == (UploadStatus.CANCELLED, 1, [1])


@pytest.mark.parametrize("order", [("cancel", "retry"), ("retry", "cancel")], ids="-".join)
async def test_cancel_and_retry_that_reach_the_run_at_once_keep_their_order(client: Client, ref: UploadRef, order: tuple[str, str]) -> None:
    """Both wait for a workflow worker and reach it in one task: a retry after the cancellation is done, a retry before it is not."""
    fake = FakeActivities(pages(3), window=1)
    fake.gate.clear()
    async with activity_workers(client, fake):
        async with workflow_worker(client):
            await start_upload(client, ref)
            await until_async(lambda: fake.tiled == [1])
        handle = handle_of(client, ref)
        first_run = (await handle.describe()).run_id
        for what in order:
            await (handle.cancel() if what == "cancel" else reopen_upload(client, ref, "retry_sheets", SheetNumbers()))
        fake.gate.set()
        async with workflow_worker(client):
            if order[0] == "cancel":
                result = await handle.result()
                assert (result.status, result.completed_pages) == (UploadStatus.COMPLETE, 3)
            else:
                await end_as_cancelled(handle)
    first = await client.get_workflow_handle(ref.workflow_id, run_id=first_run).describe()
    assert first.status is (WorkflowExecutionStatus.CONTINUED_AS_NEW if order[0] == "cancel" else WorkflowExecutionStatus.CANCELED)
    assert fake.manifest is not None
    assert fake.manifest.status is (UploadStatus.COMPLETE if order[0] == "cancel" else UploadStatus.CANCELLED)


async def test_retry_sent_after_the_cancel_of_an_earlier_run_is_done(client: Client, ref: UploadRef) -> None:
    """The cancelled run may end before the retry arrives; the run that gets the retry was not cancelled."""
    fake = FakeActivities(pages(3))
    fake.tile_errors[2] = [PageUnreadable("page 2 cannot be loaded")]
    async with working(client, fake):
        await start_upload(client, ref)
        assert (await handle_of(client, ref).result()).status is UploadStatus.PARTIAL
        earlier = (await handle_of(client, ref).describe()).run_id
        await reopen_upload(client, ref, "retry_sheets", SheetNumbers(after_cancel_of=earlier))
        assert (await handle_of(client, ref).result()).status is UploadStatus.COMPLETE
