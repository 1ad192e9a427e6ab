"""One upload from its start to its end, with pretended activities."""

from datetime import timedelta

from temporalio.client import Client
from temporalio.common import SearchAttributeKey

from activities.bucket.keys import UploadRef
from activities.bucket.records import UploadStatus
from activities.bucket.storage import SILENCE_TIMEOUT
from activities.errors import NewerSchema, NotAPdf, PageUnreadable, RenderCrashed, RenderOutOfMemory, StorageUnavailable
from activities.interface import Page
from activities.render.child import ChildLimits
from tests.workflow.fakes import FakeActivities, pages, working
from tests.workflow.runs import end_as_failed, handle_of, held_in_flight, keep_history
from workflows.messages import SEARCH_ATTRIBUTES, SheetNumbers
from workflows.processing.calls import Patience
from workflows.starting import start_upload
from workflows.upload import ProcessUpload


async def test_every_sheet_ready_is_complete(client: Client, ref: UploadRef) -> None:
    """A plain upload ends complete, frees the scratch, and its manifest is its last state."""
    fake = FakeActivities(pages(5))
    async with working(client, fake):
        await start_upload(client, ref)
        result = await handle_of(client, ref).result()
        last = await handle_of(client, ref).query(ProcessUpload.progress)
        await keep_history(handle_of(client, ref), "plain")
    assert (result.status, result.completed_pages, result.progress) == (UploadStatus.COMPLETE, 5, 100)
    assert fake.manifest == last
    assert fake.discarded == [str(ref)]
    assert [sheet.title for sheet in last.sheets] == ["A-101", "A-102", "A-103", "A-104", "A-105"]


async def test_forecast_comes_with_the_pages_and_the_receipt_with_the_end(client: Client, ref: UploadRef) -> None:
    """While sheets are in flight there is a forecast and no receipt. The manifest has both, with the same tiles, PUTs and price."""
    fake = FakeActivities(pages(3))
    async with held_in_flight(client, ref, fake, 3) as handle:
        running = await handle.query(ProcessUpload.progress)
        fake.gate.set()
        result = await handle.result()
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


async def test_started_twice_runs_once(client: Client, ref: UploadRef) -> None:
    """A second start, during the run or after it, succeeds and changes nothing."""
    fake = FakeActivities(pages(1))
    async with working(client, fake):
        await start_upload(client, ref)
        await start_upload(client, ref)
        first = await handle_of(client, ref).result()
        await start_upload(client, ref)
        assert await handle_of(client, ref).result() == first
    assert fake.tiled == [1]


async def test_search_attributes_and_details_tell_operators(client: Client, ref: UploadRef) -> None:
    """An upload is found by plan, and its state and its failures are read without opening its history."""
    fake = FakeActivities([*pages(1), Page(2, reason=PageUnreadable.__name__, detail="no area")])
    async with working(client, fake):
        await start_upload(client, ref)
        await handle_of(client, ref).result()
        description = await handle_of(client, ref).describe()
        metadata = await handle_of(client, ref).query("__temporal_workflow_metadata")
    assert metadata.current_details == "**partial**: 1 of 2 sheets ready, 1 failed\n\n- sheet 2: PageUnreadable: no area"
    assert await description.static_summary() == "plan a1 of tower, acme"
    values = [description.typed_search_attributes[key] for key in map(SearchAttributeKey.for_keyword, SEARCH_ATTRIBUTES)]
    assert values == ["acme", "tower", "a1", "partial", "PageUnreadable"]


async def test_failed_sheet_does_not_fail_the_others(client: Client, ref: UploadRef) -> None:
    """One sheet that fails for good makes the upload partial, with the reason in the sheet."""
    fake = FakeActivities(pages(3))
    fake.tile_errors[2] = [PageUnreadable("page 2 cannot be loaded")]
    async with working(client, fake):
        await start_upload(client, ref)
        result = await handle_of(client, ref).result()
    assert (result.status, result.progress) == (UploadStatus.PARTIAL, 67)
    assert fake.manifest is not None
    assert (fake.manifest.sheets[1].reason, fake.manifest.sheets[1].detail) == ("PageUnreadable", "page 2 cannot be loaded")


async def test_no_sheet_ready_is_failed(client: Client, ref: UploadRef) -> None:
    """The run closes Failed, after the manifest, with the first reason."""
    fake = FakeActivities(pages(2))
    fake.tile_errors = {number: [PageUnreadable(f"page {number}")] for number in (1, 2)}
    async with working(client, fake):
        await start_upload(client, ref)
        failure = await end_as_failed(handle_of(client, ref))
    assert (failure.type, failure.message) == ("PageUnreadable", "page 1")
    assert fake.manifest is not None
    assert fake.manifest.status is UploadStatus.FAILED


async def test_refused_document_is_failed_by_name(client: Client, ref: UploadRef) -> None:
    """A document that cannot be used fails the upload with the error's own name and sentence."""
    fake = FakeActivities(NotAPdf("the file starts with '<html>'"))
    async with working(client, fake):
        await start_upload(client, ref)
        failure = await end_as_failed(handle_of(client, ref))
    assert failure.type == "NotAPdf"
    assert fake.manifest is not None
    assert (fake.manifest.status, fake.manifest.reason, fake.manifest.detail) == ("failed", "NotAPdf", "the file starts with '<html>'")


async def test_faults_are_retried_by_temporal(client: Client, ref: UploadRef) -> None:
    """A render fault and a failing bucket are tried again and leave no trace in the result."""
    fake = FakeActivities(pages(3))
    fake.tile_errors[2] = [RenderCrashed("signal 11")]
    fake.upload_errors[3] = [StorageUnavailable("503")]
    async with working(client, fake):
        await start_upload(client, ref)
        result = await handle_of(client, ref).result()
        await keep_history(handle_of(client, ref), "retried-sheet")
    assert result.status is UploadStatus.COMPLETE
    assert sorted(fake.tiled) == [1, 2, 2, 3]


async def test_activities_have_the_times_that_their_work_may_take(client: Client, ref: UploadRef) -> None:
    """A render child may use all its time to count, and twice that to halve a page, which counts twice. A dead host is noticed soon."""
    fake = FakeActivities(pages(1))
    fake.tile_errors[1] = [RenderOutOfMemory("the page needs more than 100 bytes of memory")]
    async with working(client, fake):
        await start_upload(client, ref)
        await handle_of(client, ref).result()
        events = (await handle_of(client, ref).fetch_history()).events
    scheduled = [
        each.activity_task_scheduled_event_attributes for each in events if each.HasField("activity_task_scheduled_event_attributes")
    ]
    activities = {each.activity_type.name: each for each in scheduled}
    limit = timedelta(seconds=ChildLimits().wall_s)
    assert activities["count_pages"].start_to_close_timeout.ToTimedelta() > limit
    assert activities["halve_page"].start_to_close_timeout.ToTimedelta() > 2 * limit
    upload = activities["upload_page"]
    assert upload.schedule_to_start_timeout.ToTimedelta() == timedelta(seconds=45)
    assert upload.heartbeat_timeout.ToTimedelta() == timedelta(seconds=15)
    assert Patience().late_write >= SILENCE_TIMEOUT


async def test_window_bounds_the_sheets_in_flight(client: Client, ref: UploadRef) -> None:
    """As many sheets are begun as the window allows, and no more."""
    fake = FakeActivities(pages(12), window=3)
    async with held_in_flight(client, ref, fake, 3) as handle:
        fake.gate.set()
        await handle.result()
    assert fake.most_in_flight == 3
    assert len(fake.committed) == 12


async def test_prioritized_sheet_is_tiled_next(client: Client, ref: UploadRef) -> None:
    """A sheet that someone waits for goes before those that were not begun."""
    fake = FakeActivities(pages(9), window=1)
    async with held_in_flight(client, ref, fake, 1, tile_slots=1) as handle:
        await handle.signal(ProcessUpload.prioritize, SheetNumbers((8, 5)))
        fake.gate.set()
        await handle.result()
    assert fake.tiled[:3] == [1, 8, 5]


async def test_lost_history_is_made_up_from_the_bucket(client: Client, ref: UploadRef) -> None:
    """A first run does only the sheets that the bucket does not hold."""
    fake = FakeActivities(pages(5))
    for page in pages(5):
        if page.number != 3:
            fake.commit(page)
    async with working(client, fake):
        await start_upload(client, ref)
        result = await handle_of(client, ref).result()
    assert fake.tiled == [3]
    assert (result.status, result.completed_pages) == (UploadStatus.COMPLETE, 5)


async def test_record_of_a_newer_release_is_waited_for(client: Client, ref: UploadRef) -> None:
    """While workers are being replaced, a worker that can read the record takes the next attempt."""
    fake = FakeActivities(pages(1))
    fake.list_errors = [NewerSchema("schema 2")]
    async with working(client, fake):
        await start_upload(client, ref)
        assert (await handle_of(client, ref).result()).status is UploadStatus.COMPLETE
