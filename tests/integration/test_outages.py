"""A bucket that hangs: what a cancel, a stop and a death of the worker leave then, and that no good sheet is given up."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from temporalio.api.enums.v1 import EventType, PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.report import SheetReport
from activities.bucket.storage import Bucket
from activities.bucket.verify import verify_upload
from deploy.stack import Stack
from tests.chaos.guarantees import Watch, accepted, address
from tests.resources.make_pdfs import plan_set
from tests.servers.faults import Faults, Rule, faulty, held_until
from tests.servers.s3 import TestServer
from tests.waiting import until_async
from worker.app import GRACE
from workflows.processing.patches import WAIT_FOR_LATE_WRITES
from workflows.retries import HEARTBEAT

pytestmark = pytest.mark.timeout(300)


@dataclass
class Site:
    """A stack whose bucket is behind the proxy, and an event that lets go what the proxy holds."""

    stack: Stack
    faults: Faults
    bucket: Bucket
    released: threading.Event
    client: Client

    async def pending(self, ref: UploadRef) -> list[PendingActivityInfo]:
        """The activities that the run waits for."""
        return list((await self.client.get_workflow_handle(ref.workflow_id).describe()).raw_description.pending_activities)


@asynccontextmanager
async def site(new_stack: Callable[..., Stack], s3_server: TestServer, **settings: str) -> AsyncIterator[Site]:
    """A new stack over a new bucket."""
    made: BucketSettings = s3_server.new_bucket()
    with faulty(made.endpoint) as faults:
        stack = await asyncio.to_thread(new_stack, **s3_server.environment(replace(made, endpoint=faults.url)), **settings)
        released = threading.Event()
        try:
            yield Site(stack, faults, Bucket(made), released, await Client.connect(stack.temporal_address))
        finally:
            released.set()


@pytest.mark.parametrize("worker", ["stops", "dies"])
async def test_cancel_while_a_commit_hangs(new_stack: Callable[..., Stack], s3_server: TestServer, worker: str) -> None:
    """The ``.dzi`` that lands long after the heartbeat's timeout has all its tiles, and is counted.

    A worker that is told to stop meanwhile beats until the bucket has answered, also when its grace is over. When it is killed, the run
    waits for what it may have sent.
    """
    async with site(new_stack, s3_server, SITELINK_RENDER_SLOTS="1") as on:
        on.faults.lay(Rule(held_until(on.released), method="PUT", target=r"sheet-1\.dzi$"))
        ref = await asyncio.to_thread(accepted, on.stack, plan_set(3, 500, 400))

        async def commits() -> bool:
            return bool(on.faults.sent("PUT", r"sheet-1\.dzi$"))

        async def still_beats() -> bool:
            uploads = [pending for pending in await on.pending(ref) if pending.activity_type.name == "upload_page"]
            assert uploads, "nobody waits for the upload any more"
            beaten = uploads[0].last_heartbeat_time.ToDatetime(UTC)
            return beaten > cancelled_at + GRACE + HEARTBEAT + timedelta(seconds=5)

        async def waits_for_late_writes() -> bool:
            events = (await on.client.get_workflow_handle(ref.workflow_id).fetch_history()).events
            markers = [event for event in events if event.event_type == EventType.EVENT_TYPE_MARKER_RECORDED]
            return any(WAIT_FOR_LATE_WRITES in str(marker.marker_recorded_event_attributes.details) for marker in markers)

        await until_async(commits)
        answer = await asyncio.to_thread(httpx2.post, f"{address(on.stack, ref)}/cancel")
        assert answer.status_code == 202
        cancelled_at = datetime.now(UTC)
        if worker == "stops":
            on.stack.processes["worker-tile"].terminate()
            await until_async(still_beats)
        else:
            await asyncio.to_thread(on.stack.kill, "worker-tile")
            await asyncio.to_thread(on.stack.start_process, "worker-tile")
            await until_async(waits_for_late_writes)
        on.released.set()
        with Watch(on.stack, ref) as watch:
            final = await asyncio.to_thread(watch.end)
        ready = {sheet["number"] for sheet in final["sheets"] if sheet["status"] == "ready"}
        assert 1 in ready
        *sheets, _ = await asyncio.to_thread(lambda: list(verify_upload(on.bucket, ref)))
        assert {sheet.number for sheet in sheets if isinstance(sheet, SheetReport) and sheet.verified} == ready
        dzis = {info.key for info in on.bucket.objects(ref.sheets_prefix) if info.key.endswith(".dzi")}
        assert dzis == {ref.descriptor(number) for number in ready}


async def test_sheets_that_wait_for_the_bucket_are_not_taken_for_lost(new_stack: Callable[..., Stack], s3_server: TestServer) -> None:
    """More of them than upload slots: all are taken at once, beat, and are tiled once. No further page is tiled meanwhile."""
    pages = 8
    async with site(new_stack, s3_server, SITELINK_UPLOAD_SLOTS="2", SITELINK_RENDER_SLOTS="2") as on:
        on.faults.lay(Rule(held_until(on.released), method="PUT", target=r"_files/"))
        ref = await asyncio.to_thread(accepted, on.stack, plan_set(pages, 500, 400))

        async def all_wait() -> bool:
            uploads = [pending.state for pending in await on.pending(ref) if pending.activity_type.name == "upload_page"]
            assert len(uploads) <= 4
            return uploads == [PendingActivityState.PENDING_ACTIVITY_STATE_STARTED] * 4

        await until_async(all_wait)
        on.released.set()
        with Watch(on.stack, ref) as watch:
            assert (await asyncio.to_thread(watch.end))["status"] == "complete"
        events = (await on.client.get_workflow_handle(ref.workflow_id).fetch_history()).events
        scheduled = [event.activity_task_scheduled_event_attributes.activity_type.name for event in events]
        assert scheduled.count("tile_page") == scheduled.count("upload_page") == pages
