"""The comparison of the progress with the bucket."""

from dataclasses import replace

import pytest
from temporalio.client import Client
from temporalio.runtime import MetricBuffer, Runtime, TelemetryConfig

from activities.bucket.keys import UploadRef
from activities.bucket.records import SheetStatus, UploadStatus
from activities.errors import PageUnreadable, RenderCrashed
from deploy.temporal import TemporalServer
from tests.waiting import until_async
from tests.workflow.fakes import FakeActivities, activity_workers, pages, working
from tests.workflow.runs import cancelled_after_one, end_as_cancelled, handle_of, held_in_flight, keep_history
from worker.app import workflow_worker
from workflows.messages import Reconcile, SheetNumbers
from workflows.starting import reopen_upload, start_upload
from workflows.upload import ProcessUpload


async def test_reconcile_of_a_running_upload_counts_what_is_there(client: Client, ref: UploadRef) -> None:
    """A sheet that appeared in the bucket is not tiled again."""
    fake = FakeActivities(pages(6), window=1)
    async with held_in_flight(client, ref, fake, 1) as handle:
        fake.commit(pages(6)[4])
        await handle.signal(ProcessUpload.force_reconcile)

        async def seen() -> bool:
            return (await handle.query(ProcessUpload.progress)).reconciled

        await until_async(seen)
        fake.gate.set()
        result = await handle.result()
    assert fake.tiled == [1, 2, 3, 4, 6]
    assert result.status is UploadStatus.COMPLETE


async def test_reconcile_of_a_finished_upload_tiles_what_is_missing(client: Client, ref: UploadRef) -> None:
    """A sheet that is gone from the bucket is tiled again, the progress says that it was reconciled, and the version grows."""
    fake = FakeActivities(pages(3))
    async with working(client, fake):
        await start_upload(client, ref)
        before = await handle_of(client, ref).result()
        del fake.committed[2]
        await reopen_upload(client, ref, "force_reconcile")
        after = await handle_of(client, ref).result()
        await keep_history(handle_of(client, ref), "reconciled")
    assert sorted(fake.tiled) == [1, 2, 2, 3]
    assert (after.status, after.reconciled) == (UploadStatus.COMPLETE, True)
    assert after.version > before.version


async def test_half_of_a_sheet_is_never_complete(client: Client, ref: UploadRef) -> None:
    """A commit marker without its tiles is found, its sheet tiled again, and junk removed; the counter falls in a change that says why."""
    fake = FakeActivities(pages(3))
    async with working(client, fake):
        await start_upload(client, ref)
        before = await handle_of(client, ref).result()
        fake.half, fake.junk = {2}, 7
        fake.gate.clear()
        await reopen_upload(client, ref, "force_reconcile")
        await until_async(lambda: fake.in_flight == 1)
        during = await handle_of(client, ref).query(ProcessUpload.progress)
        fake.gate.set()
        after = await handle_of(client, ref).result()
        metadata = await handle_of(client, ref).query("__temporal_workflow_metadata")
    assert (during.status, during.completed_pages, during.reconciled) == (UploadStatus.PROCESSING, 2, True)
    assert [sheet.number for sheet in during.sheets if sheet.version > before.version] == [2]
    assert (after.status, after.completed_pages) == (UploadStatus.COMPLETE, 3)
    assert sorted(fake.tiled) == [1, 2, 2, 3]
    assert fake.junk == 0
    assert "1 sheets were wrong, 7 objects removed" in metadata.current_details


async def test_reconcile_that_finds_nothing_wrong_changes_only_when_that_was(client: Client, ref: UploadRef) -> None:
    """The upload keeps the time at which it finished, and says when it was last reconciled."""
    fake = FakeActivities(pages(2))
    async with working(client, fake):
        await start_upload(client, ref)
        await handle_of(client, ref).result()
        before = fake.manifest
        await reopen_upload(client, ref, "force_reconcile")
        await handle_of(client, ref).result()
    after = fake.manifest
    assert before is not None
    assert after is not None
    assert after.version > before.version
    expected = replace(before, version=after.version, updated_at=after.updated_at, reconciled=True, reconciled_at=after.reconciled_at)
    assert after == expected
    assert sorted(fake.tiled) == [1, 2]


async def test_reconcile_judges_a_sheet_in_flight_only_when_it_has_landed(client: Client, ref: UploadRef) -> None:
    """A sheet that is being written is not broken; when it has landed it is judged like any other."""
    fake = FakeActivities(pages(3), window=1)
    async with held_in_flight(client, ref, fake, 1) as handle:
        await handle.signal(ProcessUpload.force_reconcile)
        await until_async(lambda: len(fake.checked) == 1)
        assert [sheet.number for sheet in fake.checked[0].sheets] == [2, 3]
        fake.gate.set()
        result = await handle.result()
    assert fake.tiled == [1, 2, 3]
    assert [sheet.number for sheet in fake.checked[1].sheets] == [1]
    assert (result.status, result.reconciled) == (UploadStatus.COMPLETE, True)


async def test_sheet_that_is_judged_is_not_tiled_meanwhile(client: Client, ref: UploadRef) -> None:
    """A repair deletes the commit marker of a broken sheet, which must not be a marker that a new tiling has just written."""
    fake = FakeActivities(pages(2), window=1)
    async with held_in_flight(client, ref, fake, 1) as handle:
        fake.stubborn = "check_sheets"
        await handle.signal(ProcessUpload.force_reconcile)
        await until_async(lambda: fake.reached == "check_sheets")
        fake.gate.set()
        await until_async(lambda: 1 in fake.committed)

        async def landed() -> bool:
            return (await handle.query(ProcessUpload.progress)).completed_pages == 1

        await until_async(landed)
        assert fake.tiled == [1]
        fake.released.set()
        await handle.result()
    assert fake.tiled == [1, 2]


async def test_many_requests_at_once_make_one_pass(client: Client, ref: UploadRef) -> None:
    """Of a running upload and of a finished one: each sheet is judged once, as deeply as any of the requests says."""
    fake = FakeActivities(pages(2), window=1)
    fake.gate.clear()
    async with activity_workers(client, fake):
        async with workflow_worker(client):
            await start_upload(client, ref)
            await until_async(lambda: fake.in_flight == 1)
        for finished in (False, True):
            # Without a workflow worker the requests gather in Temporal, however slow the machine is.
            for number in range(20):
                await reopen_upload(client, ref, "force_reconcile", Reconcile(deep=number == 7))
            fake.gate.set()
            async with workflow_worker(client):
                await handle_of(client, ref).result()
            judged = [sheet.number for args in fake.checked for sheet in args.sheets]
            assert (sorted(judged), {args.deep for args in fake.checked}) == ([1, 2], {True}), f"finished: {finished}"
            fake.checked.clear()


async def test_stored_sheet_that_the_progress_does_not_have_is_counted(client: Client, ref: UploadRef) -> None:
    """A report of a late commit corrects a cancelled upload; wrong, repeated and impossible reports change nothing."""
    fake = FakeActivities(pages(4), window=1)
    async with held_in_flight(client, ref, fake, 1) as handle:
        await handle.cancel()
        await end_as_cancelled(handle)
        fake.commit(pages(4)[1])
        fake.commit(pages(4)[2])
        fake.half = {3}
        fake.checked.clear()
        for sheets in ((3, 2, 99), (2,), (2, 2, 0)):
            await reopen_upload(client, ref, "sheets_stored", SheetNumbers(sheets))
        result = await handle_of(client, ref).result()
        await keep_history(handle_of(client, ref), "stored")
        await reopen_upload(client, ref, "sheets_stored", SheetNumbers((2,)))
        again = await handle_of(client, ref).result()
    assert (result.status, result.completed_pages, result.reconciled) == (UploadStatus.CANCELLED, 1, True)
    assert [sheet.number for sheet in fake.checked[0].sheets] == [2, 3]
    assert fake.checked[0].repair is False
    assert again == result
    assert fake.manifest is not None
    assert [sheet.status for sheet in fake.manifest.sheets] == [SheetStatus.PENDING, SheetStatus.READY, *[SheetStatus.PENDING] * 2]
    assert fake.tiled == [1]


async def test_broken_sheet_of_a_cancelled_upload_is_uncounted_and_not_tiled(client: Client, ref: UploadRef) -> None:
    """A reconcile corrects the count and tiles nothing, because someone stopped the work."""
    fake = FakeActivities(pages(3), window=1)
    fake.closes_after = 1
    async with working(client, fake):
        tiled = await cancelled_after_one(client, ref, fake)
        fake.half = {1}
        await reopen_upload(client, ref, "force_reconcile")
        result = await handle_of(client, ref).result()
    assert (result.status, result.completed_pages, fake.committed) == (UploadStatus.CANCELLED, 0, {})
    assert fake.tiled == tiled


@pytest.mark.parametrize("step", ["check_sheets", "prune_sheets"])
async def test_check_that_fails_is_a_finding_and_the_sheets_go_on(client: Client, ref: UploadRef, step: str) -> None:
    """A reconcile that cannot check stops no sheet, does not count as done, and leaves a warning; the next one removes the warning."""
    broken = RenderCrashed("the process that decodes JPEGs did not start: exit code 1")
    broken.final = True
    fake = FakeActivities(pages(3), window=1)
    async with held_in_flight(client, ref, fake, 1) as handle:
        (fake.check_errors if step == "check_sheets" else fake.prune_errors).append(broken)
        await reopen_upload(client, ref, "force_reconcile", Reconcile(deep=True))
        await until_async(lambda: len(fake.checked) == 1)
        fake.gate.set()
        result = await handle.result()
        metadata = await handle.query("__temporal_workflow_metadata")
        if step == "check_sheets":
            await keep_history(handle, "check-failed")
        assert (result.status, result.completed_pages, result.reconciled) == (UploadStatus.COMPLETE, 3, False)
        assert "RenderCrashed: the process that decodes JPEGs did not start" in metadata.current_details
        assert fake.manifest is not None
        assert "RenderCrashed: the process that decodes JPEGs" in (fake.manifest.warning or "")
        await reopen_upload(client, ref, "force_reconcile")
        again = await handle.result()
    assert (again.status, again.reconciled, again.warning) == (UploadStatus.COMPLETE, True, None)


async def test_half_sheet_that_cannot_be_removed_keeps_no_manifest_from_being_written(client: Client, ref: UploadRef) -> None:
    """The upload ends with a warning about the half sheet; when every sheet is ready, the warning goes."""
    broken = RenderCrashed("it did not start")
    broken.final = True
    fake = FakeActivities(pages(2))
    fake.tile_errors[2] = [PageUnreadable("page 2 cannot be loaded")]
    fake.check_errors = [broken]
    async with working(client, fake):
        await start_upload(client, ref)
        result = await handle_of(client, ref).result()
        assert result.status is UploadStatus.PARTIAL
        assert fake.manifest is not None
        assert "could not be removed" in (fake.manifest.warning or "")
        await reopen_upload(client, ref, "retry_sheets", SheetNumbers())
        result = await handle_of(client, ref).result()
    assert (result.status, result.warning, fake.manifest.warning) == (UploadStatus.COMPLETE, None, None)


@pytest.mark.usefixtures("client")
async def test_discrepancy_is_a_metric(temporal_server: TemporalServer, ref: UploadRef) -> None:
    """The number of sheets that the progress had wrong, without the upload's name in a label."""
    buffer = MetricBuffer(10_000)
    runtime = Runtime(telemetry=TelemetryConfig(metrics=buffer))
    measured = await Client.connect(temporal_server.address, identity="test", runtime=runtime)
    fake = FakeActivities(pages(4))
    async with working(measured, fake):
        await start_upload(measured, ref)
        await handle_of(measured, ref).result()
        fake.half = {2, 3}
        await reopen_upload(measured, ref, "force_reconcile")
        await handle_of(measured, ref).result()
    updates = [update for update in buffer.retrieve_updates() if update.metric.name == "progress_reconciliation_discrepancy"]
    assert [update.value for update in updates] == [2]
    assert ref.upload not in str(updates[0].attributes)
