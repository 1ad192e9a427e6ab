"""Arguments of ``ProcessUpload``, ``ConvertUpload`` and ``DeleteUpload`` and of their signals and updates. Results are in ``activities``.

These are frozen dataclasses. A new field gets a default, and no field is renamed: the worker must read the payloads of old histories.
"""

from dataclasses import dataclass, field

from activities.bucket.records import Layout, Snapshot, UploadOptions
from activities.bucket.report import Conversion
from activities.interface import Subscription
from workflows.processing.window import Requests

SEARCH_ATTRIBUTES = ("SiteLinkOrganization", "SiteLinkProject", "SiteLinkPlan", "SiteLinkStatus", "SiteLinkReason")
"""The search attributes of an upload's run, all of type Keyword. The namespace must know them before the first upload."""


@dataclass(frozen=True)
class Continued:
    """The state that a run hands to the next run when it continues as new. No sheet is in flight then.

    Args:
        snapshot: The progress so far; None stands for a run that must first read the bucket.
        options: The options of the upload.
        prioritized: Sheets to tile first, ascending.
        hosts: The queues of the hosts whose scratch was used.
        webhooks: Who wants webhooks.
        reopened: The version of the manifest that ``reopened.json`` names; 0 if this chain of runs has written none.
    """

    snapshot: Snapshot | None = None
    options: UploadOptions = field(default_factory=UploadOptions)
    prioritized: tuple[int, ...] = ()
    hosts: tuple[str, ...] = ()
    webhooks: tuple[Subscription, ...] = ()
    reopened: int = 0


@dataclass(frozen=True)
class UploadInput:
    """Argument of ``ProcessUpload``.

    Args:
        ref: org/project/plan/upload.
        reopened: A signal started the run, or the run follows a lost one, so it begins with the state of the bucket.
        continued: The state that the previous run hands over; only continue-as-new sets it.
        asked: The requests that came after the run that hands over was cancelled.
        sealed_password: The password of the document, as ``PasswordSeal`` seals it; empty without one. It is forgotten when the run ends.
        lost: Temporal knew no run of the upload when this run was started. If a lost run left a ``reopened.json``, this run does the
            requests in it.
    """

    ref: str
    reopened: bool = False
    continued: Continued | None = None
    asked: Requests = field(default_factory=Requests)
    sealed_password: str = ""
    lost: bool = False


@dataclass(frozen=True)
class SheetNumbers:
    """Argument of ``prioritize``, ``retry_sheets`` and ``sheets_stored``.

    Args:
        sheets: 1-based; for ``retry_sheets`` no number means every failed sheet.
        after_cancel_of: The id of the run, if somebody had asked it to cancel before this signal was sent; else empty. A worker that gets
            a signal and a cancellation at the same moment cannot see which came first.
        sealed_password: For ``retry_sheets``, see ``UploadInput``.
    """

    sheets: tuple[int, ...] = ()
    after_cancel_of: str = ""
    sealed_password: str = ""


@dataclass(frozen=True)
class Reconcile:
    """Argument of ``force_reconcile``, which may be left out.

    Args:
        deep: Read every tile and decode it. Where the bucket's ETags are not MD5s, as in a directory, only this proves the bytes.
        after_cancel_of: See ``SheetNumbers``.
        sealed_password: See ``UploadInput``.
    """

    deep: bool = False
    after_cancel_of: str = ""
    sealed_password: str = ""


@dataclass(frozen=True)
class ProgressAfter:
    """Argument of the update ``progress_after``: the version that the caller has."""

    version: int


@dataclass(frozen=True)
class Change(Snapshot):
    """Result of the update ``progress_after``.

    Args:
        committed: When the commit markers of the sheets that became ready were in the bucket, seconds since 1970; of the newest sheets,
            if they are many.
    """

    committed: tuple[float, ...] = ()


@dataclass(frozen=True)
class ConvertInput:
    """Argument of ``ConvertUpload``.

    Args:
        ref: org/project/plan/upload.
        layout: The layout that the sheets get, ``exploded`` or ``packed``.
        sheets: The sheets that are still to do; only continue-as-new sets it.
        done: How far the previous run came; only continue-as-new sets it.
    """

    ref: str
    layout: Layout
    sheets: tuple[int, ...] = ()
    done: Conversion | None = None


@dataclass(frozen=True)
class DeleteInput:
    """Argument of ``DeleteUpload``.

    Args:
        ref: org/project/plan/upload, marked deleted.
        look_again_s: Seconds from the first removal to the second; longer than any activity that writes may last.
    """

    ref: str
    look_again_s: float
