"""The activities of ``ProcessUpload``: the queue of each, how long it may take, how it is retried, and its summary in Temporal's UI."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy
from temporalio.exceptions import ActivityError
from temporalio.types import MethodAsyncSingleParam

from activities.bucket.keys import UploadRef
from activities.bucket.records import ReopenedRecord, SheetState, Snapshot, UploadOptions
from activities.bucket.weight import cut
from activities.errors import TilesMissing
from activities.interface import (
    STORAGE_QUEUE,
    TILE_QUEUE,
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
    TiledPage,
    TilePage,
    UploadActivities,
    UploadedSheet,
    UploadPage,
    WriteManifest,
    WrittenManifest,
)
from workflows.processing.display import Display
from workflows.retries import HEARTBEAT, RETRIES

A = TypeVar("A")
T = TypeVar("T")

STORAGE_TIMEOUT = timedelta(minutes=10)
COUNT_TIMEOUT = timedelta(minutes=5)
SHEET_TIMEOUT = timedelta(hours=1)
FREE_TIMEOUT = timedelta(minutes=1)

SUMMARY_BYTES = 200
"""Most bytes of JSON for a title in a summary: Temporal takes 400 with all that is around it, also encrypted
(``limit.userMetadataSummarySize``)."""

UPLOAD_RETRIES = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    maximum_interval=timedelta(seconds=60),
    non_retryable_error_types=[TilesMissing.__name__, "TemporalTimeout:Heartbeat"],
)

CANCELLATION = workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED
"""A cancelled run waits until its activities have stopped: otherwise one might write a ``.dzi`` after the upload is ``cancelled``."""


@dataclass(frozen=True)
class Patience:
    """How long a run waits for a host that may be dead. Only tests change these times.

    Args:
        host: The longest wait until a host takes the upload of a page from its queue.
        heartbeat: The longest pause between two heartbeats of a host that uploads a page.
        late_write: The wait, after a host fell silent, before the end of a run removes half sheets. The host may have sent a ``.dzi`` that
            the bucket stores later: a host waits so long for an answer (``SILENCE_TIMEOUT`` of ``activities.bucket.storage``). Such a sheet
            is whole, and the run counts it.
        free_scratch: The longest wait until a host begins to free its scratch. An upload ends only after that wait; a slower host cleans up
            by itself.
    """

    host: timedelta = timedelta(seconds=45)
    heartbeat: timedelta = HEARTBEAT
    late_write: timedelta = timedelta(minutes=2)
    free_scratch: timedelta = timedelta(seconds=10)


class Calls:
    """Calls the activities of one upload.

    Args:
        ref: The upload.
        patience: How long to wait for a host.
        display: Shows for which activities the run waits.
        sealed_password: See ``UploadInput``.
    """

    def __init__(self, ref: UploadRef, patience: Patience, display: Display, sealed_password: str) -> None:
        self._display = display
        self._ref = str(ref)
        self._organization = ref.organization
        self._patience = patience
        self.sealed_password = sealed_password

    # ------------------------------------------------------------------ on the storage queue

    async def list_sheets(self) -> BucketState:
        """The state of the upload in the bucket: its options, its committed sheets and its manifest."""
        return await self._call(STORAGE_QUEUE, UploadActivities.list_sheets, ListSheets(self._ref), "list committed sheets")

    async def record_reopening(self, record: ReopenedRecord) -> None:
        """Writes down in the bucket that this run goes on with an upload that had ended."""
        args = RecordReopening(self._ref, record)
        await self._call(STORAGE_QUEUE, UploadActivities.record_reopening, args, "write down that the upload is reopened")

    async def check_sheets(self, sheets: tuple[SheetState, ...], *, repair: bool, discard: bool, deep: bool) -> CheckedSheets:
        """Compares these sheets with the bucket; the arguments are those of ``CheckSheets``."""
        args = CheckSheets(self._ref, sheets, repair=repair, discard=discard, deep=deep)
        summary = f"check sheets {sheets[0].number} to {sheets[-1].number}"
        return await self._call(STORAGE_QUEUE, UploadActivities.check_sheets, args, summary, SHEET_TIMEOUT)

    async def prune_sheets(self, total_pages: int) -> int:
        """Removes the objects that belong to no sheet of the document; returns how many objects were removed."""
        args = PruneSheets(self._ref, total_pages)
        return await self._call(STORAGE_QUEUE, UploadActivities.prune_sheets, args, "remove objects that belong to no sheet")

    async def write_manifest(self, snapshot: Snapshot, *, reopened: int) -> WrittenManifest | None:
        """Writes the final progress to the bucket; the arguments are those of ``WriteManifest``."""
        args = WriteManifest(self._ref, snapshot, reopened=reopened)
        return await self._call(STORAGE_QUEUE, UploadActivities.write_manifest, args, "write the manifest")

    # ------------------------------------------------------------------ on the tile queue, with a slot for each core

    async def count_pages(self) -> Document:
        """Measures every page of the document."""
        args = CountPages(self._ref, self.sealed_password)
        return await self._call(TILE_QUEUE, UploadActivities.count_pages, args, "count pages", COUNT_TIMEOUT, first=True)

    async def halve_page(self, sheet: SheetState, *, first: bool) -> Page | None:
        """Measures a page at half its resolution; None when the page is halved already or would become too coarse."""
        args = HalvePage(self._ref, sheet.number, sheet.dpi or 0, self.sealed_password, sheet.width or 0, sheet.height or 0)
        summary = f"halve the resolution of {_summary(sheet)}"
        timeout = 2 * COUNT_TIMEOUT  # the activity counts twice
        return await self._call(TILE_QUEUE, UploadActivities.halve_page, args, summary, timeout, first=first)

    async def tile_page(self, sheet: SheetState, options: UploadOptions, *, first: bool) -> TiledPage:
        """Renders a page and cuts it into tiles, on any host that is free."""
        args = TilePage(self._ref, sheet.number, sheet.width or 0, sheet.height or 0, options, self.sealed_password)
        return await self._call(TILE_QUEUE, UploadActivities.tile_page, args, _summary(sheet), SHEET_TIMEOUT, first=first)

    async def _call(
        self,
        queue: str,
        method: MethodAsyncSingleParam[UploadActivities, A, T],
        args: A,
        summary: str,
        timeout: timedelta = STORAGE_TIMEOUT,
        *,
        first: bool = False,
    ) -> T:
        """Calls an activity that any host may take from the queue."""
        with self._display.waiting(_wait(cast(Any, method).__name__, queue, summary)):
            return await workflow.execute_activity_method(
                method,
                args,
                task_queue=queue,
                start_to_close_timeout=timeout,
                heartbeat_timeout=HEARTBEAT,
                retry_policy=RETRIES,
                cancellation_type=CANCELLATION,
                # Organizations take turns in a queue, so that the 2,000 pages of one do not delay the 3 pages of another.
                priority=Priority(priority_key=1 if first else None, fairness_key=self._organization),
                summary=summary,
            )

    # ------------------------------------------------------------------ on the queue of one host

    async def upload_page(self, sheet: SheetState, options: UploadOptions, tiled: TiledPage, *, first: bool) -> UploadedSheet:
        """Writes a sheet to the bucket, on the host that holds its tiles."""
        page = Page(sheet.number, sheet.title, sheet.width or 0, sheet.height or 0, sheet.dpi or 0, scaled=sheet.scaled, notes=sheet.notes)
        with self._display.waiting(_wait("upload_page", tiled.queue, _summary(sheet))):
            return await workflow.execute_activity_method(
                UploadActivities.upload_page,
                UploadPage(self._ref, page, options, tiled, first),
                task_queue=tiled.queue,
                schedule_to_start_timeout=self._patience.host,
                start_to_close_timeout=SHEET_TIMEOUT,
                heartbeat_timeout=self._patience.heartbeat,
                retry_policy=UPLOAD_RETRIES,
                cancellation_type=CANCELLATION,
                summary=_summary(sheet),
            )

    async def discard_scratch(self, queue: str) -> None:
        """Frees the scratch of a host, if the host answers."""
        summary = "free the scratch"
        try:
            with self._display.waiting(_wait("discard_scratch", queue, summary)):
                await workflow.execute_activity_method(
                    UploadActivities.discard_scratch,
                    DiscardScratch(self._ref),
                    task_queue=queue,
                    schedule_to_start_timeout=self._patience.free_scratch,
                    start_to_close_timeout=FREE_TIMEOUT,
                    retry_policy=RetryPolicy(maximum_attempts=1),
                    cancellation_type=CANCELLATION,
                    summary=summary,
                )
        except ActivityError as error:
            # A host that is gone has no scratch to free; a host that comes back cleans up when it starts.
            workflow.logger.info("scratch of %s was not freed: %s", queue, error.cause)


def _wait(activity: str, queue: str, summary: str) -> str:
    return f"`{activity}` on the task queue `{queue}`: {summary}"


def _summary(sheet: SheetState) -> str:
    return f"sheet {sheet.number}: {cut(sheet.title, SUMMARY_BYTES)}" if sheet.title else f"sheet {sheet.number}"
