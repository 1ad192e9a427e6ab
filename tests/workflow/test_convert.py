"""``ConvertUpload`` on a real Temporal server: its progress, as the API asks for it, refusals, several runs, and how it ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowFailureError

from activities.attempt import to_application_error
from activities.bucket.keys import UploadRef
from activities.bucket.records import Layout
from activities.bucket.report import MOST_NAMES, Conversion, ConversionStatus, RefusedSheet
from activities.errors import StorageUnavailable, UploadBusy, UploadNotFound
from activities.interface import (
    HOUSEKEEPING_QUEUE,
    ConvertedSheet,
    Convertible,
    ConvertSheet,
    LayoutActivities,
    ListConvertible,
    TellLayouts,
)
from api.progress.runs import NoRun, Runs
from deploy.temporal import TemporalServer
from tests.waiting import until_async
from tests.workflow.fakes import FakeActivities, pages
from tests.workflow.runs import end_as_cancelled, held_in_flight, keep_history
from worker.app import activity_worker, workflow_worker
from workflows.convert import SHEETS_AT_ONCE
from workflows.starting import start_conversion


class FakeLayouts(LayoutActivities):
    """Pretended sheets.

    Args:
        count: How many there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.gate, self.may_stop = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.may_stop.set()
        self.stopping = 0
        self.begun: list[int] = []
        self.told = 0
        self.refused: set[int] = set()
        self.errors: list[Exception] = []

    @activity.defn
    async def list_convertible(self, args: ListConvertible) -> Convertible:
        """All."""
        return Convertible(tuple(range(1, self.count + 1)))

    @activity.defn
    async def tell_layouts(self, args: TellLayouts) -> None:
        """Counts."""
        self.told += 1

    @activity.defn
    async def convert_sheet(self, args: ConvertSheet) -> ConvertedSheet:
        """Waits for the gate; one that is cancelled ends when it may."""
        assert args.layout is Layout.PACKED
        self.begun.append(args.number)
        try:
            while not self.gate.is_set():
                activity.heartbeat()
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            self.stopping += 1
            await self.may_stop.wait()
            raise
        if self.errors:
            raise self.errors.pop(0)
        if args.number in self.refused:
            return ConvertedSheet(reason="SheetAltered", detail=f"sheet {args.number} differs")
        return ConvertedSheet(converted=args.number != 2)


@asynccontextmanager
async def at_work(client: Client, fake: FakeLayouts) -> AsyncIterator[Runs]:
    """Runs the workers; gives the API's way to ask."""

    async def connect() -> Client:
        return client

    worker = activity_worker(client, HOUSEKEEPING_QUEUE, 16, fake.list_convertible, fake.convert_sheet, fake.tell_layouts)
    async with workflow_worker(client), worker:
        yield Runs(connect)


async def test_conversion_tells_its_progress_and_its_end(client: Client, ref: UploadRef) -> None:
    """Some sheets at a time; a sheet that had the layout counts as done, a refused one is named, and a second request joins the first."""
    fake = FakeLayouts(30)
    fake.refused = set(range(5, 30))
    fake.errors = [to_application_error(StorageUnavailable("away"))]
    fake.gate.clear()
    async with at_work(client, fake) as runs:
        with pytest.raises(NoRun):
            await runs.conversion(ref)
        await runs.convert(ref, Layout.PACKED)
        await until_async(lambda: len(fake.begun) == SHEETS_AT_ONCE)
        assert await runs.conversion(ref) == Conversion(Layout.PACKED, total_sheets=30)
        await runs.convert(ref, Layout.PACKED)
        with pytest.raises(UploadBusy, match="its sheets become packed"):
            await runs.convert(ref, Layout.EXPLODED)
        fake.gate.set()
        handle = client.get_workflow_handle(ref.layout_workflow_id)
        await handle.result()
        end = await runs.conversion(ref)
        await keep_history(handle, "converted")
    refused = sorted(end.refused, key=lambda sheet: sheet.number)
    assert len(refused) == MOST_NAMES
    assert set(refused) <= {RefusedSheet(number, "SheetAltered", f"sheet {number} differs") for number in fake.refused}
    assert (end.status, end.total_sheets, end.done_sheets, end.converted_sheets, end.refused_count) == (
        ConversionStatus.PARTIAL,
        30,
        30,
        4,
        25,
    )


async def test_conversion_is_refused_while_the_upload_runs(client: Client, ref: UploadRef) -> None:
    """By name."""

    async def connect() -> Client:
        return client

    fake = FakeActivities(pages(1))
    async with held_in_flight(client, ref, fake, 1):
        with pytest.raises(UploadBusy):
            await Runs(connect).convert(ref, Layout.PACKED)
        fake.gate.set()


async def test_deleted_upload_ends_the_conversion(client: Client, ref: UploadRef) -> None:
    """And one that an operator cancels says so."""
    fake = FakeLayouts(9)
    fake.errors = [to_application_error(UploadNotFound("deleted"))]
    async with at_work(client, fake) as runs:
        await runs.convert(ref, Layout.PACKED)
        with pytest.raises(WorkflowFailureError):
            await client.get_workflow_handle(ref.layout_workflow_id).result()
        assert (await runs.conversion(ref)).status is ConversionStatus.FAILED
        fake.gate.clear()
        fake.begun.clear()
        await runs.convert(ref, Layout.PACKED)
        await until_async(lambda: bool(fake.begun))
        handle = client.get_workflow_handle(ref.layout_workflow_id)
        await handle.cancel()
        await end_as_cancelled(handle)
        assert (await runs.conversion(ref)).status is ConversionStatus.CANCELLED
        assert fake.told == 1


async def test_cancelled_conversion_waits_for_its_sheets(client: Client, ref: UploadRef) -> None:
    """A sheet that is still written has its layout when the manifest is told, and meets no other conversion."""
    fake = FakeLayouts(9)
    fake.gate.clear()
    fake.may_stop.clear()
    async with at_work(client, fake) as runs:
        await runs.convert(ref, Layout.PACKED)
        await until_async(lambda: len(fake.begun) == SHEETS_AT_ONCE)
        handle = client.get_workflow_handle(ref.layout_workflow_id)
        await handle.cancel()
        await until_async(lambda: fake.stopping == SHEETS_AT_ONCE)
        assert fake.told == 0
        fake.may_stop.set()
        await end_as_cancelled(handle)
        await keep_history(handle, "conversion-cancelled")
    assert fake.told == 1
    assert len(fake.begun) == SHEETS_AT_ONCE


async def test_long_conversion_goes_through_several_runs(forgetful_server: TemporalServer, ref: UploadRef) -> None:
    """Each sheet is converted once, and the counts go on."""
    client = await Client.connect(forgetful_server.address, identity="test")
    fake = FakeLayouts(40)
    async with at_work(client, fake) as runs:
        assert await start_conversion(client, ref, Layout.PACKED)
        first = (await client.get_workflow_handle(ref.layout_workflow_id).describe()).run_id
        await client.get_workflow_handle(ref.layout_workflow_id).result()
        end = await runs.conversion(ref)
        assert (await client.get_workflow_handle(ref.layout_workflow_id).describe()).run_id != first
        await keep_history(client.get_workflow_handle(ref.layout_workflow_id, run_id=first), "converted-in-runs")
    assert sorted(fake.begun) == list(range(1, 41))
    assert (end.status, end.total_sheets, end.done_sheets, end.converted_sheets) == (ConversionStatus.COMPLETE, 40, 40, 39)
    assert fake.told == 1
