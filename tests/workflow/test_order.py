"""The order in which sheets are tiled, and the slots in which they are, on a real Temporal server."""

import asyncio
from dataclasses import replace

from temporalio import activity
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from activities.bucket.records import SheetStatus, UploadStatus
from activities.interface import TiledPage, TilePage, UploadedSheet, UploadPage
from tests.waiting import until_async
from tests.workflow.fakes import FakeActivities, pages, working
from tests.workflow.runs import handle_of
from worker.slots import RenderSlots
from workflows.starting import start_upload
from workflows.upload import ProcessUpload


class EarlyThumbnails(FakeActivities):
    """Each page has its thumbnail in the bucket when it is tiled. Two gates hold what comes after the rendering.

    Args:
        slots: Rendering holds one of them.
        count: Pages.
    """

    def __init__(self, slots: RenderSlots, count: int) -> None:
        super().__init__(pages(count))
        self.slots = slots
        self.rendering = self.most_rendering = 0
        self.thumbnails, self.uploads = asyncio.Event(), asyncio.Event()

    @activity.defn
    async def tile_page(self, args: TilePage) -> TiledPage:
        """Renders; then frees its slot, and waits until the bucket takes the thumbnail."""
        self.rendering += 1
        self.most_rendering = max(self.most_rendering, self.rendering)
        tiled = await super().tile_page(args)
        self.rendering -= 1
        self.slots.free_early()
        while not self.thumbnails.is_set():
            activity.heartbeat()
            await asyncio.sleep(0.05)
        return replace(tiled, thumbnail=True)

    @activity.defn
    async def upload_page(self, args: UploadPage) -> UploadedSheet:
        """Waits until the bucket takes tiles."""
        while not self.uploads.is_set():
            activity.heartbeat()
            await asyncio.sleep(0.05)
        return await super().upload_page(args)


async def test_sheets_are_tiled_in_the_order_of_the_document(client: Client, ref: UploadRef) -> None:
    """One slot takes the sheets one by one, although a whole window of them is scheduled at once."""
    fake = FakeActivities(pages(37))
    async with working(client, fake, tile_slots=1):
        await start_upload(client, ref)
        await handle_of(client, ref).result()
    assert fake.tiled == list(range(1, 38))


async def test_thumbnail_is_told_before_the_tiles_are_sent(client: Client, ref: UploadRef) -> None:
    """A sheet that is being uploaded has a thumbnail. One that was stopped or failed has none, and every ready sheet has one."""
    fake = EarlyThumbnails(RenderSlots(1), 2)
    fake.thumbnails.set()
    async with working(client, fake, tile_slots=fake.slots):
        await start_upload(client, ref)
        handle = handle_of(client, ref)

        async def states() -> list[tuple[SheetStatus, bool]]:
            return [(sheet.status, sheet.thumbnail) for sheet in (await handle.query(ProcessUpload.progress)).sheets]

        await until_async(lambda: len(fake.tiled) == 2)

        async def are_uploading() -> bool:
            return await states() == [(SheetStatus.UPLOADING, True)] * 2

        await until_async(are_uploading)
        fake.uploads.set()
        assert (await handle.result()).status is UploadStatus.COMPLETE
    assert fake.manifest is not None
    assert [sheet.thumbnail for sheet in fake.manifest.sheets] == [True, True]


async def test_bucket_that_takes_no_thumbnail_does_not_hold_up_the_drawing(client: Client, ref: UploadRef) -> None:
    """With one slot all pages are rendered, one at a time, while each waits for the bucket; then all slots are free again."""
    fake = EarlyThumbnails(RenderSlots(1), 5)
    fake.uploads.set()
    async with working(client, fake, tile_slots=fake.slots):
        await start_upload(client, ref)
        await until_async(lambda: len(fake.tiled) == 5 and not fake.rendering)
        assert (fake.most_rendering, fake.committed) == (1, {})
        fake.thumbnails.set()
        assert (await handle_of(client, ref).result()).status is UploadStatus.COMPLETE
        again = UploadRef(ref.organization, ref.project, ref.plan, f"{ref.upload}-2")
        fake.committed.clear()
        fake.manifest = None
        await start_upload(client, again)
        assert (await handle_of(client, again).result()).status is UploadStatus.COMPLETE
    assert (fake.tiled, fake.most_rendering) == ([1, 2, 3, 4, 5] * 2, 1)
