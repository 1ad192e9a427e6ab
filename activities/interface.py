"""The activities as a workflow sees them: names, arguments, results. Light: no native library is loaded here.

Payloads carry keys and counts, never bytes. The implementations are in ``document``, ``sheet`` and ``reconcile``; those that need
Temporal's client, too, are in ``worker.housekeeping``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from temporalio import activity

from activities.bucket.records import Forecast, Note, SheetRecord, SheetState, Snapshot, UploadOptions

WORKFLOW_QUEUE = "sitelink"
TILE_QUEUE = "sitelink-tile"
STORAGE_QUEUE = "sitelink-storage"
HOUSEKEEPING_QUEUE = "sitelink-housekeeping"
"""Apart from the others: who deletes an upload waits there until its run has ended, and that run needs the storage queue for it."""


def host_queue(host: str) -> str:
    """The queue of one host: only it holds the tiles that it made."""
    return f"host-{host}"


@dataclass(frozen=True)
class CountPages:
    """Argument of ``count_pages``; ``ref`` is org/project/plan/upload, here and below."""

    ref: str


@dataclass(frozen=True)
class Page:
    """One page as counted: its geometry is decided here, once. Only ``halve_page`` may replace it, for a page that needs too much memory.

    Args:
        number: 1-based.
        title: Bookmark or label, at most 120 characters.
        width: Pixels; 0 when it failed, like all sizes here.
        height: Pixels.
        dpi: The resolution of these pixels.
        scaled: Whether that is less than was asked for.
        reason: The name of the error that makes this page unusable, if any.
        detail: Its sentence.
        notes: What is known now of why the sheet may differ from what its author drew.
    """

    number: int
    title: str | None = None
    width: int = 0
    height: int = 0
    dpi: int = 0
    scaled: bool = False
    reason: str | None = None
    detail: str | None = None
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Document:
    """Result of ``count_pages``.

    Args:
        pages: By number.
        forecast: What they will take; made here, for a workflow knows neither slots nor prices.
    """

    pages: tuple[Page, ...]
    forecast: Forecast | None = None


@dataclass(frozen=True)
class HalvePage:
    """Argument of ``halve_page``.

    Args:
        ref: The upload.
        number: 1-based.
        dpi: The resolution at which the page needs too much memory.
    """

    ref: str
    number: int
    dpi: int


@dataclass(frozen=True)
class ListSheets:
    """Argument of ``list_sheets``."""

    ref: str


@dataclass(frozen=True)
class BucketState:
    """Result of ``list_sheets``: what the bucket says was done before.

    Args:
        options: What was asked for, from ``upload.json``.
        committed: The ``sheet.json`` of every sheet whose ``.dzi`` exists, without digest and engines.
        manifest: The final progress of an earlier run, if one ended.
    """

    options: UploadOptions
    committed: tuple[SheetRecord, ...] = ()
    manifest: Snapshot | None = None


@dataclass(frozen=True)
class CheckSheets:
    """Argument of ``check_sheets``.

    Args:
        ref: The upload.
        sheets: As the progress has them; none of them is in flight.
        repair: Whether to delete the ``.dzi`` of what is broken and to remove what no sheet owns; else nothing is changed.
        discard: Whether nobody is going to finish those that are not committed: what is there of them is removed.
        deep: Whether to read every tile back and decode it.
    """

    ref: str
    sheets: tuple[SheetState, ...]
    repair: bool = True
    discard: bool = False
    deep: bool = False


@dataclass(frozen=True)
class BrokenSheet:
    """A sheet that has not all that it should, and what is wrong with it, in one sentence."""

    number: int
    detail: str


@dataclass(frozen=True)
class CheckedSheets:
    """Result of ``check_sheets``.

    Args:
        committed: The ``sheet.json``, without digest and engines, of those that are whole though the progress does not have them ready.
        broken: Those with a ``.dzi``, or ready in the progress, that are not whole; after a repair they have no ``.dzi``.
        removed: How many objects were removed because no sheet owns them, or nobody would finish them.
    """

    committed: tuple[SheetRecord, ...] = ()
    broken: tuple[BrokenSheet, ...] = ()
    removed: int = 0


@dataclass(frozen=True)
class PruneSheets:
    """Argument of ``prune_sheets``: the document has pages 1 to ``total_pages``."""

    ref: str
    total_pages: int


@dataclass(frozen=True)
class TilePage:
    """Argument of ``tile_page``.

    Args:
        ref: The upload.
        number: 1-based.
        width: Pixels to render.
        height: Pixels to render.
        options: Tile size, overlap and quality count.
    """

    ref: str
    number: int
    width: int
    height: int
    options: UploadOptions


@dataclass(frozen=True)
class TiledPage:
    """Result of ``tile_page``: the tiles lie on the scratch of one host.

    Args:
        queue: The task queue of that host.
        scratch: The name of the page's directory on its scratch, never a path.
        engines: Library name to version, of all that decided a tile's bytes.
        notes: What was found while the page was drawn.
    """

    queue: str
    scratch: str
    engines: dict[str, str]
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class UploadPage:
    """Argument of ``upload_page``."""

    ref: str
    page: Page
    options: UploadOptions
    tiled: TiledPage


@dataclass(frozen=True)
class WriteManifest:
    """Argument of ``write_manifest``."""

    ref: str
    snapshot: Snapshot


@dataclass(frozen=True)
class DiscardScratch:
    """Argument of ``discard_scratch``: the upload is done with this host."""

    ref: str


class UploadActivities(ABC):
    """What the workflow calls, one method an activity."""

    @activity.defn
    @abstractmethod
    async def count_pages(self, args: CountPages) -> Document:
        """Opens the PDF in a render child and measures every page.

        Raises:
            ApplicationError: Of a final ``DocumentError`` type, ``SourceMissing`` or ``SourceAltered``; a ``BucketError`` or
                ``RenderFault`` is retried.
        """

    @activity.defn
    @abstractmethod
    async def halve_page(self, args: HalvePage) -> Page | None:
        """Measures a page at half the resolution at which it was counted, with a note that says so.

        Returns:
            None if ``args.dpi`` is at or below half already, or if half is below ``MINIMUM_DPI``.

        Raises:
            ApplicationError: As ``count_pages``.
        """

    @activity.defn
    @abstractmethod
    async def list_sheets(self, args: ListSheets) -> BucketState:
        """Says what the bucket holds of this upload.

        Raises:
            ApplicationError: ``UploadNotFound`` when it was never accepted or is marked deleted; a ``BucketError`` is retried.
        """

    @activity.defn
    @abstractmethod
    async def check_sheets(self, args: CheckSheets) -> CheckedSheets:
        """Judges sheets by LIST, and repairs if asked to.

        Raises:
            ApplicationError: ``UploadNotFound``; a ``BucketError`` or ``NewerSchema`` is retried.
        """

    @activity.defn
    @abstractmethod
    async def prune_sheets(self, args: PruneSheets) -> int:
        """Removes what lies below ``sheets/`` beside the document's sheets; says how many objects.

        Raises:
            ApplicationError: ``UploadNotFound``; a ``BucketError`` is retried.
        """

    @activity.defn
    @abstractmethod
    async def tile_page(self, args: TilePage) -> TiledPage:
        """Renders a page and cuts it into tiles on this host's scratch.

        Raises:
            ApplicationError: Of a final ``PageError`` type, or a ``RenderFault`` type once its fresh tries are used up.
        """

    @activity.defn
    @abstractmethod
    async def upload_page(self, args: UploadPage) -> SheetRecord:
        """Writes thumbnail, tiles, ``sheet.json`` and ``.dzi``, in this order.

        Raises:
            ApplicationError: ``TilesMissing`` when this host does not hold the tiles, ``UploadNotFound`` when the upload was deleted
                meanwhile; a ``BucketError`` is retried.
        """

    @activity.defn
    @abstractmethod
    async def write_manifest(self, args: WriteManifest) -> None:
        """Writes the final progress of a run; every ``BucketError`` is retried."""

    @activity.defn
    @abstractmethod
    async def discard_scratch(self, args: DiscardScratch) -> None:
        """Removes what this host's scratch still holds of the upload."""


# ---------------------------------------------------------------------- housekeeping

NAMED = 20
"""How many names a report gives."""


@dataclass(frozen=True)
class StopRun:
    """Argument of ``stop_run``."""

    ref: str


@dataclass(frozen=True)
class RemoveObjects:
    """Argument of ``remove_objects``."""

    ref: str


@dataclass(frozen=True)
class Removed:
    """Result of ``remove_objects``.

    Args:
        objects: How many objects there were besides ``upload.json``.
        marked: Whether there still is an ``upload.json`` to remove.
    """

    objects: int
    marked: bool


@dataclass(frozen=True)
class RemoveRecord:
    """Argument of ``remove_record``."""

    ref: str


@dataclass(frozen=True)
class SweepBucket:
    """Argument of ``sweep``, and of the workflow ``Sweep``.

    Args:
        days: Look only at uploads whose id is not older; None for all.
        abandoned_after_s: When something that was begun and not finished counts as abandoned.
    """

    days: int | None = None
    abandoned_after_s: int = 24 * 60 * 60


@dataclass(frozen=True)
class Some:
    """How many, and the first of them by name."""

    count: int = 0
    first: tuple[str, ...] = ()

    def and_one(self, name: str) -> "Some":
        """One more."""
        return Some(self.count + 1, self.first if self.count >= NAMED else (*self.first, name))


@dataclass(frozen=True)
class Swept:
    """Result of ``sweep``.

    Args:
        uploads: How many uploads it looked at, accepted or not.
        started: Accepted ones that had neither a run nor a manifest, or whose run had ended without saying how.
        terminated: Those whose run had been ended from outside: their manifest says so now.
        mended: Those whose run had ended by itself and left no manifest: what it said last is written.
        deleted: Those marked deleted that nobody was deleting.
        removed: Those that were never accepted.
        passed_over: Those that could not be looked at, and why.
        aborted: Multipart uploads that were never completed.
        leftovers: Files of killed writes in a directory.
    """

    uploads: int = 0
    started: Some = Some()
    terminated: Some = Some()
    deleted: Some = Some()
    removed: Some = Some()
    passed_over: Some = Some()
    aborted: Some = Some()
    leftovers: int = 0
    mended: Some = Some()


@dataclass(frozen=True)
class ReconcileFinished:
    """Argument of ``reconcile_finished``, and of the workflow ``NightlyReconcile``.

    Args:
        days: Take the uploads that finished within so many days.
        patience_s: How long to wait for one until the next is taken.
    """

    days: int = 7
    patience_s: int = 60 * 60


@dataclass(frozen=True)
class Reconciled:
    """Result of ``reconcile_finished``.

    Args:
        uploads: How many were reconciled.
        corrected: Those that were not as their manifest said.
        unfinished: Those that were still at work when patience ended.
        passed_over: Those that could not be looked at, and why.
    """

    uploads: int = 0
    corrected: Some = Some()
    unfinished: Some = Some()
    passed_over: Some = Some()


class HousekeepingActivities(ABC):
    """What concerns whole uploads, one method an activity; all on the queue ``HOUSEKEEPING_QUEUE``."""

    @activity.defn
    @abstractmethod
    async def stop_run(self, args: StopRun) -> None:
        """Cancels the upload's run, if there is one, and returns when it has ended."""

    @activity.defn
    @abstractmethod
    async def remove_objects(self, args: RemoveObjects) -> Removed:
        """Removes everything of an upload that is marked deleted, but ``upload.json``.

        Raises:
            ApplicationError: ``InvalidRequest`` when it is not marked; a ``BucketError`` is retried.
        """

    @activity.defn
    @abstractmethod
    async def remove_record(self, args: RemoveRecord) -> None:
        """Removes ``upload.json``: then nothing tells of the upload any more."""

    @activity.defn
    @abstractmethod
    async def sweep(self, args: SweepBucket) -> Swept:
        """Walks over all uploads and puts right what was left undone; one that it cannot read stops it at nothing."""

    @activity.defn
    @abstractmethod
    async def reconcile_finished(self, args: ReconcileFinished) -> Reconciled:
        """Reconciles the uploads that finished lately as ``complete`` or ``partial``, a few at a time."""
