"""A long upload goes through several runs."""

from typing import Any

from temporalio.client import Client, WorkflowHistory

from activities.bucket.keys import UploadRef
from activities.bucket.records import ReopenedRecord, UploadStatus
from activities.errors import NoPages
from activities.interface import WORKFLOW_QUEUE
from deploy.temporal import TemporalServer
from tests.waiting import until_async
from tests.workflow.fakes import FakeActivities, pages, working
from tests.workflow.runs import HISTORIES, cancelled_after_one, handle_of, handover_in, keep_history
from workflows.messages import SheetNumbers
from workflows.starting import reopen_upload, start_upload
from workflows.upload import ProcessUpload


async def test_continue_as_new_loses_and_repeats_nothing(forgetful_server: TemporalServer, ref: UploadRef) -> None:
    """A long upload goes through several runs; each sheet is done once and the version only grows."""
    client = await Client.connect(forgetful_server.address, identity="test")
    fake = FakeActivities(pages(40), window=4)
    versions = []
    async with working(client, fake):
        await start_upload(client, ref)
        first_run = (await handle_of(client, ref).describe()).run_id
        handle = handle_of(client, ref)

        async def ended() -> bool:
            snapshot = await handle.query(ProcessUpload.progress)
            versions.append((snapshot.version, snapshot.completed_pages))
            return snapshot.status.is_final

        await until_async(ended)
        result = await handle.result()
        description = await handle.describe()
        await keep_history(client.get_workflow_handle(ref.workflow_id, run_id=first_run), "continue-as-new-first")
        await keep_history(client.get_workflow_handle(ref.workflow_id, run_id=description.run_id), "continue-as-new-last")
    assert description.run_id != first_run
    assert (result.status, result.completed_pages) == (UploadStatus.COMPLETE, 40)
    assert sorted(fake.tiled) == list(range(1, 41))
    assert versions == sorted(versions)


async def test_reopening_is_written_down_once_and_removed_in_the_end(forgetful_server: TemporalServer, ref: UploadRef) -> None:
    """A cancelled upload is resumed, and that takes several runs."""
    client = await Client.connect(forgetful_server.address, identity="test")
    fake = FakeActivities(pages(40), window=1)
    fake.closes_after = 1
    async with working(client, fake):
        await cancelled_after_one(client, ref, fake)
        manifest = fake.manifest
        assert manifest is not None
        fake.stubborn, fake.reached = "write_manifest", ""
        await reopen_upload(client, ref, "retry_sheets", SheetNumbers())
        first_run = (await handle_of(client, ref).describe()).run_id
        await until_async(lambda: fake.reached == "write_manifest")
        assert (await handle_of(client, ref).describe()).run_id != first_run
        assert fake.reopened == ReopenedRecord(manifest.version, retries=((),))
        fake.released.set()
        assert (await handle_of(client, ref).result()).status is UploadStatus.COMPLETE
    assert fake.reopened is None, "the end of the run removes the record"


def handed_over(history: str) -> dict[str, Any]:
    """The argument with which the run of a stored history was continued, as it was on the wire."""
    return handover_in(WorkflowHistory.from_json(history, (HISTORIES / f"{history}.json").read_text()))


async def continue_from(client: Client, ref: UploadRef, argument: dict[str, Any]) -> None:
    """Starts the next run of an upload as continue-as-new does."""
    await client.start_workflow("ProcessUpload", {**argument, "ref": str(ref)}, id=ref.workflow_id, task_queue=WORKFLOW_QUEUE)


async def test_run_handed_over_by_the_released_code_goes_on(client: Client, ref: UploadRef) -> None:
    """Its payload has no field of today's requests: the ready sheets stay ready, the others are tiled, and no page is counted again."""
    argument = handed_over("continue-as-new-first")
    assert "asked" not in argument["continued"]
    sheets = argument["continued"]["snapshot"]["sheets"]
    ready = [sheet["number"] for sheet in sheets if sheet["status"] == "ready"]
    assert 0 < len(ready) < len(sheets)
    fake = FakeActivities(NoPages("the pages must not be counted again"), window=4)
    for page in pages(len(sheets)):
        if page.number in ready:
            fake.commit(page)
    async with working(client, fake):
        await continue_from(client, ref, argument)
        result = await handle_of(client, ref).result()
    assert (result.status, result.completed_pages) == (UploadStatus.COMPLETE, len(sheets))
    assert result.version > argument["continued"]["snapshot"]["version"]
    assert sorted([*ready, *fake.tiled]) == [sheet["number"] for sheet in sheets]
    assert fake.discarded == [str(ref)]


async def test_requests_handed_over_by_the_released_code_are_done(client: Client, ref: UploadRef) -> None:
    """A cancelled run of the released code handed over its retry beside ``continued``: the upload is resumed."""
    argument = handed_over("cancelled-then-retried")
    assert argument["continued"] is None
    assert argument["asked"]["retries"]
    fake = FakeActivities(pages(3), window=1)
    fake.closes_after = 1
    async with working(client, fake):
        await cancelled_after_one(client, ref, fake)
        await continue_from(client, ref, argument)
        result = await handle_of(client, ref).result()
    assert (result.status, result.completed_pages) == (UploadStatus.COMPLETE, 3)
