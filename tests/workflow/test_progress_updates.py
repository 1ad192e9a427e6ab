"""The long poll ``progress_after``."""

import asyncio
import time

from temporalio.client import Client, WorkflowUpdateStage

from activities.bucket.keys import UploadRef
from activities.bucket.records import Snapshot
from tests.workflow.fakes import FakeActivities, pages, working
from tests.workflow.runs import handle_of, held_in_flight
from workflows.messages import ProgressAfter
from workflows.starting import start_upload
from workflows.upload import MAX_WAITERS, ProcessUpload


async def test_progress_after_gives_every_change_once(client: Client, ref: UploadRef) -> None:
    """A watcher that asks only for newer changes ends with the same state as the query."""
    fake, began = FakeActivities(pages(6), window=2), time.time()
    async with working(client, fake):
        await start_upload(client, ref)
        handle = handle_of(client, ref)
        snapshot = await handle.query(ProcessUpload.progress)
        sheets = {sheet.number: sheet for sheet in snapshot.sheets}
        committed: list[float] = []
        async with asyncio.timeout(120):
            while not snapshot.status.is_final:
                newer = await handle.execute_update(
                    ProcessUpload.progress_after, ProgressAfter(snapshot.version), id=f"watch-1-{snapshot.version}"
                )
                assert newer.version > snapshot.version
                assert all(sheet.version > snapshot.version for sheet in newer.sheets)
                # Each sheet that has become ready was committed before, and once.
                assert len(newer.committed) == newer.completed_pages - snapshot.completed_pages
                committed += newer.committed
                sheets.update((sheet.number, sheet) for sheet in newer.sheets)
                snapshot = newer
        await handle.result()
        last = await handle.query(ProcessUpload.progress)
    assert tuple(sheets.values()) == last.sheets
    assert len(set(committed)) == 6
    assert began < min(committed) <= max(committed) < time.time()
    assert last.completed_pages == 6


async def test_eighth_waiter_lets_the_oldest_go(client: Client, ref: UploadRef) -> None:
    """Waiting updates stay below the limit at which Temporal retries them silently: the oldest returns unchanged."""
    fake = FakeActivities(pages(2))
    async with held_in_flight(client, ref, fake, 2) as handle:
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
