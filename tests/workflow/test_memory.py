"""A sheet that needs too much memory is made at half its resolution."""

from temporalio.client import Client

from activities.bucket.keys import UploadRef
from activities.bucket.records import SheetStatus, UploadStatus
from activities.errors import RenderOutOfMemory, TilesMissing
from activities.interface import HalvePage
from tests.waiting import until_async
from tests.workflow.fakes import FakeActivities, activity_workers, pages, working
from tests.workflow.runs import end_as_failed, handle_of, keep_history
from worker.app import workflow_worker
from workflows.messages import SheetNumbers
from workflows.starting import reopen_upload, start_upload
from workflows.upload import ProcessUpload


async def test_sheet_that_needs_too_much_memory_is_halved(client: Client, ref: UploadRef) -> None:
    """It is made at half its resolution, the history records the decision, and a note says so; other sheets keep their resolution."""
    fake = FakeActivities(pages(3))
    fake.tile_errors[2] = [RenderOutOfMemory("the page needs more than 100 bytes of memory")]
    async with working(client, fake):
        await start_upload(client, ref)
        result = await handle_of(client, ref).result()
        await keep_history(handle_of(client, ref), "halved")
    assert result.status is UploadStatus.COMPLETE
    assert fake.halved == [HalvePage(str(ref), 2, 300, width=100, height=50)]
    assert sorted(fake.sizes) == [(50, 25), (100, 50), (100, 50), (100, 50)]
    assert fake.manifest is not None
    halved = fake.manifest.sheets[1]
    assert (halved.width, halved.height, halved.dpi, halved.scaled) == (50, 25, 150, True)
    assert [note.type for note in halved.notes] == ["Scaled"]
    assert fake.committed[2].notes == halved.notes
    assert {(sheet.width, sheet.scaled, sheet.notes) for sheet in (fake.manifest.sheets[0], fake.manifest.sheets[2])} == {(100, False, ())}


async def test_decision_to_halve_outlives_the_worker(client: Client, ref: UploadRef) -> None:
    """A new workflow worker learns the decision from the history: the sheet stays in flight at half its resolution."""
    fake = FakeActivities(pages(1))
    fake.tile_errors[1] = [RenderOutOfMemory("the page needs more than 100 bytes of memory")]
    fake.stubborn = "upload_page"
    async with activity_workers(client, fake):
        async with workflow_worker(client):
            await start_upload(client, ref)
            await until_async(lambda: fake.reached == "upload_page")
        async with workflow_worker(client):
            sheet = (await handle_of(client, ref).query(ProcessUpload.progress)).sheets[0]
            assert (sheet.width, sheet.dpi, sheet.scaled) == (50, 150, True)
            fake.released.set()
            await handle_of(client, ref).result()
    assert fake.sizes == [(100, 50), (50, 25)]
    assert fake.committed[1].dpi == 150


async def test_sheet_is_halved_once_and_retried_as_it_was_counted(client: Client, ref: UploadRef) -> None:
    """A sheet that still needs too much memory fails. A retry begins with the counted resolution, because there may be more memory."""
    fake = FakeActivities(pages(1))
    error = RenderOutOfMemory("the page needs more than 100 bytes of memory")
    fake.tile_errors[1] = [error, error]
    async with working(client, fake):
        await start_upload(client, ref)
        await end_as_failed(handle_of(client, ref))
        assert fake.manifest is not None
        failed = fake.manifest.sheets[0]
        assert (failed.status, failed.reason, failed.detail) == (SheetStatus.FAILED, "RenderOutOfMemory", str(error))
        assert (failed.width, failed.dpi, failed.scaled, failed.notes) == (100, 300, False, ())
        await reopen_upload(client, ref, "retry_sheets", SheetNumbers())
        await handle_of(client, ref).result()
    assert fake.sizes == [(100, 50), (50, 25), (100, 50)]
    assert (fake.manifest.status, fake.manifest.sheets[0].dpi, fake.manifest.sheets[0].notes) == (UploadStatus.COMPLETE, 300, ())


async def test_halved_sheet_is_never_halved_again(client: Client, ref: UploadRef) -> None:
    """The decision holds when the host is lost and when the sheet is repaired; without memory for half the resolution the sheet fails."""
    fake = FakeActivities(pages(1))
    error = RenderOutOfMemory("the page needs more than 100 bytes of memory")
    fake.tile_errors[1] = [error]
    fake.upload_errors[1] = [TilesMissing("gone")]
    async with working(client, fake):
        await start_upload(client, ref)
        await handle_of(client, ref).result()
        assert fake.sizes == [(100, 50), (50, 25), (50, 25)]
        fake.half = {1}
        fake.tile_errors[1] = [error]
        await reopen_upload(client, ref, "force_reconcile")
        await end_as_failed(handle_of(client, ref))
    assert fake.sizes[3:] == [(50, 25)]
    assert [args.dpi for args in fake.halved] == [300, 150]
