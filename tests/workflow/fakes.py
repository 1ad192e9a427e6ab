"""Activities that pretend, for tests of the workflow on a real Temporal server."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from activities.attempt import to_application_error
from activities.bucket.forecast import Forecaster
from activities.bucket.records import ReopenedRecord, SheetRecord, SheetStatus, Snapshot, UploadOptions, scaled_note
from activities.bucket.weight import fit_state
from activities.errors import RenderOutOfMemory, SiteLinkError
from activities.interface import (
    STORAGE_QUEUE,
    TILE_QUEUE,
    BrokenSheet,
    BucketState,
    CheckedSheets,
    CheckSheets,
    CountPages,
    DiscardScratch,
    Document,
    HalvePage,
    ListSheets,
    Page,
    PruneSheets,
    RecordReopening,
    Subscription,
    TiledPage,
    TilePage,
    UploadActivities,
    UploadedSheet,
    UploadPage,
    WriteManifest,
    WrittenManifest,
)
from tests.waiting import DEADLINE_S
from worker.app import activity_worker, workflow_worker
from worker.slots import RenderSlots

HOST_QUEUE = "host-pretended"


class FakeActivities(UploadActivities):
    """A bucket in memory. Each list of errors is raised one by one, in its order.

    Args:
        pages: What ``count_pages`` finds, or the error that it raises.
        window: The upload's window.
    """

    def __init__(self, pages: Sequence[Page] | SiteLinkError, *, window: int = 16) -> None:
        self.pages = pages
        self.options = UploadOptions(window=window)
        self.committed: dict[int, SheetRecord] = {}
        self.manifest: Snapshot | None = None
        self.reopened: ReopenedRecord | None = None
        """The pretended ``reopened.json``."""
        self.webhooks: tuple[Subscription, ...] = ()
        self.tile_errors: dict[int, list[SiteLinkError]] = {}
        self.halved: list[HalvePage] = []
        self.upload_errors: dict[int, list[SiteLinkError]] = {}
        self.list_errors: list[SiteLinkError] = []
        self.manifest_errors: list[SiteLinkError] = []
        self.check_errors: list[SiteLinkError] = []
        self.prune_errors: list[SiteLinkError] = []
        self.half: set[int] = set()
        self.partial: set[int] = set()
        """Sheets that were begun and not committed."""
        self.junk = 0
        self.checked: list[CheckSheets] = []
        self.tiled: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        """Width and height of each page that was to be tiled."""
        self.discarded: list[str] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.closes_after = 0
        """The gate closes when so many sheets are committed; a test that closed it after looking might come too late."""
        self.stubborn = ""
        """The step that waits for ``released`` and sends no heartbeats meanwhile, so that no cancellation reaches it."""
        self.released = asyncio.Event()
        self.reached = ""

    async def _reach(self, step: str) -> None:
        self.reached = step
        if self.stubborn == step:
            await self.released.wait()

    @activity.defn
    async def count_pages(self, args: CountPages) -> Document:
        """The pages, or the error."""
        await self._reach("count_pages")
        if isinstance(self.pages, SiteLinkError):
            raise to_application_error(self.pages)
        return Document(tuple(self.pages), Forecaster().forecast(self.pages, self.options, source_parts=1))

    @activity.defn
    async def halve_page(self, args: HalvePage) -> Page | None:
        """The page at half its resolution, once."""
        self.halved.append(args)
        await self._reach("halve_page")
        assert not isinstance(self.pages, SiteLinkError)
        page = self.pages[args.number - 1]
        half = page.dpi // 2
        if args.dpi <= half:
            return None
        note = scaled_note(half, page.dpi, "too little memory")
        return replace(page, width=page.width // 2, height=page.height // 2, dpi=half, scaled=True, notes=(note,))

    @activity.defn
    async def list_sheets(self, args: ListSheets) -> BucketState:
        """What the pretended bucket holds."""
        reopened = self.reopened if self.manifest and self.reopened and self.reopened.manifest_version >= self.manifest.version else None
        state = BucketState(self.options, tuple(self.committed.values()), self.manifest, self.webhooks, reopened=reopened)
        await self._reach("list_sheets")
        _raise_next(self.list_errors)
        return fit_state(state)

    @activity.defn
    async def record_reopening(self, args: RecordReopening) -> None:
        """Keeps the record."""
        await self._reach("record_reopening")
        self.reopened = args.record

    @activity.defn
    async def check_sheets(self, args: CheckSheets) -> CheckedSheets:
        """Compares with the pretended bucket; ``half`` are committed but not whole."""
        self.checked.append(args)
        await self._reach("check_sheets")
        _raise_next(self.check_errors)
        whole = {number for number in self.committed if number not in self.half}
        found = [sheet for sheet in args.sheets if sheet.number in whole and sheet.status is not SheetStatus.READY]
        broken = [
            sheet
            for sheet in args.sheets
            if sheet.number not in whole and (sheet.status is SheetStatus.READY or sheet.number in self.committed)
        ]
        removed = 0
        if args.repair:
            for sheet in broken:
                self.committed.pop(sheet.number, None)
                self.half.discard(sheet.number)
        if args.discard:
            gone = self.partial & {sheet.number for sheet in args.sheets}
            self.partial -= gone
            removed = len(gone)
        return CheckedSheets(
            tuple(self.committed[sheet.number] for sheet in found),
            tuple(BrokenSheet(sheet.number, "tiles missing") for sheet in broken),
            removed,
        )

    @activity.defn
    async def prune_sheets(self, args: PruneSheets) -> int:
        """Removes the junk."""
        _raise_next(self.prune_errors)
        removed, self.junk = self.junk, 0
        return removed

    @activity.defn
    async def tile_page(self, args: TilePage) -> TiledPage:
        """Waits for the gate, beating, so that a test can look at a sheet in flight."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            self.tiled.append(args.number)
            self.sizes.append((args.width, args.height))
            await self._reach("tile_page")
            while not self.gate.is_set():
                activity.heartbeat()
                await asyncio.sleep(0.05)
            _raise_next(self.tile_errors.get(args.number))
            return TiledPage(HOST_QUEUE, f"page-{args.number}", {"pretended": "1"})
        finally:
            self.in_flight -= 1

    @activity.defn
    async def upload_page(self, args: UploadPage) -> UploadedSheet:
        """Commits the sheet."""
        self.partial.add(args.page.number)
        await self._reach("upload_page")
        _raise_next(self.upload_errors.get(args.page.number))
        self.partial.remove(args.page.number)
        record = self.commit(args.page)
        return UploadedSheet(**vars(record), committed_at=time.time(), attempt=activity.info().attempt)

    def commit(self, page: Page) -> SheetRecord:
        """Puts a sheet into the pretended bucket."""
        size = page.width, page.height, page.dpi, page.scaled
        record = SheetRecord(page.number, *size, page.title, 256, 1, 85, 8, 4321, "0" * 64, {}, notes=page.notes)
        self.committed[page.number] = record
        if len(self.committed) == self.closes_after:
            self.gate.clear()
        return record

    @activity.defn
    async def write_manifest(self, args: WriteManifest) -> WrittenManifest:
        """Keeps the manifest."""
        await self._reach("write_manifest")
        _raise_next(self.manifest_errors)
        self.manifest = args.snapshot
        if self.reopened and self.reopened.manifest_version <= args.reopened:
            self.reopened = None
        return WrittenManifest(self.webhooks)

    @activity.defn
    async def discard_scratch(self, args: DiscardScratch) -> None:
        """Notes the upload."""
        self.discarded.append(args.ref)


def _raise_next(errors: list[SiteLinkError] | None) -> None:
    if errors:
        error = errors.pop(0)
        # Stands for as many as make it final.
        raise to_application_error(error, final=error.final or isinstance(error, RenderOutOfMemory))


def pages(count: int) -> list[Page]:
    """So many good pages of 100 x 50 px."""
    return [Page(number, f"A-{100 + number}", 100, 50, 300) for number in range(1, count + 1)]


@asynccontextmanager
async def working(client: Client, fake: FakeActivities, *, tile_slots: int | RenderSlots = 16) -> AsyncIterator[None]:
    """Runs the real workflow worker and workers around the pretended activities."""
    async with patient(workflow_worker(client)), activity_workers(client, fake, tile_slots=tile_slots):
        yield


def patient(worker: Worker) -> Worker:
    """Lets each step of a workflow take as long as a test waits. The library interrupts it after 2 seconds: on a busy machine any."""
    steps = worker._workflow_worker
    assert steps is not None
    assert steps._deadlock_timeout_seconds
    steps._deadlock_timeout_seconds = DEADLINE_S
    return worker


@asynccontextmanager
async def activity_workers(client: Client, fake: FakeActivities, *, tile_slots: int | RenderSlots = 16) -> AsyncIterator[None]:
    """Runs workers around the pretended activities alone."""
    async with (
        activity_worker(client, TILE_QUEUE, tile_slots, fake.count_pages, fake.halve_page, fake.tile_page),
        activity_worker(
            client,
            STORAGE_QUEUE,
            4,
            fake.list_sheets,
            fake.record_reopening,
            fake.check_sheets,
            fake.prune_sheets,
            fake.write_manifest,
        ),
        activity_worker(client, HOST_QUEUE, 16, fake.upload_page, fake.discard_scratch),
    ):
        yield
