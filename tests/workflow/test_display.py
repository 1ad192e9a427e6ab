"""What Temporal's UI shows of an upload, asked for as the UI asks: the details of a run, what it waits for, readable failures."""

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import Client, WorkflowHandle

from activities.attempt import Attempt, to_application_error
from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.storage import Bucket
from activities.errors import NotAPdf, PageUnreadable, StorageUnavailable
from activities.interface import TILE_QUEUE, TiledPage, TilePage, UploadedSheet, UploadPage
from deploy.temporal import TemporalServer
from tests.waiting import until_async
from tests.workflow.fakes import FakeActivities, pages, working
from tests.workflow.runs import end_as_failed, handle_of, held_in_flight
from tests.workflow.test_encryption import KEY, connected
from tests.workflow.test_housekeeping import accept, new_ref
from worker.app import housekeeping_worker, workflow_worker
from worker.housekeeping import Housekeeping
from workflows.messages import Reconcile
from workflows.processing.display import ABOUT, LINES_SHOWN
from workflows.starting import reopen_upload, start_deletion, start_upload

SINCE = r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: "


async def metadata(handle: WorkflowHandle[Any, Any]) -> WorkflowMetadata:
    """What the UI asks a worker for."""
    answer: WorkflowMetadata = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    return answer


async def details(handle: WorkflowHandle[Any, Any]) -> str:
    """The run's current details."""
    return (await metadata(handle)).current_details


async def pending(handle: WorkflowHandle[Any, Any]) -> Sequence[PendingActivityInfo]:
    """The run's pending activities."""
    return (await handle.describe()).raw_description.pending_activities


def waits_in(text: str) -> list[str]:
    """The waits that the details name."""
    return re.findall(rf"^- {SINCE}(.*)$", text, re.MULTILINE)


async def test_a_running_upload_says_what_it_waits_for(client: Client, ref: UploadRef) -> None:
    """Activity, task queue, sheet, and since when; nothing any more when it has ended."""
    fake = FakeActivities(pages(3))
    async with held_in_flight(client, ref, fake, 3) as handle:
        text = await details(handle)
        assert "**processing**: 0 of 3 sheets ready, 0 failed" in text
        assert waits_in(text) == [f"`tile_page` on the task queue `{TILE_QUEUE}`: sheet {n}: A-10{n}" for n in (1, 2, 3)]
        description = await handle.describe()
        assert await description.static_summary() == "plan a1 of tower, acme"
        assert await description.static_details() == ABOUT
        fake.gate.set()
        await handle.result()
        assert await details(handle) == "**complete**: 3 of 3 sheets ready, 0 failed"


async def test_an_upload_that_nobody_works_on_says_so(client: Client, ref: UploadRef) -> None:
    """Without a tile worker, the details name the queue that nobody serves."""
    async with workflow_worker(client):
        await start_upload(client, ref)
        await until_async(lambda: _waits_for(handle_of(client, ref), "list_sheets"))
        text = await details(handle_of(client, ref))
    assert text.startswith("**queued**: the pages are not counted yet")
    assert re.search(rf"It waits for\n\n- {SINCE}`list_sheets` on the task queue `\S+`: list committed sheets$", text)


async def _waits_for(handle: WorkflowHandle[Any, Any], name: str) -> bool:
    return any(f"`{name}`" in wait for wait in waits_in(await details(handle)))


async def test_details_stay_short(client: Client, ref: UploadRef) -> None:
    """Of many failed sheets, the first are named and the others counted."""
    fake = FakeActivities(pages(LINES_SHOWN + 5))
    fake.tile_errors = {number: [PageUnreadable("cannot be drawn")] for number in range(1, LINES_SHOWN + 4)}
    async with working(client, fake):
        await start_upload(client, ref)
        await handle_of(client, ref).result()
        text = await details(handle_of(client, ref))
    assert f"**partial**: 2 of {LINES_SHOWN + 5} sheets ready, {LINES_SHOWN + 3} failed" in text
    assert "- sheet 1: PageUnreadable: cannot be drawn" in text
    assert text.endswith("- and 3 more")
    assert text.count("\n- ") == LINES_SHOWN + 1


class Troubled(FakeActivities):
    """Its uploads fail from far below and with a cause, as a library's errors do, until it is repaired. It says at which step it is."""

    broken = True

    @activity.defn
    async def tile_page(self, args: TilePage) -> TiledPage:
        """Says what it does."""
        attempt = Attempt()
        attempt.step = "draws the page and cuts it"
        self.in_flight += 1
        while not self.gate.is_set():
            attempt.beat()
            await asyncio.sleep(0.05)
        self.in_flight -= 1
        return await super().tile_page(args)

    @activity.defn
    async def upload_page(self, args: UploadPage) -> UploadedSheet:
        """Fails while it is broken."""
        if self.broken:
            _fail_below(50)
        return await super().upload_page(args)


def _fail_below(depth: int) -> None:
    if depth:
        _fail_below(depth - 1)
    try:
        msg = "the words of a library " * 100
        raise OSError(msg)
    except OSError as error:
        raise to_application_error(StorageUnavailable("the bucket failed: SlowDown")) from error


@pytest.fixture
async def worker_client(temporal_server: TemporalServer, client: Client) -> Client:
    """A client as workers have it. ``client`` has ended the runs of earlier tests."""
    assert client
    return await connected(temporal_server, ())


async def test_the_failure_of_a_waiting_activity_is_one_sentence(worker_client: Client, ref: UploadRef) -> None:
    """Neither cut by Temporal, nor buried below a traceback, which is in the worker's log."""
    fake = Troubled(pages(1))

    handle = handle_of(worker_client, ref)

    async def has_failed() -> bool:
        return any(each.HasField("last_failure") for each in await pending(handle))

    async with working(worker_client, fake):
        await start_upload(worker_client, ref)
        await until_async(has_failed)
        (waiting,) = await pending(handle)
        fake.broken = False
        await handle.result()
    failure = waiting.last_failure
    assert failure.message == "the bucket failed: SlowDown"
    assert failure.application_failure_info.type == StorageUnavailable.__name__
    assert not failure.stack_trace
    assert not failure.HasField("cause")


async def test_the_failure_of_an_upload_is_one_sentence(worker_client: Client, ref: UploadRef) -> None:
    """In the last event of the run, and in the details."""
    handle = handle_of(worker_client, ref)
    async with working(worker_client, FakeActivities(NotAPdf("the file is a web page"))):
        await start_upload(worker_client, ref)
        error = await end_as_failed(handle)
        assert (error.type, error.message) == (NotAPdf.__name__, "the file is a web page")
        (*_, last) = (await handle.fetch_history()).events
        assert not last.workflow_execution_failed_event_attributes.failure.stack_trace
        assert "**failed**: 0 of 0 sheets ready, 0 failed\n\nNotAPdf: the file is a web page" in await details(handle)


@pytest.mark.parametrize("keys", [(), (KEY,)], ids=["in clear", "encrypted"])
async def test_a_started_activity_says_at_which_step_it_is(
    temporal_server: TemporalServer, client: Client, ref: UploadRef, keys: Sequence[bytes]
) -> None:
    """With and without a key: Temporal's library would end an activity for good whose heartbeat its next worker cannot decrypt."""
    assert client  # has ended the runs of earlier tests
    own = await connected(temporal_server, keys)
    async with held_in_flight(own, ref, Troubled(pages(1)), 1) as handle:

        async def beaten() -> list[object]:
            return [payload for each in await pending(handle) for payload in each.heartbeat_details.payloads]

        await until_async(beaten)
        (step,) = await own.data_converter.decode((await pending(handle))[0].heartbeat_details.payloads)
        assert step == "draws the page and cuts it"
        assert b"draws the page" in (await pending(handle))[0].SerializeToString()
        await handle.terminate()


async def test_handlers_say_what_they_are_for(client: Client, ref: UploadRef) -> None:
    """Whoever sends a signal from the UI reads what it does."""
    fake = FakeActivities(pages(1))
    async with held_in_flight(client, ref, fake, 1) as handle:
        definition = (await metadata(handle)).definition
        fake.gate.set()
        await handle.result()
    for kind in (definition.query_definitions, definition.signal_definitions):
        own = [each for each in kind if not each.name.startswith("__")]
        assert own
        assert [each.name for each in own if not each.description] == []


async def test_timers_say_what_they_are_for(client: Client, ref: UploadRef, tmp_path: Path) -> None:
    """The gathering of requests, and a deletion that will look again."""
    bucket = Bucket(BucketSettings(tmp_path.as_uri()))
    deleted = accept(bucket, new_ref(), deleted=True)
    async with working(client, FakeActivities(pages(1))), housekeeping_worker(client, Housekeeping(client, bucket, None), 4):
        await start_upload(client, ref)
        await handle_of(client, ref).result()
        await reopen_upload(client, ref, "force_reconcile", Reconcile())
        await handle_of(client, ref).result()
        await start_deletion(client, deleted)
        deletion = client.get_workflow_handle(deleted.delete_workflow_id)
        await until_async(lambda: _summaries(deletion))
        assert await _summaries(handle_of(client, ref)) == ["gather requests for one comparison with the bucket"]
        assert await _summaries(deletion) == ["until every lost writer has timed out; then it looks again"]
        assert re.fullmatch(r"\d objects removed; looks again at \d{4}-\d\d-\d\d \d\d:\d\d UTC", await details(deletion))
        await deletion.terminate()


async def _summaries(handle: WorkflowHandle[Any, Any]) -> list[str]:
    """The summaries of a run's timers, as they are on the wire."""
    events = (await handle.fetch_history()).events
    return [
        json.loads(event.user_metadata.summary.data or b'""') for event in events if event.event_type == EventType.EVENT_TYPE_TIMER_STARTED
    ]
