"""The work on one sheet: one host tiles its page, and the same host uploads the tiles."""

import asyncio
from collections import deque
from datetime import datetime

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.bucket.records import SheetStatus, UploadOptions
from activities.errors import RenderOutOfMemory, WorkerLost
from activities.interface import TiledPage
from workflows.processing.calls import Calls
from workflows.processing.failures import fell_silent, is_cancelled, is_due_to_cancel, is_host_lost, reason_and_detail, stop_if_cancelled
from workflows.processing.metrics import count_failed_update, count_sheet, count_update
from workflows.processing.patches import HALVE_RESOLUTION
from workflows.processing.progress import Progress
from workflows.processing.window import Window

MAX_LOSSES = 3
"""How often a sheet is tiled again because its host disappeared."""


MOST_COMMITS = 64


class SheetWork:
    """Tiles and uploads the sheets of one run, and remembers which hosts did it.

    Args:
        calls: The activities.
        progress: Gets every step of a sheet.
        window: Tells which sheets are prioritized.
        hosts: The queues of the hosts that earlier runs used.
    """

    def __init__(self, calls: Calls, progress: Progress, window: Window, hosts: tuple[str, ...]) -> None:
        self._calls = calls
        self._progress = progress
        self._window = window
        self.hosts = set(hosts)
        """The queues of the hosts whose scratch was used."""
        self.tiled_pages: dict[int, str] = {}
        """By sheet, the names of the tiled pages that are on a host's scratch and not uploaded."""
        self.commits: deque[tuple[int, float]] = deque(maxlen=MOST_COMMITS)
        """Of the newest sheets, the version of the progress in which each became ready, and when its commit marker was in the bucket."""
        self.silence_noticed: datetime | None = None
        """When a host last fell silent during an upload."""

    async def process(self, number: int, options: UploadOptions) -> None:
        """Works on a sheet until it is ready or failed. If the run is cancelled, the sheet becomes pending."""
        sheet_as_counted = self._progress.sheet(number)
        try:
            for _ in range(1 + MAX_LOSSES):
                if await self._tile_and_upload(number, options):
                    return
            detail = f"the host that held the sheet's tiles disappeared {1 + MAX_LOSSES} times"
            self._mark_failed(number, WorkerLost.__name__, detail)
        except (asyncio.CancelledError, ActivityError) as error:
            if is_due_to_cancel(error):
                self._progress.mark_pending(number, workflow.now())
                return
            reason, detail = reason_and_detail(error)
            if reason == RenderOutOfMemory.__name__:
                # A retry begins with the resolution of the page count again, because there may be more memory then.
                self._progress.resize(number, sheet_as_counted, workflow.now())
            self._mark_failed(number, reason, detail)

    def _mark_failed(self, number: int, reason: str, detail: str) -> None:
        self._progress.mark_failed(number, reason, detail, workflow.now())
        count_sheet(SheetStatus.FAILED, reason)

    async def _tile_and_upload(self, number: int, options: UploadOptions) -> bool:
        """Tiles and uploads a sheet; returns whether it is ready. If not, its host is lost.

        Raises:
            ActivityError: The page cannot be tiled or its tiles cannot be uploaded.
            CancelledError: The workflow was cancelled.
        """
        self._progress.mark_tiling(number, workflow.now())
        tiled = await self._tile(number, options)
        self.hosts.add(tiled.queue)
        stop_if_cancelled()
        self._progress.mark_uploading(number, workflow.now(), thumbnail=tiled.thumbnail)
        # There is no await between the tiling and this line: a host removes every tiled page that ``tiles_wanted`` does not name.
        self.tiled_pages[number] = tiled.scratch
        try:
            first = self._window.is_prioritized(number)
            record = await self._calls.upload_page(self._progress.sheet(number), options, tiled, first=first)
        except ActivityError as error:
            if fell_silent(error):
                self.silence_noticed = workflow.now()
            if not is_due_to_cancel(error):
                count_failed_update()
            if is_cancelled() or not is_host_lost(error):
                raise
            return False
        finally:
            del self.tiled_pages[number]
        # A sheet is ready only after the upload, which ends when the commit marker is in the bucket. So the result counts even if the run
        # was cancelled meanwhile.
        self._progress.mark_ready([record], workflow.now())
        count_update(record)
        count_sheet(SheetStatus.READY)
        if record.committed_at:
            self.commits.append((self._progress.version, record.committed_at))
        return True

    async def _tile(self, number: int, options: UploadOptions) -> TiledPage:
        """Tiles a page, at half its resolution if it needs more memory than a render child has."""
        try:
            return await self._calls.tile_page(self._progress.sheet(number), options, first=self._window.is_prioritized(number))
        except ActivityError as error:
            lacks_memory = reason_and_detail(error)[0] == RenderOutOfMemory.__name__
            if is_cancelled() or not lacks_memory or not workflow.patched(HALVE_RESOLUTION):
                raise
            half = await self._calls.halve_page(self._progress.sheet(number), first=self._window.is_prioritized(number))
            if half is None:
                raise
        stop_if_cancelled()
        # The progress gets the new size before the second tiling, so that every later try, on any host, makes the same pixels.
        self._progress.resize(number, half, workflow.now())
        return await self._calls.tile_page(self._progress.sheet(number), options, first=self._window.is_prioritized(number))
