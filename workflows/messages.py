"""What crosses the wire to and from ``ProcessUpload`` and ``DeleteUpload``. The snapshot itself is ``activities.bucket.records.Snapshot``.

These are frozen dataclasses. A new field gets a default, and no field is renamed: the worker must read the payloads of old histories.
"""

from dataclasses import dataclass, field

from activities.bucket.records import Snapshot, UploadOptions
from workflows.processing.window import Asked

SEARCH_ATTRIBUTES = ("SiteLinkOrganization", "SiteLinkProject", "SiteLinkPlan", "SiteLinkStatus", "SiteLinkReason")
"""All are of type Keyword; the namespace must know them before the first upload."""


@dataclass(frozen=True)
class Continued:
    """All that a run hands to the next run when it continues as new. No sheet is in flight then.

    Args:
        snapshot: The progress so far; None when the run must first ask the bucket. Never None on the wire, because the release before
            cannot read that.
        options: The options of the upload.
        prioritized: Sheets to tile first, ascending.
        hosts: The queues of the hosts whose scratch was used.
        asked: Requests that came after the cancellation of the run that hands over. Only read, not yet written: the release before
            would pass over it.
    """

    snapshot: Snapshot | None = None
    options: UploadOptions = field(default_factory=UploadOptions)
    prioritized: tuple[int, ...] = ()
    hosts: tuple[str, ...] = ()
    asked: Asked = field(default_factory=Asked)


@dataclass(frozen=True)
class UploadInput:
    """Argument of ``ProcessUpload``.

    Args:
        ref: org/project/plan/upload.
        reopened: A signal started the run, which therefore begins with the state of the bucket.
        continued: What the run before handed over; only continue-as-new sets it.
        asked: Requests that came after the cancellation of the run that hands over.
    """

    ref: str
    reopened: bool = False
    continued: Continued | None = None
    asked: Asked = field(default_factory=Asked)


@dataclass(frozen=True)
class SheetNumbers:
    """Argument of ``prioritize``, ``retry_sheets`` and ``sheets_stored``.

    Args:
        sheets: 1-based; for ``retry_sheets`` no number means every failed sheet.
        after_cancel_of: The id of the run that had been asked to cancel before this signal was sent, if there is one. A worker that gets
            a signal and a cancellation at the same moment is not told which came first.
    """

    sheets: tuple[int, ...] = ()
    after_cancel_of: str = ""


@dataclass(frozen=True)
class Reconcile:
    """Argument of ``force_reconcile``, which may be left out.

    Args:
        deep: Read every tile and decode it. Where the bucket's ETags are not MD5s, as in a directory, only this proves the bytes.
        after_cancel_of: See ``SheetNumbers``.
    """

    deep: bool = False
    after_cancel_of: str = ""


@dataclass(frozen=True)
class ProgressAfter:
    """Argument of the update ``progress_after``: the version that the caller has."""

    version: int


@dataclass(frozen=True)
class DeleteInput:
    """Argument of ``DeleteUpload``.

    Args:
        ref: org/project/plan/upload, marked deleted.
        look_again_s: Seconds from the first removal to the second; longer than any activity that writes may last.
    """

    ref: str
    look_again_s: float
