"""The activities as a workflow sees them: names, arguments, results. Light: no native library is loaded here.

Payloads carry keys and counts, never bytes. The implementations are in ``document``, ``sheets`` and ``reconcile``; the activities that
need Temporal's client, too, are in ``worker.housekeeping``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from temporalio import activity

from activities.bucket.records import Forecast, Note, SheetRecord, SheetState, Snapshot, UploadOptions
from activities.bucket.report import NO_NAMES, NameList

WORKFLOW_QUEUE = "sitelink"
TILE_QUEUE = "sitelink-tile"
STORAGE_QUEUE = "sitelink-storage"
HOUSEKEEPING_QUEUE = "sitelink-housekeeping"
"""A queue of its own: a deletion holds a slot until the upload's run has ended, and to end, the run needs a slot of the storage queue."""


def host_queue(host: str) -> str:
    """The queue of one host: only this host has the tiles that it made."""
    return f"host-{host}"


@dataclass(frozen=True)
class CountPages:
    """Argument of ``count_pages``; ``ref`` is org/project/plan/upload, here and below."""

    ref: str


@dataclass(frozen=True)
class Page:
    """One page as counted. Its geometry is decided once; only ``halve_page`` may replace it, for a page that needs too much memory.

    Args:
        number: 1-based.
        title: Bookmark or label, at most 120 characters.
        width: Pixels; 0, like ``height`` and ``dpi``, when the page cannot be used.
        height: Pixels.
        dpi: The resolution of these pixels.
        scaled: Whether the resolution is lower than was asked for.
        reason: The name of the error that makes this page unusable, if any.
        detail: The error's sentence.
        notes: Why the sheet may differ from what its author drew, as far as it is known before the page is drawn.
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
        forecast: What the sheets will take; made by the activity, because a workflow knows neither slots nor prices.
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
    """Result of ``list_sheets``: what the bucket holds from earlier runs.

    Args:
        options: The upload's options, from ``upload.json``.
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
        repair: Whether to delete the ``.dzi`` of a broken sheet and every object that no sheet owns; else nothing is changed.
        discard: Whether to remove the objects of every sheet that is not committed, because nobody is going to finish it.
        deep: Whether to read every tile back and decode it.
    """

    ref: str
    sheets: tuple[SheetState, ...]
    repair: bool = True
    discard: bool = False
    deep: bool = False


@dataclass(frozen=True)
class BrokenSheet:
    """A sheet that is not whole, and a sentence that says why."""

    number: int
    detail: str


@dataclass(frozen=True)
class CheckedSheets:
    """Result of ``check_sheets``.

    Args:
        committed: The ``sheet.json``, without digest and engines, of sheets that are whole though the progress does not have them ready.
        broken: Sheets with a ``.dzi``, or ready in the progress, that are not whole; after a repair they have no ``.dzi``.
        removed: How many objects were removed, because no sheet owns them or nobody is going to finish their sheet.
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
        queue: The task queue of this host.
        scratch: The name of the page's directory on the host's scratch, never a path.
        engines: Library name to version, of every library that decides a tile's bytes.
        notes: Why the sheet may differ from what its author drew, as found while the page was drawn.
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
    """Argument of ``discard_scratch``: the upload does not need this host any more."""

    ref: str


class UploadActivities(ABC):
    """The activities of one upload, one method each."""

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
            None if ``args.dpi`` is half or less already, or if half would be below ``MINIMUM_DPI``.

        Raises:
            ApplicationError: As ``count_pages``.
        """

    @activity.defn
    @abstractmethod
    async def list_sheets(self, args: ListSheets) -> BucketState:
        """Reads what the bucket holds of this upload.

        Raises:
            ApplicationError: ``UploadNotFound`` when the upload was never accepted or is marked deleted; a ``BucketError`` is retried.
        """

    @activity.defn
    @abstractmethod
    async def check_sheets(self, args: CheckSheets) -> CheckedSheets:
        """Judges sheets by LIST, and repairs them if asked to.

        Raises:
            ApplicationError: ``UploadNotFound``; a ``BucketError`` or ``NewerSchema`` is retried.
        """

    @activity.defn
    @abstractmethod
    async def prune_sheets(self, args: PruneSheets) -> int:
        """Removes the objects below ``sheets/`` that belong to no sheet of the document; returns how many there were.

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
        """Removes the upload's files from this host's scratch."""


# ---------------------------------------------------------------------- housekeeping


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
        objects: How many objects were removed.
        marked: Whether the upload still has its ``upload.json``, which is marked deleted and is removed last. Read it as ``has_record``:
            the field's name is kept, because the histories of workflows hold it.
    """

    objects: int
    marked: bool

    @property
    def has_record(self) -> bool:
        """Whether ``upload.json`` is still to be removed."""
        return self.marked


@dataclass(frozen=True)
class RemoveRecord:
    """Argument of ``remove_record``."""

    ref: str


@dataclass(frozen=True)
class SweepBucket:
    """Argument of ``sweep``, and of the workflow ``Sweep``.

    Args:
        days: Look only at uploads that were made within so many days, by their ids; None for all uploads.
        abandoned_after_s: An upload that was begun counts as abandoned when it is not accepted after so many seconds.
    """

    days: int | None = None
    abandoned_after_s: int = 24 * 60 * 60


@dataclass(frozen=True)
class Swept:
    """Result of ``sweep``.

    Args:
        uploads: How many uploads were looked at, accepted or not.
        started: Uploads whose workflow was started: they had neither a run nor a manifest, or their run had ended without saying how.
        terminated: Uploads whose run was ended from outside; their manifest says so now.
        mended: Uploads whose run ended by itself and left no manifest; the run's last progress is their manifest now.
        deleted: Uploads that are marked deleted and whose deletion had stopped; it was started again.
        removed: Uploads that were never accepted, and are removed now.
        passed_over: Uploads that could not be looked at, each with the reason.
        aborted: Keys of multipart uploads that were never completed.
        leftovers: How many files of killed writes were removed from a directory.
    """

    uploads: int = 0
    started: NameList = NO_NAMES
    terminated: NameList = NO_NAMES
    deleted: NameList = NO_NAMES
    removed: NameList = NO_NAMES
    passed_over: NameList = NO_NAMES
    aborted: NameList = NO_NAMES
    leftovers: int = 0
    mended: NameList = NO_NAMES


@dataclass(frozen=True)
class ReconcileFinished:
    """Argument of ``reconcile_finished``, and of the workflow ``NightlyReconcile``.

    Args:
        days: Take the uploads that finished within so many days.
        patience_s: How many seconds to wait for one upload before the next is taken.
    """

    days: int = 7
    patience_s: int = 60 * 60


@dataclass(frozen=True)
class Reconciled:
    """Result of ``reconcile_finished``.

    Args:
        uploads: How many uploads were reconciled.
        corrected: Uploads that were not as their manifest said.
        unfinished: Uploads that were still at work when ``patience_s`` was over.
        passed_over: Uploads that could not be looked at, each with the reason.
    """

    uploads: int = 0
    corrected: NameList = NO_NAMES
    unfinished: NameList = NO_NAMES
    passed_over: NameList = NO_NAMES


class HousekeepingActivities(ABC):
    """The activities that look after whole uploads, one method each; all on the queue ``HOUSEKEEPING_QUEUE``."""

    @activity.defn
    @abstractmethod
    async def stop_run(self, args: StopRun) -> None:
        """Cancels the upload's run, if there is one, and returns when it has ended."""

    @activity.defn
    @abstractmethod
    async def remove_objects(self, args: RemoveObjects) -> Removed:
        """Removes every object of an upload that is marked deleted, except ``upload.json``.

        Raises:
            ApplicationError: ``InvalidRequest`` when the upload is not marked; a ``BucketError`` is retried.
        """

    @activity.defn
    @abstractmethod
    async def remove_record(self, args: RemoveRecord) -> None:
        """Removes ``upload.json``, the last object of the upload."""

    @activity.defn
    @abstractmethod
    async def sweep(self, args: SweepBucket) -> Swept:
        """Walks over all uploads and puts right what was left undone; an upload that cannot be read is passed over."""

    @activity.defn
    @abstractmethod
    async def reconcile_finished(self, args: ReconcileFinished) -> Reconciled:
        """Reconciles the uploads that finished lately as ``complete`` or ``partial``, a few at a time."""
