"""What crosses the wire to and from ``ProcessUpload`` and ``DeleteUpload``. The snapshot itself is ``activities.records.Snapshot``.

Frozen dataclasses; a new field gets a default and none is renamed, for old histories are replayed.
"""

from dataclasses import dataclass

from activities.records import Snapshot, UploadOptions

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
class UploadInput:
    """Argument of ``ProcessUpload``.

    Args:
        ref: org/project/plan/upload.
        reopened: The run was started by a signal: it begins with what the bucket holds.
        continued: Set by continue-as-new only.
    """

    ref: str
    reopened: bool = False
    continued: Continued | None = None


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
    """

    deep: bool = False


@dataclass(frozen=True)
class SheetNumbers:
    """Argument of ``prioritize``, ``retry_sheets`` and ``sheets_stored``: 1-based; none means every failed sheet for ``retry_sheets``."""

    sheets: tuple[int, ...] = ()
