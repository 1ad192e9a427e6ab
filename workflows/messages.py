"""What crosses the wire to and from ``ProcessUpload`` and ``DeleteUpload``. The snapshot itself is ``activities.bucket.records.Snapshot``.

Frozen dataclasses; a new field gets a default and none is renamed, for old histories are replayed.
"""

from dataclasses import dataclass

from activities.bucket.records import Snapshot, UploadOptions

SEARCH_ATTRIBUTES = ("SiteLinkOrganization", "SiteLinkProject", "SiteLinkPlan", "SiteLinkStatus", "SiteLinkReason")
"""All of type Keyword; the namespace must know them before the first upload."""


@dataclass(frozen=True)
class Continued:
    """What a run hands to the next when it continues as new: nothing is in flight.

    Args:
        snapshot: The progress so far.
        options: As the upload was accepted.
        prioritized: Sheets to tile first, ascending.
        hosts: Queues of the hosts whose scratch was used.
    """

    snapshot: Snapshot
    options: UploadOptions
    prioritized: tuple[int, ...] = ()
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class SheetNumbers:
    """Argument of ``prioritize``, ``retry_sheets`` and ``sheets_stored``.

    Args:
        sheets: 1-based; none means every failed sheet for ``retry_sheets``.
        after_cancel_of: The run that somebody had asked to cancel before this was sent, if any: a worker that hears of both at once
            is not told which came first.
    """

    sheets: tuple[int, ...] = ()
    after_cancel_of: str = ""


@dataclass(frozen=True)
class Asked:
    """What signals have asked for and is not done yet; false if it is nothing.

    Args:
        reconcile: To compare every sheet with the bucket.
        deep: Reading every tile.
        stored: Sheets whose ``.dzi`` the bucket told of, ascending.
        retries: What to try again, in the order in which it was asked for.
    """

    reconcile: bool = False
    deep: bool = False
    stored: tuple[int, ...] = ()
    retries: tuple[SheetNumbers, ...] = ()

    def __bool__(self) -> bool:
        return self != Asked()

    def __add__(self, other: "Asked") -> "Asked":
        return Asked(
            self.reconcile or other.reconcile,
            self.deep or other.deep,
            tuple(sorted({*self.stored, *other.stored})),
            self.retries + other.retries,
        )


@dataclass(frozen=True)
class UploadInput:
    """Argument of ``ProcessUpload``.

    Args:
        ref: org/project/plan/upload.
        reopened: The run was started by a signal: it begins with what the bucket holds.
        continued: Set by continue-as-new only.
        asked: What the run before was asked for after its cancellation; set by continue-as-new only.
    """

    ref: str
    reopened: bool = False
    continued: Continued | None = None
    asked: Asked = Asked()


@dataclass(frozen=True)
class DeleteInput:
    """Argument of ``DeleteUpload``.

    Args:
        ref: org/project/plan/upload, marked deleted.
        look_again_s: How long after the first look the second is taken: longer than any activity that writes may last.
    """

    ref: str
    look_again_s: float


@dataclass(frozen=True)
class ProgressAfter:
    """Argument of the update ``progress_after``: the version that the caller has."""

    version: int


@dataclass(frozen=True)
class Reconcile:
    """Argument of ``force_reconcile``, which may be left out.

    Args:
        deep: Read every tile back and decode it: the only proof of bytes where the bucket's ETags are no MD5s, as in a directory.
        after_cancel_of: See ``SheetNumbers``.
    """

    deep: bool = False
    after_cancel_of: str = ""
