"""Hosts that disappear, fall silent or come back, and the tiled pages on their scratch."""

import os
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client
from temporalio.worker import Worker

from activities.bucket.keys import UploadRef
from activities.bucket.records import UploadStatus
from activities.errors import StorageUnavailable, TilesMissing
from activities.interface import WORKFLOW_QUEUE, TiledPage, TilePage
from activities.scratch import Scratch
from tests.waiting import until_async
from tests.workflow.fakes import HOST_QUEUE, FakeActivities, activity_workers, pages, working
from tests.workflow.impatient import ImpatientUpload
from tests.workflow.runs import handle_of, keep_history
from worker.app import discard_unwanted
from workflows.processing.sheet import MAX_LOSSES
from workflows.starting import start_upload, tiles_wanted


async def test_lost_tiles_are_tiled_again(client: Client, ref: UploadRef) -> None:
    """A sheet whose host lost its tiles is tiled again; after too many losses it fails as ``WorkerLost``."""
    fake = FakeActivities(pages(2))
    fake.upload_errors = {1: [TilesMissing("gone")], 2: [TilesMissing("gone")] * 10}
    async with working(client, fake):
        await start_upload(client, ref)
        result = await handle_of(client, ref).result()
    assert result.status is UploadStatus.PARTIAL
    assert (fake.tiled.count(1), fake.tiled.count(2)) == (2, 1 + MAX_LOSSES)
    assert fake.manifest is not None
    assert fake.manifest.sheets[1].reason == "WorkerLost"


def impatient_worker(client: Client) -> Worker:
    """A workflow worker whose runs soon take a host for dead."""
    return Worker(client, task_queue=WORKFLOW_QUEUE, workflows=[ImpatientUpload])


async def test_sheet_of_a_host_that_never_comes_back_is_tiled_elsewhere(client: Client, ref: UploadRef) -> None:
    """No worker takes its upload from the queue of that host; after ``Patience.host`` another host tiles the sheet."""

    class OnTwoHosts(FakeActivities):
        @activity.defn
        async def tile_page(self, args: TilePage) -> TiledPage:
            """The first time on a host that dies."""
            tiled = await super().tile_page(args)
            return tiled if len(self.tiled) > 1 else replace(tiled, queue="host-that-died")

    fake = OnTwoHosts(pages(1))
    async with impatient_worker(client), activity_workers(client, fake):
        await start_upload(client, ref)
        result = await handle_of(client, ref).result()
    assert (result.status, fake.tiled) == (UploadStatus.COMPLETE, [1, 1])


async def test_sheet_of_a_host_that_fell_silent_is_not_removed_at_once(client: Client, ref: UploadRef) -> None:
    """The upload is cancelled while its host sends no heartbeats. The ``.dzi`` arrives while the run still waits, and is counted."""
    fake = FakeActivities(pages(1))
    fake.stubborn = "upload_page"
    handle = handle_of(client, ref)

    async def waits() -> bool:
        return any(event.event_type == EventType.EVENT_TYPE_TIMER_STARTED for event in (await handle.fetch_history()).events)

    async with impatient_worker(client), activity_workers(client, fake):
        await start_upload(client, ref)
        await until_async(lambda: fake.reached == "upload_page")
        await handle.cancel()
        await until_async(waits)
        assert fake.checked == []
        fake.released.set()
        await until_async(lambda: bool(fake.committed))
        result = await handle.result()
        await keep_history(handle, "fell-silent")
    assert (result.status, result.completed_pages) == (UploadStatus.COMPLETE, 1)
    assert [args.discard for args in fake.checked] == [True]


async def test_tiled_page_stays_for_as_long_as_its_run_wants_it(client: Client, ref: UploadRef, tmp_path: Path) -> None:
    """However long the outage is. A page that the run does not want is removed, and every page when the run has ended."""
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
            await start_upload(client, ref)
            await until_async(lambda: len(fake.upload_errors[1]) < 998 and set(fake.committed) == {2})
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
    """No workflow worker answers the query: the pages stay until the run has ended."""
    await start_upload(client, ref)
    with closing(Scratch(tmp_path / "scratch", 1 << 30)) as scratch:
        os.utime(scratch.page(scratch.publish(scratch.new_page(ref, 1))), (0, 0))
        await discard_unwanted(scratch, client)
        assert len(scratch.idle_pages(ref)) == 1
        await handle_of(client, ref).terminate()
        await discard_unwanted(scratch, client)
        assert not scratch.has_pages
