"""The reports of verification and housekeeping: on a sheet, on an upload, and bounded lists of names. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from activities.bucket.records import SCHEMA, Layout, SheetStatus, UploadStatus

MOST_NAMES = 20
"""Most names in one list of a report. The count beside the list counts all names."""


@dataclass(frozen=True)
class NameList:
    """A bounded list of names.

    Args:
        count: How many names there are.
        first: The first names, at most ``MOST_NAMES``.
    """

    count: int = 0
    first: tuple[str, ...] = ()

    def with_names(self, names: Iterable[str]) -> "NameList":
        """The list with more names at its end."""
        added = list(names)
        return NameList(self.count + len(added), (*self.first, *added[:MOST_NAMES])[:MOST_NAMES])


NO_NAMES = NameList()


class Repair(StrEnum):
    """The repair that a sheet needs; reconcile carries it out."""

    TILE = "tile"
    """The sheet is not whole. Its commit marker is deleted and, unless the upload was stopped, its page is tiled again."""
    COUNT = "count"
    """The sheet is whole, but not ready in the progress. The progress is corrected."""
    PRUNE = "prune"
    """Only objects that no sheet owns, or of an unfinished sheet of a final upload, are removed."""


class Proof(StrEnum):
    """The proof that the verification of a sheet gives."""

    DIGEST = "digest"
    """The bytes of every tile."""
    NAMES = "names"
    """Only the names and sizes of the tiles."""


@dataclass(frozen=True)
class SheetReport:
    """The report on one sheet. A list has at most ``MOST_NAMES`` names; the count beside it counts all.

    Args:
        number: 1-based.
        status: What the progress says; without a progress, ready if the sheet's commit marker exists, else pending.
        expected: How many tiles the sheet should have; 0 when it is not ready, or its size is not known.
        found: How many tiles are in the bucket and not empty.
        missing: Names of missing tiles, ``{level}/{col}_{row}.jpeg``.
        missing_count: How many tiles are missing.
        foreign: Objects below the sheet's prefix that belong to no sheet, as paths below ``sheets/``.
        foreign_count: How many objects are foreign.
        empty: Names of tiles of 0 bytes.
        empty_count: How many tiles are empty.
        problems: Further faults, a sentence each.
        verified: Whether the sheet is ready and nothing is wrong with it.
        proof: What was proved; None unless verified.
        reason: The name of the error with which the sheet failed; None if the progress does not say that it failed.
        repair: What a reconcile would do with the sheet; None if nothing.
        layout: How the sheet lies in the bucket; None when its ``sheet.json`` does not tell.
    """

    number: int
    status: SheetStatus
    expected: int = 0
    found: int = 0
    missing: tuple[str, ...] = ()
    missing_count: int = 0
    foreign: tuple[str, ...] = ()
    foreign_count: int = 0
    empty: tuple[str, ...] = ()
    empty_count: int = 0
    problems: tuple[str, ...] = ()
    verified: bool = False
    proof: Proof | None = None
    reason: str | None = None
    repair: Repair | None = None
    layout: Layout | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all objects of the sheet are there and unbroken. Foreign objects do not count."""
        return not (self.missing_count or self.empty_count or self.problems)

    @property
    def is_wrong(self) -> bool:
        """Whether something is wrong in the bucket. A sheet that failed, or is not finished yet, is not wrong just for that."""
        return bool(self.foreign_count) or not self.is_whole


@dataclass(frozen=True)
class UploadReport:
    """The report on an upload as a whole.

    Args:
        ref: The upload.
        status: What the progress says; None without a progress.
        verified: Whether nothing is wrong with any sheet, nor with the upload as a whole.
        deep: Whether every tile was read back and decoded.
        total_sheets: How many sheets the progress has; without a progress, how many were begun.
        verified_sheets: How many sheets are verified.
        wrong_sheets: How many sheets have something wrong.
        expected: How many tiles all ready sheets should have.
        found: How many tiles of all sheets are in the bucket and not empty.
        missing_count: How many tiles of all sheets are missing.
        foreign: Objects below ``sheets/`` but below no sheet's prefix, at most ``MOST_NAMES``, as paths below ``sheets/``.
        foreign_count: How many objects are foreign, including those below the sheets' prefixes.
        empty_count: How many tiles of all sheets are empty.
        problems: What is wrong with the upload as a whole, a sentence each.
        proof: The weakest proof of a verified sheet; None if no sheet is verified.
    """

    ref: str
    status: UploadStatus | None
    verified: bool = False
    deep: bool = False
    total_sheets: int = 0
    verified_sheets: int = 0
    wrong_sheets: int = 0
    expected: int = 0
    found: int = 0
    missing_count: int = 0
    foreign: tuple[str, ...] = ()
    foreign_count: int = 0
    empty_count: int = 0
    problems: tuple[str, ...] = ()
    proof: Proof | None = None
    schema: int = SCHEMA


class ConversionStatus(StrEnum):
    """How a conversion stands."""

    RUNNING = "running"
    COMPLETE = "complete"
    """Every ready sheet has the layout."""
    PARTIAL = "partial"
    """Some sheets were left as they are."""
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class RefusedSheet:
    """A sheet that was left as it is.

    Args:
        number: 1-based.
        reason: The name of the error.
        detail: The error's sentence.
    """

    number: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Conversion:
    """How far the conversion of an upload to another layout is.

    Args:
        layout: The layout that the sheets get.
        status: How it stands.
        total_sheets: How many sheets the upload has in the bucket; 0 until they are listed.
        done_sheets: How many of them were looked at.
        converted_sheets: How many of them are ready and have the layout.
        refused: The first sheets that were left as they are, at most 20.
        refused_count: How many sheets were left as they are.
    """

    layout: Layout
    status: ConversionStatus = ConversionStatus.RUNNING
    total_sheets: int = 0
    done_sheets: int = 0
    converted_sheets: int = 0
    refused: tuple[RefusedSheet, ...] = ()
    refused_count: int = 0
    schema: int = SCHEMA
