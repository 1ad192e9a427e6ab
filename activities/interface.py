"""The activities as a workflow sees them: names, arguments, results. Light: no native library is loaded here.

Payloads carry keys and counts, never bytes. The implementations are in ``document``, ``sheets`` and ``reconcile``; the activities that
need Temporal's client, too, are in ``worker.housekeeping`` and ``worker.layouts``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from temporalio import activity

from activities.bucket.records import Forecast, Layout, Note, ReopenedRecord, SheetRecord, SheetState, Snapshot, UploadOptions
from activities.bucket.report import NO_NAMES, NameList

WORKFLOW_QUEUE = "sitelink"
TILE_QUEUE = "sitelink-tile"
STORAGE_QUEUE = "sitelink-storage"
WEBHOOK_QUEUE = "sitelink-webhook"
HOUSEKEEPING_QUEUE = "sitelink-housekeeping"
"""Separate from the storage queue: a deletion holds its slot until the upload's run has ended, and the run needs a storage slot to end."""

IN_CLEAR = "sitelink-in-clear"
"""This metadata marks a payload that is never encrypted, because the payload contains nothing of a document."""


def host_queue(host: str) -> str:
    """The queue for the activities that need the scratch of one host."""
    return f"host-{host}"


@dataclass(frozen=True)
class CountPages:
    """Argument of ``count_pages``.

    Args:
        ref: org/project/plan/upload, here and below.
        sealed_password: The password of the document, as ``PasswordSeal`` seals it; empty without one.
    """

    ref: str
    sealed_password: str = ""


@dataclass(frozen=True)
class Page:
    """One page, as ``count_pages`` measured it. Only ``halve_page`` may replace it, when the page needs too much memory.

    Args:
        number: 1-based.
        title: From the bookmarks or page labels, at most 120 characters.
        width: Pixels; ``width``, ``height`` and ``dpi`` are 0 when the page cannot be used.
        height: Pixels.
        dpi: The resolution at which the page has this size.
        scaled: Whether the resolution is lower than the upload's option.
        reason: The name of the error that makes this page unusable, if any.
        detail: The error's sentence.
        notes: Why the sheet may differ from the author's drawing, as far as this is known before the page is drawn.
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
        pages: All pages, by number.
        forecast: What the upload will take. The activity makes it, because a workflow does not know the host's slots and prices.
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
        sealed_password: See ``CountPages``.
        width: Pixels at that resolution; 0 from a run of an earlier release.
        height: As ``width``.
    """

    ref: str
    number: int
    dpi: int
    sealed_password: str = ""
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class ListSheets:
    """Argument of ``list_sheets``."""

    ref: str


@dataclass(frozen=True)
class Subscription:
    """A receiver of webhooks about an upload. The address stays in the bucket.

    Args:
        receiver: ``ORGANIZATION`` or ``UPLOAD``.
        events: The types of the events that it wants.
    """

    receiver: str
    events: tuple[str, ...]


ORGANIZATION, UPLOAD = "organization", "upload"
"""The receivers of webhooks: the one that the organization has set, and the one that the client named for an upload."""


@dataclass(frozen=True)
class BucketState:
    """Result of ``list_sheets``: what earlier runs left in the bucket.

    Args:
        options: The upload's options, from ``upload.json``.
        committed: The ``sheet.json`` of every sheet whose commit marker exists, without digest, engines, transform and layers.
        manifest: The final progress of an earlier run, if one ended.
        webhooks: Who wants webhooks about the upload.
        confirmed: The numbers of further committed sheets. They are ready in the manifest, and their records would not fit here.
        reopened: ``reopened.json``, if an earlier run went on from this manifest and wrote no newer one.
    """

    options: UploadOptions
    committed: tuple[SheetRecord, ...] = ()
    manifest: Snapshot | None = None
    webhooks: tuple[Subscription, ...] = ()
    confirmed: tuple[int, ...] = ()
    reopened: ReopenedRecord | None = None


@dataclass(frozen=True)
class RecordReopening:
    """Argument of ``record_reopening``: the upload, and its new ``reopened.json``."""

    ref: str
    record: ReopenedRecord


@dataclass(frozen=True)
class CheckSheets:
    """Argument of ``check_sheets``.

    Args:
        ref: The upload.
        sheets: The sheets to check, as the progress has them. None of them is being tiled or uploaded.
        repair: Whether to delete the commit marker of a broken sheet, and every object that no sheet owns. Otherwise nothing is changed.
        discard: Whether a repair also removes the objects of every sheet that is not whole, because no run is going to finish the sheet.
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
        committed: The ``sheet.json``, without digest, engines, transform and layers, of each sheet that is whole,
            but not ready in the progress.
        broken: The sheets that have a commit marker, or are ready in the progress, but are not whole. After a repair they have none.
        removed: How many objects were removed.
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
        options: The upload's options; all but resolution, budget, window and layout are used.
        sealed_password: See ``CountPages``.
    """

    ref: str
    number: int
    width: int
    height: int
    options: UploadOptions
    sealed_password: str = ""


@dataclass(frozen=True)
class TiledPage:
    """Result of ``tile_page``: where the tiles are, on the scratch of one host.

    Args:
        queue: The task queue of the host.
        scratch: The name of the page's directory on the host's scratch, never a path.
        engines: Name to version of every library that decides a tile's bytes.
        notes: Why the sheet may differ from the author's drawing, as found while the page was drawn.
        chroma: The chroma subsampling of tiles with colours; None from a host of an earlier release.
        thumbnail: Whether the bucket has the thumbnail already.
        transform: From the page to its pixels, as ``SheetRecord`` explains; None from a host of an earlier release.
    """

    queue: str
    scratch: str
    engines: dict[str, str]
    notes: tuple[Note, ...] = ()
    chroma: str | None = None
    thumbnail: bool = False
    transform: tuple[float, ...] | None = None


@dataclass(frozen=True)
class UploadedSheet(SheetRecord):
    """Result of ``upload_page``: the ``sheet.json`` that it wrote, without its layers, and facts for metrics.

    Args:
        committed_at: When the commit marker was in the bucket, seconds since 1970; 0 from a worker of an earlier release.
        attempt: The number of the attempt that committed the sheet.
    """

    committed_at: float = 0.0
    attempt: int = 1


@dataclass(frozen=True)
class UploadPage:
    """Argument of ``upload_page``.

    Args:
        ref: The upload.
        page: The page, with the size of its tiles.
        options: The upload's options.
        tiled: Where the tiles are.
        first: Whether the tiles are sent before those of sheets that were drawn earlier.
    """

    ref: str
    page: Page
    options: UploadOptions
    tiled: TiledPage
    first: bool = False


@dataclass(frozen=True)
class WriteManifest:
    """Argument of ``write_manifest``.

    Args:
        ref: The upload.
        snapshot: The final progress.
        reopened: The ``manifest_version`` of the run's ``reopened.json``, which is removed when the manifest is written; 0 if it has none.
    """

    ref: str
    snapshot: Snapshot
    reopened: int = 0


@dataclass(frozen=True)
class WrittenManifest:
    """Result of ``write_manifest``: who wants webhooks about the upload now."""

    webhooks: tuple[Subscription, ...] = ()


@dataclass(frozen=True)
class DiscardScratch:
    """Argument of ``discard_scratch``."""

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
        """Measures a page at half the resolution at which it was counted, and adds a note about it.

        Returns:
            None if ``args.dpi`` is already half or less, or if half is below ``MINIMUM_DPI``. It is never larger than the page was, so that
            it keeps the limits that ``count_pages`` has checked.

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
    async def record_reopening(self, args: RecordReopening) -> None:
        """Writes down that a run goes on with an upload that had ended.

        Raises:
            ApplicationError: ``UploadNotFound`` when the upload was deleted; a ``BucketError`` is retried.
        """

    @activity.defn
    @abstractmethod
    async def check_sheets(self, args: CheckSheets) -> CheckedSheets:
        """Checks whether sheets are whole, and repairs them if ``args.repair`` is set.

        Raises:
            ApplicationError: ``UploadNotFound``; a ``BucketError`` or ``NewerSchema`` is retried.
        """

    @activity.defn
    @abstractmethod
    async def prune_sheets(self, args: PruneSheets) -> int:
        """Removes the objects below ``sheets/`` that belong to no sheet of the document; returns how many it removed.

        Raises:
            ApplicationError: ``UploadNotFound``; a ``BucketError`` is retried.
        """

    @activity.defn
    @abstractmethod
    async def tile_page(self, args: TilePage) -> TiledPage:
        """Renders a page and cuts it into tiles on this host's scratch; then tries once to write the thumbnail.

        Raises:
            ApplicationError: Of a final ``PageError`` type, or a ``RenderFault`` type once its fresh tries are used up.
        """

    @activity.defn
    @abstractmethod
    async def upload_page(self, args: UploadPage) -> UploadedSheet:
        """Writes thumbnail, tiles, ``sheet.json`` and the commit marker, in this order.

        Raises:
            ApplicationError: ``TilesMissing`` when this host does not hold the tiles, ``UploadNotFound`` when the upload was deleted
                meanwhile; a ``BucketError`` is retried.
        """

    @activity.defn
    @abstractmethod
    async def write_manifest(self, args: WriteManifest) -> WrittenManifest | None:
        """Writes the final progress of a run.

        Returns:
            None from a worker of an earlier release.

        Raises:
            ApplicationError: ``UploadNotFound`` when the upload was deleted; a ``BucketError`` is retried.
        """

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
        marked: Whether the upload still has its ``upload.json``, which is removed last. Code reads ``has_record`` instead: this field keeps
            its name only because the histories of workflows hold it.
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
        days: Take only uploads that were made within so many days, by the time in their ids; None takes all uploads.
        abandoned_after_s: An upload that is not accepted counts as abandoned when nothing was written for it for so many seconds.
    """

    days: int | None = None
    abandoned_after_s: int = 24 * 60 * 60


@dataclass(frozen=True)
class Swept:
    """Result of ``sweep``.

    Args:
        uploads: How many uploads were looked at, accepted or not.
        started: Uploads whose workflow was started. They had neither a run nor a manifest, or their run had ended without a final progress,
            or the run that went on with them after their end was lost.
        terminated: Uploads whose run was ended from outside. Their manifest was written, and says so.
        mended: Uploads whose run ended by itself and left no manifest. The run's last progress was written as the manifest.
        deleted: Uploads that are marked deleted, but whose deletion had stopped. The deletion was started again.
        removed: Uploads that were never accepted. Their objects were removed.
        passed_over: Uploads that could not be looked at, each with the reason.
        aborted: Keys of multipart uploads that were never completed, and were aborted.
        leftovers: How many files of killed writes were removed from a bucket that is a directory.
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
        patience_s: Seconds to wait for one upload before another is taken.
    """

    days: int = 7
    patience_s: int = 60 * 60


@dataclass(frozen=True)
class Reconciled:
    """Result of ``reconcile_finished``.

    Args:
        uploads: How many uploads were reconciled.
        corrected: Uploads whose manifest was wrong, and was corrected.
        unfinished: Uploads whose run had not ended after ``patience_s``.
        passed_over: Uploads that could not be looked at, each with the reason.
    """

    uploads: int = 0
    corrected: NameList = NO_NAMES
    unfinished: NameList = NO_NAMES
    passed_over: NameList = NO_NAMES


class HousekeepingActivities(ABC):
    """The activities for whole uploads, one method each, all on the queue ``HOUSEKEEPING_QUEUE``."""

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
        """Walks over the uploads, and finishes what ended runs and stopped deletions left undone. An upload that fails is passed over."""

    @activity.defn
    @abstractmethod
    async def reconcile_finished(self, args: ReconcileFinished) -> Reconciled:
        """Reconciles the uploads that finished within ``args.days`` as ``complete`` or ``partial``, a few at a time."""


# ---------------------------------------------------------------------- layouts


@dataclass(frozen=True)
class ListConvertible:
    """Argument of ``list_convertible``."""

    ref: str


@dataclass(frozen=True)
class Convertible:
    """Result of ``list_convertible``: the numbers of the sheets that have an object, ascending."""

    sheets: tuple[int, ...]


@dataclass(frozen=True)
class ConvertSheet:
    """Argument of ``convert_sheet``.

    Args:
        ref: The upload.
        number: 1-based.
        layout: The layout that the sheet gets, ``exploded`` or ``packed``.
    """

    ref: str
    number: int
    layout: Layout


@dataclass(frozen=True)
class TellLayouts:
    """Argument of ``tell_layouts``."""

    ref: str


@dataclass(frozen=True)
class ConvertedSheet:
    """Result of ``convert_sheet``.

    Args:
        converted: Whether the sheet is ready and has the layout now, whichever attempt converted it, if any had to.
        reason: The name of the error for which a ready sheet was left as it is; None without an error.
        detail: The error's sentence.
    """

    converted: bool = False
    reason: str | None = None
    detail: str = ""


class LayoutActivities(ABC):
    """The activities that convert uploads to another layout, on the queue ``HOUSEKEEPING_QUEUE``."""

    @activity.defn
    @abstractmethod
    async def list_convertible(self, args: ListConvertible) -> Convertible:
        """Lists the sheets that may be converted.

        Raises:
            ApplicationError: ``UploadNotFound``; ``UploadBusy`` while the upload has a run, or a ``BucketError``, is retried.
        """

    @activity.defn
    @abstractmethod
    async def tell_layouts(self, args: TellLayouts) -> None:
        """Writes into ``manifest.json`` how the sheets lie in the bucket now, if it says otherwise.

        Raises:
            ApplicationError: As ``list_convertible``.
        """

    @activity.defn
    @abstractmethod
    async def convert_sheet(self, args: ConvertSheet) -> ConvertedSheet:
        """Writes a ready sheet in the other layout, proves it, and then removes the objects of the earlier layout.

        At each moment the sheet has the commit marker of the layout that its ``sheet.json`` names.

        Raises:
            ApplicationError: As ``list_convertible``.
        """


# ---------------------------------------------------------------------- webhooks


@dataclass(frozen=True)
class SendWebhook:
    """Argument of ``send_webhook``, and of the workflow ``DeliverWebhook``.

    Args:
        ref: The upload.
        receiver: ``ORGANIZATION`` or ``UPLOAD``.
        event: The type of the event.
        at: When it happened: RFC 3339, UTC.
        snapshot: The progress then, with the sheets that the event is about.
        id: The ``webhook-id``.
    """

    ref: str
    receiver: str
    event: str
    at: str
    snapshot: Snapshot
    id: str


@dataclass(frozen=True)
class SentWebhook:
    """Result of ``send_webhook``: the receiver's answer, an HTTP status from 200 to 299."""

    status: int


class WebhookActivities(ABC):
    """The activity on the queue ``WEBHOOK_QUEUE``."""

    @activity.defn
    @abstractmethod
    async def send_webhook(self, args: SendWebhook) -> SentWebhook:
        """Sends a webhook once to the address that the bucket has now.

        Raises:
            ApplicationError: ``WebhookForbidden``, ``WebhookGone`` or ``UploadNotFound`` when there is nobody to send it to;
                ``WebhookUnreachable``, ``WebhookRefused`` or a ``BucketError`` is retried.
        """
