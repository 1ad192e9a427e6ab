"""``ProcessUpload`` on a real Temporal server, with pretended activities."""

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import EventType, PendingActivityState
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle, WorkflowUpdateStage
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.runtime import MetricBuffer, Runtime, TelemetryConfig

from activities.bucket.keys import UploadRef
from activities.bucket.records import SheetStatus, Snapshot, UploadStatus
from activities.errors import (
    NewerSchema,
    NoPages,
    NotAPdf,
    PageUnreadable,
    RenderCrashed,
    RenderOutOfMemory,
    SiteLinkError,
    SourceMissing,
    StorageUnavailable,
    TilesMissing,
    UploadNotFound,
)
from activities.interface import STORAGE_QUEUE, BucketState, HalvePage, ListSheets, Page, TiledPage, TilePage
from activities.render.child import ChildLimits
from activities.scratch import Scratch
from deploy.temporal import TemporalServer
from tests.workflow.fakes import HOST_QUEUE, FakeActivities, activity_workers, pages, without_version, working
from worker.app import activity_worker, discard_unwanted, workflow_worker
from workflows.messages import SEARCH_ATTRIBUTES, ProgressAfter, Reconcile, SheetNumbers
from workflows.starting import reopen, start, tiles_wanted
from workflows.upload import MAX_LOSSES, MAX_WAITERS, ProcessUpload

HISTORIES = Path(__file__).parents[1] / "replay" / "histories"


@pytest.fixture
async def client(temporal_server: TemporalServer) -> Client:
    """A client of the real server."""
    return await Client.connect(temporal_server.address, identity="test")


@pytest.fixture(scope="module")
def forgetful_server(temporal_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """A server that suggests continue-as-new after 60 events."""
    server = TemporalServer(
        temporal_binary,
        tmp_path_factory.mktemp("forgetful") / "temporal.db",
        dynamic_config={"limit.historyCount.suggestContinueAsNew": "60"},
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture
def ref() -> UploadRef:
    """An upload of its own for every test."""
    return UploadRef("acme", "tower", "a1", secrets.token_hex(8))


def handle_of(client: Client, ref: UploadRef) -> WorkflowHandle[Any, Snapshot]:
    """The upload's latest run."""
    return client.get_workflow_handle_for(ProcessUpload.run, ref.workflow_id)


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 240) -> None:
    """Waits until the condition holds."""
    async with asyncio.timeout(seconds):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.05)


async def keep_history(handle: WorkflowHandle[Any, Any], name: str) -> None:
    """Exports the history for the replay tests when ``SITELINK_KEEP_HISTORIES`` is set."""
    if os.environ.get("SITELINK_KEEP_HISTORIES"):
        HISTORIES.mkdir(exist_ok=True)
        (HISTORIES / f"{name}.json").write_text((await handle.fetch_history()).to_json())


async def test_every_sheet_ready_is_complete(client: Client, ref: UploadRef) -> None:
    """A plain upload ends complete, frees the scratch, and its manifest is its last state."""
    fake = FakeActivities(pages(5))
    async with working(client, fake):
        await start(client, ref)
        result = await handle_of(client, ref).result()
        last = await handle_of(client, ref).query(ProcessUpload.progress)
        await keep_history(handle_of(client, ref), "plain")
    assert (result.status, result.completed_pages, result.progress) == (UploadStatus.COMPLETE, 5, 100)
    assert fake.manifest == last
    assert fake.discarded == [str(ref)]
    assert [sheet.title for sheet in last.sheets] == ["A-101", "A-102", "A-103", "A-104", "A-105"]


async def test_forecast_comes_with_the_pages_and_the_receipt_with_the_end(client: Client, ref: UploadRef) -> None:
    """While sheets are in flight there is a forecast and no receipt; the manifest has both, and they agree where they must."""
    fake = FakeActivities(pages(3))
    fake.gate.clear()
    async with working(client, fake):
        await start(client, ref)
        await until(lambda: fake.in_flight == 3)
        running = await handle_of(client, ref).query(ProcessUpload.progress)
        fake.gate.set()
        result = await handle_of(client, ref).result()
    assert running.forecast is not None
    assert running.receipt is None
    assert fake.manifest is not None
    assert fake.manifest.forecast == running.forecast == result.forecast
    receipt = fake.manifest.receipt
    assert receipt is not None
    assert receipt == result.receipt
    assert (receipt.tiles, receipt.puts, receipt.dollars) == (running.forecast.tiles, running.forecast.puts, running.forecast.dollars)
    assert receipt.bytes == 3 * 4321
    assert receipt.seconds > 0


async def test_receipt_of_a_cancelled_upload_is_in_its_manifest(client: Client, ref: UploadRef) -> None:
    """It says what was done until then."""
    fake = FakeActivities(pages(3), window=1)
    fake.commit(pages(1)[0])
    fake.gate.clear()
    async with working(client, fake):
        await start(client, ref)
        await until(lambda: fake.in_flight == 1)
        await handle_of(client, ref).cancel()
        with pytest.raises(WorkflowFailureError):
            await handle_of(client, ref).result()
    assert fake.manifest is not None
    assert fake.manifest.status is UploadStatus.CANCELLED
    assert fake.manifest.forecast is not None
    assert fake.manifest.receipt is not None
    assert (fake.manifest.forecast.tiles, fake.manifest.receipt.tiles, fake.manifest.receipt.puts) == (24, 8, 13)


async def test_started_twice_runs_once(client: Client, ref: UploadRef) -> None:
    """A second start, during the run and after it, is success and changes nothing."""
    fake = FakeActivities(pages(1))
    async with working(client, fake):
        await start(client, ref)
        await start(client, ref)
        first = await handle_of(client, ref).result()
        await start(client, ref)
        assert await handle_of(client, ref).result() == first
    assert fake.tiled == [1]


async def test_search_attributes_and_details_tell_operators(client: Client, ref: UploadRef) -> None:
    """An upload is found by plan and its state is read without opening its history."""
    fake = FakeActivities([*pages(1), Page(2, reason=PageUnreadable.__name__, detail="no area")])
    async with working(client, fake):
        await start(client, ref)
        await handle_of(client, ref).result()
        description = await handle_of(client, ref).describe()
    values = [description.typed_search_attributes[key] for key in map(SearchAttributeKey.for_keyword, SEARCH_ATTRIBUTES)]
    assert values == ["acme", "tower", "a1", "partial", "PageUnreadable"]


async def test_failed_sheet_does_not_fail_the_others(client: Client, ref: UploadRef) -> None:
    """One sheet that fails for good makes the upload partial, with the reason in the sheet."""
    fake = FakeActivities(pages(3))
    fake.tile_errors[2] = [PageUnreadable("page 2 cannot be loaded")]
    async with working(client, fake):
        await start(client, ref)
        result = await handle_of(client, ref).result()
    assert (result.status, result.progress) == (UploadStatus.PARTIAL, 67)
    assert fake.manifest is not None
    assert (fake.manifest.sheets[1].reason, fake.manifest.sheets[1].detail) == ("PageUnreadable", "page 2 cannot be loaded")


async def test_no_sheet_ready_is_failed(client: Client, ref: UploadRef) -> None:
    """The run closes Failed, after the manifest, with the first reason."""
    fake = FakeActivities(pages(2))
    fake.tile_errors = {number: [PageUnreadable(f"page {number}")] for number in (1, 2)}
    async with working(client, fake):
        await start(client, ref)
        with pytest.raises(WorkflowFailureError) as failure:
            await handle_of(client, ref).result()
    assert isinstance(failure.value.cause, ApplicationError)
    assert (failure.value.cause.type, failure.value.cause.message) == ("PageUnreadable", "page 1")
    assert fake.manifest is not None
    assert fake.manifest.status is UploadStatus.FAILED


async def test_refused_document_is_failed_by_name(client: Client, ref: UploadRef) -> None:
    """A document that cannot be used fails the upload with the error's own name and sentence."""
    fake = FakeActivities(NotAPdf("the file starts with '<html>'"))
    async with working(client, fake):
        await start(client, ref)
        with pytest.raises(WorkflowFailureError) as failure:
            await handle_of(client, ref).result()
    assert isinstance(failure.value.cause, ApplicationError)
    assert failure.value.cause.type == "NotAPdf"
    assert fake.manifest is not None
    assert (fake.manifest.status, fake.manifest.reason, fake.manifest.detail) == ("failed", "NotAPdf", "the file starts with '<html>'")


async def test_faults_are_retried_by_temporal(client: Client, ref: UploadRef) -> None:
    """A render fault and a failing bucket are tried again and leave no trace in the result."""
    fake = FakeActivities(pages(3))
    fake.tile_errors[2] = [RenderCrashed("signal 11")]
    fake.upload_errors[3] = [StorageUnavailable("503")]
    async with working(client, fake):
        await start(client, ref)
        result = await handle_of(client, ref).result()
        await keep_history(handle_of(client, ref), "retried-sheet")
    assert result.status is UploadStatus.COMPLETE
    assert sorted(fake.tiled) == [1, 2, 2, 3]


async def test_sheet_that_needs_too_much_memory_is_halved(client: Client, ref: UploadRef) -> None:
    """It is made at half its resolution, by a recorded decision, and says so; the others keep theirs."""
    fake = FakeActivities(pages(3))
    fake.tile_errors[2] = [RenderOutOfMemory("the page needs more than 100 bytes of memory")]
    async with working(client, fake):
        await start(client, ref)
        result = await handle_of(client, ref).result()
        await keep_history(handle_of(client, ref), "halved")
    assert result.status is UploadStatus.COMPLETE
    assert fake.halved == [HalvePage(str(ref), 2, 300)]
    assert sorted(fake.sizes) == [(50, 25), (100, 50), (100, 50), (100, 50)]
    assert fake.manifest is not None
    halved = fake.manifest.sheets[1]
    assert (halved.width, halved.height, halved.dpi, halved.scaled) == (50, 25, 150, True)
    assert [note.type for note in halved.notes] == ["Scaled"]
    assert fake.committed[2].notes == halved.notes
    assert {(sheet.width, sheet.scaled, sheet.notes) for sheet in (fake.manifest.sheets[0], fake.manifest.sheets[2])} == {(100, False, ())}


async def test_a_count_has_the_time_that_its_child_may_take(client: Client, ref: UploadRef) -> None:
    """And to halve a page, which counts twice, the time of two: a slow document that could be counted can be halved."""
    fake = FakeActivities(pages(1))
    fake.tile_errors[1] = [RenderOutOfMemory("the page needs more than 100 bytes of memory")]
    async with working(client, fake):
        await start(client, ref)
        await handle_of(client, ref).result()
        events = (await handle_of(client, ref).fetch_history()).events
    scheduled = [
        each.activity_task_scheduled_event_attributes for each in events if each.HasField("activity_task_scheduled_event_attributes")
    ]
    seconds = {each.activity_type.name: each.start_to_close_timeout.ToTimedelta().total_seconds() for each in scheduled}
    assert seconds["count_pages"] > ChildLimits().wall_s
    assert seconds["halve_page"] > 2 * ChildLimits().wall_s


async def test_decision_to_halve_outlives_the_worker(client: Client, ref: UploadRef) -> None:
    """A workflow worker that starts anew knows it from the history: the sheet is in flight at half its resolution, and stays so."""
    fake = FakeActivities(pages(1))
    fake.tile_errors[1] = [RenderOutOfMemory("the page needs more than 100 bytes of memory")]
    fake.stubborn = "upload_page"
    async with activity_workers(client, fake):
        async with workflow_worker(client):
            await start(client, ref)
            await until(lambda: fake.reached == "upload_page")
        async with workflow_worker(client):
            sheet = (await handle_of(client, ref).query(ProcessUpload.progress)).sheets[0]
            assert (sheet.width, sheet.dpi, sheet.scaled) == (50, 150, True)
            fake.released.set()
            await handle_of(client, ref).result()
    assert fake.sizes == [(100, 50), (50, 25)]
    assert fake.committed[1].dpi == 150


async def test_sheet_is_halved_once_and_retried_as_it_was_counted(client: Client, ref: UploadRef) -> None:
    """With too little memory for half of it, too, it fails; a retry begins with what was counted, for there may be more memory then."""
    fake = FakeActivities(pages(1))
    error = RenderOutOfMemory("the page needs more than 100 bytes of memory")
    fake.tile_errors[1] = [error, error]
    async with working(client, fake):
        await start(client, ref)
        with pytest.raises(WorkflowFailureError):
            await handle_of(client, ref).result()
        assert fake.manifest is not None
        failed = fake.manifest.sheets[0]
        assert (failed.status, failed.reason, failed.detail) == (SheetStatus.FAILED, "RenderOutOfMemory", str(error))
        assert (failed.width, failed.dpi, failed.scaled, failed.notes) == (100, 300, False, ())
        await reopen(client, ref, "retry_sheets", SheetNumbers())
        await handle_of(client, ref).result()
    assert fake.sizes == [(100, 50), (50, 25), (100, 50)]
    assert (fake.manifest.status, fake.manifest.sheets[0].dpi, fake.manifest.sheets[0].notes) == (UploadStatus.COMPLETE, 300, ())


async def test_halved_sheet_is_never_halved_again(client: Client, ref: UploadRef) -> None:
    """What was decided holds when its host is lost, and when it is repaired; without memory for half of it, it fails."""
    fake = FakeActivities(pages(1))
    error = RenderOutOfMemory("the page needs more than 100 bytes of memory")
    fake.tile_errors[1] = [error]
    fake.upload_errors[1] = [TilesMissing("gone")]
    async with working(client, fake):
        await start(client, ref)
        await handle_of(client, ref).result()
        assert fake.sizes == [(100, 50), (50, 25), (50, 25)]
        fake.half = {1}
        fake.tile_errors[1] = [error]
        await reopen(client, ref, "force_reconcile")
        with pytest.raises(WorkflowFailureError):
            await handle_of(client, ref).result()
    assert fake.sizes[3:] == [(50, 25)]
    assert [args.dpi for args in fake.halved] == [300, 150]


async def test_lost_tiles_are_tiled_again(client: Client, ref: UploadRef) -> None:
    """A sheet whose host lost its tiles is tiled again; when that never ends, it fails as WorkerLost."""
    fake = FakeActivities(pages(2))
    fake.upload_errors = {1: [TilesMissing("gone")], 2: [TilesMissing("gone")] * 10}
    async with working(client, fake):
        await start(client, ref)
        result = await handle_of(client, ref).result()
    assert result.status is UploadStatus.PARTIAL
    assert (fake.tiled.count(1), fake.tiled.count(2)) == (2, 1 + MAX_LOSSES)
    assert fake.manifest is not None
    assert fake.manifest.sheets[1].reason == "WorkerLost"


async def test_window_bounds_the_sheets_in_flight(client: Client, ref: UploadRef) -> None:
    """No more sheets are begun than the window allows."""
    fake = FakeActivities(pages(12), window=3)
    async with working(client, fake):
        await start(client, ref)
        await handle_of(client, ref).result()
    assert fake.most_in_flight <= 3
    assert len(fake.committed) == 12


async def test_prioritized_sheet_is_tiled_next(client: Client, ref: UploadRef) -> None:
    """A sheet that someone waits for goes before those that were not begun."""
    fake = FakeActivities(pages(9), window=1)
    fake.gate.clear()
    async with working(client, fake, tile_slots=1):
        await start(client, ref)
        await until(lambda: fake.tiled == [1])
        await handle_of(client, ref).signal(ProcessUpload.prioritize, SheetNumbers((8, 5)))
        fake.gate.set()
        await handle_of(client, ref).result()
    assert fake.tiled[:3] == [1, 8, 5]


async def test_continue_as_new_loses_and_repeats_nothing(forgetful_server: TemporalServer, ref: UploadRef) -> None:
    """A long upload goes through several runs; each sheet is done once and the version only grows."""
    client = await Client.connect(forgetful_server.address, identity="test")
    fake = FakeActivities(pages(40), window=4)
    versions = []
    async with working(client, fake):
        await start(client, ref)
        first_run = (await handle_of(client, ref).describe()).run_id
        handle = handle_of(client, ref)

        async def ended() -> bool:
            snapshot = await handle.query(ProcessUpload.progress)
            versions.append((snapshot.version, snapshot.completed_pages))
            return snapshot.status.is_final

        await until(ended)
        result = await handle.result()
        description = await handle.describe()
        await keep_history(client.get_workflow_handle(ref.workflow_id, run_id=first_run), "continue-as-new-first")
        await keep_history(client.get_workflow_handle(ref.workflow_id, run_id=description.run_id), "continue-as-new-last")
    assert description.run_id != first_run
    assert (result.status, result.completed_pages) == (UploadStatus.COMPLETE, 40)
    assert sorted(fake.tiled) == list(range(1, 41))
    assert versions == sorted(versions)


async def test_cancel_leaves_nothing_in_flight(client: Client, ref: UploadRef) -> None:
    """A cancelled upload closes Canceled, keeps its ready sheets, and no activity of it runs on."""
    fake = FakeActivities(pages(8), window=4)
    fake.closes_after = 1
    async with working(client, fake):
        fake.tile_errors[4] = []
        await start(client, ref)
        handle = handle_of(client, ref)
        await until(lambda: len(fake.committed) >= 1 and fake.in_flight > 0)
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
        assert fake.in_flight == 0
        description = await handle.describe()
        await keep_history(handle, "cancelled")
    assert isinstance(failure.value.cause, CancelledError)
    assert description.status is WorkflowExecutionStatus.CANCELED
    assert fake.manifest is not None
    assert fake.manifest.status is UploadStatus.CANCELLED
    ready = [sheet.number for sheet in fake.manifest.sheets if sheet.status is SheetStatus.READY]
    assert ready == sorted(fake.committed)
    assert {sheet.status for sheet in fake.manifest.sheets} == {SheetStatus.READY, SheetStatus.PENDING}
    assert fake.discarded == [str(ref)]


@pytest.mark.parametrize("step", ["list_sheets", "count_pages", "tile_page"])
async def test_cancel_is_not_lost_in_an_activity_that_ends_well(client: Client, ref: UploadRef, step: str) -> None:
    """A cancel that arrives during the first steps, or while a page is tiled, is obeyed even when that step succeeds."""
    fake = FakeActivities(pages(2))
    fake.stubborn = step
    async with working(client, fake):
        await start(client, ref)
        await until(lambda: fake.reached == step)
        await handle_of(client, ref).cancel()
        await until(lambda: asked_to_cancel(handle_of(client, ref)))
        fake.released.set()
        with pytest.raises(WorkflowFailureError) as failure:
            await handle_of(client, ref).result()
    assert isinstance(failure.value.cause, CancelledError)
    assert fake.manifest is not None
    assert fake.manifest.status is UploadStatus.CANCELLED
    assert fake.committed == {}


@pytest.mark.parametrize("error", [TilesMissing("gone"), StorageUnavailable("503")])
async def test_cancelled_sheet_is_pending_whatever_ended_its_activity(client: Client, ref: UploadRef, error: SiteLinkError) -> None:
    """A cancel is obeyed when the tiles are lost meanwhile, and a fault that would have been tried again is no verdict on the sheet."""
    fake = FakeActivities(pages(1))
    fake.upload_errors[1] = [error]
    fake.stubborn = "upload_page"
    async with working(client, fake):
        await start(client, ref)
        await until(lambda: fake.reached == "upload_page")
        await handle_of(client, ref).cancel()
        await until(lambda: asked_to_cancel(handle_of(client, ref)))
        fake.released.set()
        with pytest.raises(WorkflowFailureError) as failure:
            await handle_of(client, ref).result()
    assert isinstance(failure.value.cause, CancelledError)
    assert fake.tiled == [1]
    assert fake.manifest is not None
    assert (fake.manifest.status, fake.manifest.sheets[0].status) == (UploadStatus.CANCELLED, SheetStatus.PENDING)


async def asked_to_cancel(handle: WorkflowHandle[Any, Any]) -> bool:
    """Whether the workflow has passed its cancellation on to every activity that is under way."""
    activities = (await handle.describe()).raw_description.pending_activities
    return {activity.state for activity in activities} == {PendingActivityState.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED}


async def cancelled_after_one(client: Client, ref: UploadRef, fake: FakeActivities) -> list[int]:
    """Cancels the upload when its first sheet is committed, waits for its end and opens the gate; what was tiled until then."""
    await start(client, ref)
    await until(lambda: len(fake.committed) >= 1)
    await handle_of(client, ref).cancel()
    with pytest.raises(WorkflowFailureError):
        await handle_of(client, ref).result()
    fake.gate.set()
    return list(fake.tiled)


@pytest.mark.parametrize("step", ["tile_page", "write_manifest"])
@pytest.mark.parametrize("signal", ["retry_sheets", "force_reconcile", "sheets_stored"])
async def test_what_is_asked_while_a_cancelled_run_closes_is_done(client: Client, ref: UploadRef, signal: str, step: str) -> None:
    """However late it comes: a retry resumes the upload, the others look at the bucket and tile nothing."""
    fake = FakeActivities(pages(4), window=1)
    fake.stubborn = step
    fake.gate.clear()
    async with working(client, fake):
        await start(client, ref)
        await until(lambda: fake.tiled == [1])
        first_run = (await handle_of(client, ref).describe()).run_id
        await handle_of(client, ref).cancel()
        if step == "tile_page":
            await until(lambda: asked_to_cancel(handle_of(client, ref)))
        await until(lambda: fake.reached == step)
        fake.commit(fake.pages[2])  # type: ignore[index]
        await reopen(client, ref, signal, Reconcile() if signal == "force_reconcile" else SheetNumbers((3,)))
        fake.gate.set()
        fake.released.set()
        result = await handle_of(client, ref).result()
        assert (await handle_of(client, ref).describe()).run_id != first_run
        if (signal, step) == ("retry_sheets", "write_manifest"):
            await keep_history(client.get_workflow_handle(ref.workflow_id, run_id=first_run), "cancelled-then-retried")
    if signal == "retry_sheets":
        assert (result.status, result.completed_pages, fake.tiled) == (UploadStatus.COMPLETE, 4, [1, 1, 2, 4])
    else:
        assert (result.status, result.completed_pages, fake.tiled) == (UploadStatus.CANCELLED, 1, [1])


@pytest.mark.parametrize("order", [("cancel", "retry"), ("retry", "cancel")], ids="-".join)
async def test_cancel_and_retry_that_reach_the_run_at_once_keep_their_order(client: Client, ref: UploadRef, order: tuple[str, str]) -> None:
    """Both come while no workflow worker is there, then in one task: a retry after the cancel is done, one before it is ended."""
    fake = FakeActivities(pages(3), window=1)
    fake.gate.clear()
    async with activity_workers(client, fake):
        async with workflow_worker(client):
            await start(client, ref)
            await until(lambda: fake.tiled == [1])
        handle = handle_of(client, ref)
        first_run = (await handle.describe()).run_id
        for what in order:
            await (handle.cancel() if what == "cancel" else reopen(client, ref, "retry_sheets", SheetNumbers()))
        fake.gate.set()
        async with workflow_worker(client):
            if order[0] == "cancel":
                result = await handle.result()
                assert (result.status, result.completed_pages) == (UploadStatus.COMPLETE, 3)
            else:
                with pytest.raises(WorkflowFailureError) as failure:
                    await handle.result()
                assert isinstance(failure.value.cause, CancelledError)
    first = await client.get_workflow_handle(ref.workflow_id, run_id=first_run).describe()
    assert first.status is (WorkflowExecutionStatus.CONTINUED_AS_NEW if order[0] == "cancel" else WorkflowExecutionStatus.CANCELED)
    assert fake.manifest is not None
    assert fake.manifest.status is (UploadStatus.COMPLETE if order[0] == "cancel" else UploadStatus.CANCELLED)


async def test_retry_sent_after_the_cancel_of_an_earlier_run_is_done(client: Client, ref: UploadRef) -> None:
    """That run may end before the retry comes; the cancel is none of the run that hears it."""
    fake = FakeActivities(pages(3))
    fake.tile_errors[2] = [PageUnreadable("page 2 cannot be loaded")]
    async with working(client, fake):
        await start(client, ref)
        assert (await handle_of(client, ref).result()).status is UploadStatus.PARTIAL
        earlier = (await handle_of(client, ref).describe()).run_id
        await reopen(client, ref, "retry_sheets", SheetNumbers(after_cancel_of=earlier))
        assert (await handle_of(client, ref).result()).status is UploadStatus.COMPLETE


async def test_cancel_ends_what_was_asked_before_it(client: Client, ref: UploadRef) -> None:
    """Somebody resumes a cancelled upload and thinks better of it before the run has even looked: it stays as it was."""
    fake = FakeActivities(pages(4), window=1)
    fake.closes_after = 1
    async with working(client, fake):
        tiled = await cancelled_after_one(client, ref, fake)
        manifest = fake.manifest
        fake.stubborn, fake.reached = "list_sheets", ""
        await reopen(client, ref, "retry_sheets", SheetNumbers())
        await until(lambda: fake.reached == "list_sheets")
        await handle_of(client, ref).cancel()
        await until(lambda: asked_to_cancel(handle_of(client, ref)))
        fake.released.set()
        with pytest.raises(WorkflowFailureError) as failure:
            await handle_of(client, ref).result()
    assert isinstance(failure.value.cause, CancelledError)
    assert (fake.manifest, fake.tiled) == (manifest, tiled)


@pytest.mark.parametrize("how", ["it succeeds", "it fails", "pages are counted"])
async def test_reopened_run_cancelled_before_it_has_loaded_leaves_a_final_state(client: Client, ref: UploadRef, how: str) -> None:
    """Without an earlier manifest: cancelled, with the sheets that the bucket holds; a look changes that not, a retry does the rest."""
    fake = FakeActivities(pages(4))
    for page in (fake.pages[1], fake.pages[3]):  # type: ignore[index]
        fake.commit(page)
    fake.stubborn = "count_pages" if how == "pages are counted" else "list_sheets"
    fake.list_errors = [StorageUnavailable("503")] * (how == "it fails")
    async with working(client, fake):
        await reopen(client, ref, "force_reconcile")
        await until(lambda: fake.reached == fake.stubborn)
        await handle_of(client, ref).cancel()
        await until(lambda: asked_to_cancel(handle_of(client, ref)))
        fake.released.set()
        with pytest.raises(WorkflowFailureError) as failure:
            await handle_of(client, ref).result()
        if how == "it succeeds":
            await keep_history(handle_of(client, ref), "cancelled-before-loaded")
        assert isinstance(failure.value.cause, CancelledError)
        manifest = fake.manifest
        assert manifest is not None
        assert (manifest.status, manifest.completed_pages) == (UploadStatus.CANCELLED, 2)
        assert manifest.total_pages == (0 if how == "it fails" else 4)
        assert [sheet.number for sheet in manifest.sheets if sheet.status is SheetStatus.READY] == [2, 4]
        await reopen(client, ref, "force_reconcile")
        looked = await handle_of(client, ref).result()
        assert (looked.status, looked.completed_pages, looked.total_pages, fake.tiled) == (UploadStatus.CANCELLED, 2, 4, [])
        await reopen(client, ref, "retry_sheets", SheetNumbers((1,)))
        assert (await handle_of(client, ref).result()).status is UploadStatus.COMPLETE
    assert sorted(fake.tiled) == [1, 3]


@pytest.mark.parametrize("step", ["check_sheets", "prune_sheets"])
async def test_check_that_fails_is_a_finding_and_the_sheets_go_on(client: Client, ref: UploadRef, step: str) -> None:
    """A reconcile that cannot look stops no sheet, claims nothing, and says so; one that can look takes that back."""
    broken = RenderCrashed("the process that decodes JPEGs did not start: exit code 1")
    broken.final = True
    fake = FakeActivities(pages(3), window=1)
    fake.gate.clear()
    async with working(client, fake):
        await start(client, ref)
        await until(lambda: fake.in_flight == 1)
        (fake.check_errors if step == "check_sheets" else fake.prune_errors).append(broken)
        await reopen(client, ref, "force_reconcile", Reconcile(deep=True))
        await until(lambda: len(fake.checked) == 1)
        fake.gate.set()
        result = await handle_of(client, ref).result()
        metadata = await handle_of(client, ref).query("__temporal_workflow_metadata")
        if step == "check_sheets":
            await keep_history(handle_of(client, ref), "check-failed")
        assert (result.status, result.completed_pages, result.reconciled) == (UploadStatus.COMPLETE, 3, False)
        assert "RenderCrashed: the process that decodes JPEGs did not start" in metadata.current_details
        assert fake.manifest is not None
        assert "RenderCrashed: the process that decodes JPEGs" in (fake.manifest.warning or "")
        await reopen(client, ref, "force_reconcile")
        again = await handle_of(client, ref).result()
    assert (again.status, again.reconciled, again.warning) == (UploadStatus.COMPLETE, True, None)


async def test_half_sheet_that_cannot_be_removed_keeps_no_manifest_from_being_written(client: Client, ref: UploadRef) -> None:
    """The upload ends as it is, and says what stays; when every sheet is ready, nothing does."""
    broken = RenderCrashed("it did not start")
    broken.final = True
    fake = FakeActivities(pages(2))
    fake.tile_errors[2] = [PageUnreadable("page 2 cannot be loaded")]
    fake.check_errors = [broken]
    async with working(client, fake):
        await start(client, ref)
        result = await handle_of(client, ref).result()
        assert result.status is UploadStatus.PARTIAL
        assert fake.manifest is not None
        assert "could not be removed" in (fake.manifest.warning or "")
        await reopen(client, ref, "retry_sheets", SheetNumbers())
        result = await handle_of(client, ref).result()
    assert (result.status, result.warning, fake.manifest.warning) == (UploadStatus.COMPLETE, None, None)


async def test_reconcile_judges_a_sheet_in_flight_only_when_it_has_landed(client: Client, ref: UploadRef) -> None:
    """A sheet that is half in the bucket because it is being written is not broken; once it is done it is judged like any other."""
    fake = FakeActivities(pages(3), window=1)
    fake.gate.clear()
    async with working(client, fake):
        await start(client, ref)
        await until(lambda: fake.in_flight == 1)
        await handle_of(client, ref).signal(ProcessUpload.force_reconcile)
        await until(lambda: len(fake.checked) == 1)
        assert [sheet.number for sheet in fake.checked[0].sheets] == [2, 3]
        fake.gate.set()
        result = await handle_of(client, ref).result()
    assert fake.tiled == [1, 2, 3]
    assert [sheet.number for sheet in fake.checked[1].sheets] == [1]
    assert (result.status, result.reconciled) == (UploadStatus.COMPLETE, True)


async def test_sheet_that_is_judged_is_not_tiled_meanwhile(client: Client, ref: UploadRef) -> None:
    """A repair deletes a broken sheet's commit marker: it must not be the one that a tiling has just written."""
    fake = FakeActivities(pages(2), window=1)
    fake.gate.clear()
    async with working(client, fake):
        await start(client, ref)
        await until(lambda: fake.in_flight == 1)
        fake.stubborn = "check_sheets"
        await handle_of(client, ref).signal(ProcessUpload.force_reconcile)
        await until(lambda: fake.reached == "check_sheets")
        fake.gate.set()
        await until(lambda: 1 in fake.committed)

        async def landed() -> bool:
            return (await handle_of(client, ref).query(ProcessUpload.progress)).completed_pages == 1

        await until(landed)
        assert fake.tiled == [1]
        fake.released.set()
        await handle_of(client, ref).result()
    assert fake.tiled == [1, 2]


@pytest.mark.parametrize("signal", ["force_reconcile", "retry_sheets"])
async def test_signal_while_a_refused_upload_closes_is_heard(client: Client, ref: UploadRef, signal: str) -> None:
    """Someone who puts the missing file back and asks again is not overheard, however late."""
    fake = FakeActivities(SourceMissing("the bucket has no source.pdf"))
    fake.stubborn = "write_manifest"
    async with working(client, fake):
        await start(client, ref)
        await until(lambda: fake.reached == "write_manifest")
        fake.pages = pages(2)
        await reopen(client, ref, signal, SheetNumbers() if signal == "retry_sheets" else Reconcile())
        fake.released.set()
        result = await handle_of(client, ref).result()
    assert (result.status, result.completed_pages) == (UploadStatus.COMPLETE, 2)
    assert sorted(fake.tiled) == [1, 2]


async def test_cancel_while_a_refused_upload_closes_leaves_its_manifest(client: Client, ref: UploadRef) -> None:
    """The upload was refused already: it ends failed, by name, and not without a final state."""
    fake = FakeActivities(NotAPdf("the file starts with '<html>'"))
    fake.manifest_errors = [StorageUnavailable("503")]
    async with working(client, fake):
        await start(client, ref)
        await until(lambda: not fake.manifest_errors)
        await handle_of(client, ref).cancel()
        with pytest.raises(WorkflowFailureError) as failure:
            await handle_of(client, ref).result()
    assert isinstance(failure.value.cause, ApplicationError)
    assert fake.manifest is not None
    assert fake.manifest.reason == "NotAPdf"


async def test_reopened_run_that_cannot_read_the_records_leaves_the_manifest(client: Client, ref: UploadRef) -> None:
    """What cannot be read is not written over."""
    fake = FakeActivities(pages(2))
    async with working(client, fake):
        await start(client, ref)
        await handle_of(client, ref).result()
        before = fake.manifest
        fake.list_errors = [UploadNotFound("it is gone")]
        await reopen(client, ref, "force_reconcile")
        with pytest.raises(WorkflowFailureError):
            await handle_of(client, ref).result()
    assert fake.manifest == before


async def test_record_of_a_newer_release_is_waited_for(client: Client, ref: UploadRef) -> None:
    """While workers are being replaced, one that can read it takes the next try."""
    fake = FakeActivities(pages(1))
    fake.list_errors = [NewerSchema("schema 2")]
    async with working(client, fake):
        await start(client, ref)
        assert (await handle_of(client, ref).result()).status is UploadStatus.COMPLETE


async def test_reconcile_of_a_finished_upload_tiles_what_is_missing(client: Client, ref: UploadRef) -> None:
    """Looking again at the bucket finds a sheet gone, says so, and makes it once more; the version grows on."""
    fake = FakeActivities(pages(3))
    async with working(client, fake):
        await start(client, ref)
        before = await handle_of(client, ref).result()
        del fake.committed[2]
        await reopen(client, ref, "force_reconcile")
        after = await handle_of(client, ref).result()
        await keep_history(handle_of(client, ref), "reconciled")
    assert sorted(fake.tiled) == [1, 2, 2, 3]
    assert (after.status, after.reconciled) == (UploadStatus.COMPLETE, True)
    assert after.version > before.version


async def test_half_of_a_sheet_is_never_complete(client: Client, ref: UploadRef) -> None:
    """A commit marker without its tiles is found, its sheet tiled again, and junk removed; the counter falls in a change that says why."""
    fake = FakeActivities(pages(3))
    async with working(client, fake):
        await start(client, ref)
        before = await handle_of(client, ref).result()
        fake.half, fake.junk = {2}, 7
        fake.gate.clear()
        await reopen(client, ref, "force_reconcile")
        await until(lambda: fake.in_flight == 1)
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
    """A finished upload stays finished since then, and says when it was last proved."""
    fake = FakeActivities(pages(2))
    async with working(client, fake):
        await start(client, ref)
        await handle_of(client, ref).result()
        before = fake.manifest
        await reopen(client, ref, "force_reconcile")
        await handle_of(client, ref).result()
    after = fake.manifest
    assert before is not None
    assert after is not None
    assert after.version > before.version
    expected = replace(before, version=after.version, updated_at=after.updated_at, reconciled=True, reconciled_at=after.reconciled_at)
    assert after == expected
    assert sorted(fake.tiled) == [1, 2]


async def test_discrepancy_is_a_metric(temporal_server: TemporalServer, ref: UploadRef) -> None:
    """The number of sheets that the progress had wrong, without the upload's name in a label."""
    buffer = MetricBuffer(10_000)
    runtime = Runtime(telemetry=TelemetryConfig(metrics=buffer))
    client = await Client.connect(temporal_server.address, identity="test", runtime=runtime)
    fake = FakeActivities(pages(4))
    async with working(client, fake):
        await start(client, ref)
        await handle_of(client, ref).result()
        fake.half = {2, 3}
        await reopen(client, ref, "force_reconcile")
        await handle_of(client, ref).result()
    updates = [update for update in buffer.retrieve_updates() if update.metric.name == "progress_reconciliation_discrepancy"]
    assert [update.value for update in updates] == [2]
    assert ref.upload not in str(updates[0].attributes)


async def test_many_requests_at_once_make_one_pass(client: Client, ref: UploadRef) -> None:
    """Of a finished upload and of a running one."""
    fake = FakeActivities(pages(2))
    async with working(client, fake):
        await start(client, ref)
        await handle_of(client, ref).result()
        await asyncio.gather(*(reopen(client, ref, "force_reconcile", Reconcile(deep=n == 7)) for n in range(20)))
        await handle_of(client, ref).result()
    assert [args.deep for args in fake.checked] == [True]


async def test_stored_sheet_that_the_progress_does_not_have_is_counted(client: Client, ref: UploadRef) -> None:
    """The bucket's event of a late commit corrects a cancelled upload; whatever else events say changes nothing."""
    fake = FakeActivities(pages(4), window=1)
    async with working(client, fake):
        fake.gate.clear()
        await start(client, ref)
        await until(lambda: fake.in_flight == 1)
        await handle_of(client, ref).cancel()
        with pytest.raises(WorkflowFailureError):
            await handle_of(client, ref).result()
        fake.commit(pages(4)[1])
        fake.commit(pages(4)[2])
        fake.half = {3}
        fake.checked.clear()
        for sheets in ((3, 2, 99), (2,), (2, 2, 0)):
            await reopen(client, ref, "sheets_stored", SheetNumbers(sheets))
        result = await handle_of(client, ref).result()
        await keep_history(handle_of(client, ref), "stored")
        await reopen(client, ref, "sheets_stored", SheetNumbers((2,)))
        again = await handle_of(client, ref).result()
    assert (result.status, result.completed_pages, result.reconciled) == (UploadStatus.CANCELLED, 1, True)
    assert [sheet.number for sheet in fake.checked[0].sheets] == [2, 3]
    assert fake.checked[0].repair is False
    assert again == result
    assert fake.manifest is not None
    assert [sheet.status for sheet in fake.manifest.sheets] == [SheetStatus.PENDING, SheetStatus.READY, *[SheetStatus.PENDING] * 2]
    assert fake.tiled == [1]


async def test_cancel_leaves_no_half_sheet(client: Client, ref: UploadRef) -> None:
    """What was uploaded of a sheet that nobody will finish is removed before the run ends."""
    fake = FakeActivities(pages(3))
    fake.stubborn = "upload_page"
    async with working(client, fake):
        await start(client, ref)
        await until(lambda: len(fake.partial) == 3)
        await handle_of(client, ref).cancel()
        fake.upload_errors = {1: [StorageUnavailable("503")], 2: [StorageUnavailable("503")]}
        fake.released.set()
        with pytest.raises(WorkflowFailureError):
            await handle_of(client, ref).result()
        await keep_history(handle_of(client, ref), "cancelled-and-cleaned")
    assert fake.partial == set()
    assert fake.manifest is not None
    assert (fake.manifest.status, set(fake.committed)) == (UploadStatus.CANCELLED, {3})


async def test_broken_sheet_of_a_cancelled_upload_is_uncounted_and_not_tiled(client: Client, ref: UploadRef) -> None:
    """Looking again corrects the count, and starts no work that someone stopped."""
    fake = FakeActivities(pages(3), window=1)
    fake.closes_after = 1
    async with working(client, fake):
        tiled = await cancelled_after_one(client, ref, fake)
        fake.half = {1}
        await reopen(client, ref, "force_reconcile")
        result = await handle_of(client, ref).result()
    assert (result.status, result.completed_pages) == (UploadStatus.CANCELLED, len(fake.committed))
    assert 1 not in fake.committed
    assert fake.tiled == tiled


async def test_upload_deleted_under_its_run_ends_without_a_manifest(client: Client, ref: UploadRef) -> None:
    """The mark is final: the run ends as cancelled and writes nothing."""
    fake = FakeActivities(pages(2))
    fake.gate.clear()
    async with working(client, fake):
        await start(client, ref)
        await until(lambda: fake.in_flight == 2)
        fake.manifest_errors, fake.check_errors = [UploadNotFound("deleted")], [UploadNotFound("deleted")]
        await handle_of(client, ref).cancel()
        with pytest.raises(WorkflowFailureError) as failure:
            await handle_of(client, ref).result()
    assert isinstance(failure.value.cause, CancelledError)
    assert fake.manifest is None


async def test_reconcile_of_a_running_upload_counts_what_is_there(client: Client, ref: UploadRef) -> None:
    """A sheet that appeared in the bucket is not tiled again."""
    fake = FakeActivities(pages(6), window=1)
    fake.gate.clear()
    async with working(client, fake):
        await start(client, ref)
        await until(lambda: fake.in_flight == 1)
        fake.commit(pages(6)[4])
        await handle_of(client, ref).signal(ProcessUpload.force_reconcile)

        async def seen() -> bool:
            return (await handle_of(client, ref).query(ProcessUpload.progress)).reconciled

        await until(seen)
        fake.gate.set()
        result = await handle_of(client, ref).result()
    assert fake.tiled == [1, 2, 3, 4, 6]
    assert result.status is UploadStatus.COMPLETE


async def test_cancelled_upload_is_resumed_only_when_asked(client: Client, ref: UploadRef) -> None:
    """Reconciling a cancelled upload tiles nothing; retrying it does the rest."""
    fake = FakeActivities(pages(4), window=1)
    fake.closes_after = 1
    async with working(client, fake):
        tiled = await cancelled_after_one(client, ref, fake)
        await reopen(client, ref, "force_reconcile")
        reconciled = await handle_of(client, ref).result()
        assert (reconciled.status, reconciled.reconciled) == (UploadStatus.CANCELLED, True)
        assert fake.tiled == tiled
        await reopen(client, ref, "retry_sheets", SheetNumbers())
        resumed = await handle_of(client, ref).result()
    assert resumed.status is UploadStatus.COMPLETE


async def test_retry_of_a_failed_sheet_makes_a_partial_upload_complete(client: Client, ref: UploadRef) -> None:
    """Only the failed sheet is done again."""
    fake = FakeActivities(pages(3))
    fake.tile_errors[2] = [PageUnreadable("page 2 cannot be loaded")]
    async with working(client, fake):
        await start(client, ref)
        assert (await handle_of(client, ref).result()).status is UploadStatus.PARTIAL
        await reopen(client, ref, "retry_sheets", SheetNumbers((2,)))
        result = await handle_of(client, ref).result()
    assert (result.status, result.progress) == (UploadStatus.COMPLETE, 100)
    assert sorted(fake.tiled) == [1, 2, 2, 3]


async def test_lost_history_is_made_up_from_the_bucket(client: Client, ref: UploadRef) -> None:
    """A first run over a bucket that holds committed sheets does only the rest."""
    fake = FakeActivities(pages(5))
    for page in pages(5):
        if page.number != 3:
            fake.commit(page)
    async with working(client, fake):
        await start(client, ref)
        result = await handle_of(client, ref).result()
    assert fake.tiled == [3]
    assert (result.status, result.completed_pages) == (UploadStatus.COMPLETE, 5)


async def test_progress_after_gives_every_change_once(client: Client, ref: UploadRef) -> None:
    """A watcher that only asks for what is newer holds the same state as the query."""
    fake = FakeActivities(pages(6), window=2)
    async with working(client, fake):
        await start(client, ref)
        handle = handle_of(client, ref)
        snapshot = await handle.query(ProcessUpload.progress)
        sheets = {sheet.number: sheet for sheet in snapshot.sheets}
        async with asyncio.timeout(120):
            while not snapshot.status.is_final:
                newer = await handle.execute_update(
                    ProcessUpload.progress_after, ProgressAfter(snapshot.version), id=f"watch-1-{snapshot.version}"
                )
                assert newer.version > snapshot.version
                assert all(sheet.version > snapshot.version for sheet in newer.sheets)
                sheets.update((sheet.number, sheet) for sheet in newer.sheets)
                snapshot = newer
        await handle.result()
        last = await handle.query(ProcessUpload.progress)
    assert tuple(sheets.values()) == last.sheets
    assert without_version(last).completed_pages == 6


async def test_eighth_waiter_lets_the_oldest_go(client: Client, ref: UploadRef) -> None:
    """Waiting updates stay below Temporal's silent limit: the oldest returns unchanged."""
    fake = FakeActivities(pages(2))
    fake.gate.clear()
    async with working(client, fake):
        await start(client, ref)
        handle = handle_of(client, ref)

        async def tiling() -> bool:
            snapshot = await handle.query(ProcessUpload.progress)
            return [sheet.status for sheet in snapshot.sheets] == [SheetStatus.TILING] * 2

        await until(tiling)
        version = (await handle.query(ProcessUpload.progress)).version

        watchers: list[asyncio.Task[Snapshot]] = []
        for number in range(MAX_WAITERS + 1):
            update = await handle.start_update(
                ProcessUpload.progress_after, ProgressAfter(version), id=f"watch-{number}", wait_for_stage=WorkflowUpdateStage.ACCEPTED
            )
            watchers.append(asyncio.create_task(update.result()))
        done, waiting = await asyncio.wait(watchers, timeout=240, return_when=asyncio.FIRST_COMPLETED)
        assert done == {watchers[0]}
        assert (watchers[0].result().version, watchers[0].result().sheets) == (version, ())
        assert len(waiting) == MAX_WAITERS
        fake.gate.set()
        assert all(snapshot.version > version for snapshot in await asyncio.gather(*watchers[1:]))
        await handle.result()


async def test_ten_uploads_of_two_organizations_all_finish(client: Client) -> None:
    """Uploads started together end together, each in its own state."""
    fake = FakeActivities(pages(3), window=2)
    refs = [UploadRef(("acme", "zeta")[index % 2], "tower", "a1", secrets.token_hex(8)) for index in range(10)]
    async with working(client, fake, tile_slots=2):
        await asyncio.gather(*(start(client, each) for each in refs))
        results = await asyncio.gather(*(handle_of(client, each).result() for each in refs))
    assert {result.status for result in results} == {UploadStatus.COMPLETE}


async def test_sheet_of_a_host_that_fell_silent_is_not_removed_at_once(client: Client, ref: UploadRef) -> None:
    """It is cancelled, and nobody hears of its upload any more: its ``.dzi`` comes late, while the run still waits, and is counted."""
    fake = FakeActivities(pages(1))
    fake.stubborn = "upload_page"
    handle = handle_of(client, ref)

    async def waits() -> bool:
        return any(event.event_type == EventType.EVENT_TYPE_TIMER_STARTED for event in (await handle.fetch_history()).events)

    async with working(client, fake):
        await start(client, ref)
        await until(lambda: fake.reached == "upload_page")
        await handle.cancel()
        await until(waits, 60)
        assert fake.checked == []
        fake.released.set()
        await until(lambda: bool(fake.committed))
        result = await asyncio.wait_for(handle.result(), 60)
        await keep_history(handle, "fell-silent")
    assert (result.status, result.completed_pages) == (UploadStatus.COMPLETE, 1)
    assert [args.discard for args in fake.checked] == [True]


async def test_tiled_page_stays_for_as_long_as_its_run_wants_it(client: Client, ref: UploadRef, tmp_path: Path) -> None:
    """However long the outage; one that the run does not want goes, and all goes when the run has ended."""
    later_s = 0.0

    class OnScratch(FakeActivities):
        @activity.defn
        async def tile_page(self, args: TilePage) -> TiledPage:
            """Publishes an empty page."""
            return TiledPage(HOST_QUEUE, scratch.publish(scratch.new_page(ref, args.number)), {})

    fake = OnScratch(pages(2))
    fake.upload_errors = {1: [StorageUnavailable("503")] * 1000}
    with closing(Scratch(tmp_path / "scratch", 1 << 30, clock=lambda: time.time() + later_s)) as scratch:
        async with working(client, fake):
            await start(client, ref)
            await until(lambda: len(fake.upload_errors[1]) < 998 and set(fake.committed) == {2})
            wanted = await tiles_wanted(client, ref)
            later_s = 7 * 24 * 60 * 60.0
            (unwanted,) = (path.name for path in scratch.idle_pages(ref) if path.name not in wanted)
            assert {path.name for path in scratch.idle_pages(ref)} == {*wanted, unwanted}
            scratch.clean()
            await discard_unwanted(scratch, client)
            assert {path.name for path in scratch.idle_pages(ref)} == wanted
            await handle_of(client, ref).terminate()
            await discard_unwanted(scratch, client)
            assert not scratch.has_pages


async def test_a_run_that_cannot_be_asked_keeps_its_pages(client: Client, ref: UploadRef, tmp_path: Path) -> None:
    """No worker answers for it."""
    await start(client, ref)
    with closing(Scratch(tmp_path / "scratch", 1 << 30)) as scratch:
        os.utime(scratch.page(scratch.publish(scratch.new_page(ref, 1))), (0, 0))
        await discard_unwanted(scratch, client)
        assert len(scratch.idle_pages(ref)) == 1
        await handle_of(client, ref).terminate()
        await discard_unwanted(scratch, client)
        assert not scratch.has_pages


async def test_an_organization_with_much_to_do_does_not_stand_before_others(client: Client) -> None:
    """On the storage queue of the real server: who comes last with little is served among the first."""
    refs = [UploadRef(organization, "tower", "a1", secrets.token_hex(8)) for organization in ("many",) * 20 + ("few",) * 2]
    served: list[str] = []

    class Noting(FakeActivities):
        @activity.defn
        async def list_sheets(self, args: ListSheets) -> BucketState:
            """Notes whose turn it is."""
            served.append(UploadRef.parse(args.ref).organization)
            return await super().list_sheets(args)

    async def is_waiting(ref: UploadRef) -> bool:
        return bool((await handle_of(client, ref).describe()).raw_description.pending_activities)

    fake = Noting(NoPages("none"))
    async with workflow_worker(client):
        for ref in refs:
            await start(client, ref)
            await until(lambda ref=ref: is_waiting(ref))  # type: ignore[misc]
        async with activity_worker(client, STORAGE_QUEUE, 1, fake.list_sheets):
            await until(lambda: len(served) == len(refs))
        for ref in refs:
            await handle_of(client, ref).terminate()
    assert [place for place, organization in enumerate(served) if organization == "few"][-1] < 10


async def test_sheet_of_a_host_that_never_comes_back_is_tiled_elsewhere(client: Client, ref: UploadRef) -> None:
    """Nobody takes its upload: that is noticed within a minute, and the next host does the sheet."""

    class OnTwoHosts(FakeActivities):
        @activity.defn
        async def tile_page(self, args: TilePage) -> TiledPage:
            """The first time on a host that dies."""
            tiled = await super().tile_page(args)
            return tiled if len(self.tiled) > 1 else replace(tiled, queue="host-that-died")

    fake = OnTwoHosts(pages(1))
    async with working(client, fake):
        await start(client, ref)
        result = await asyncio.wait_for(handle_of(client, ref).result(), 100)
    assert (result.status, fake.tiled) == (UploadStatus.COMPLETE, [1, 1])
