"""The public shape of an answer: the report of a sheet and of an upload, and the bounded list of names. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from activities.bucket.records import SCHEMA, SheetStatus, UploadStatus

MOST_NAMES = 20
"""Most names in one list of a report; its count is of all."""


@dataclass(frozen=True)
class NameList:
    """A bounded list of names.

    Args:
        count: How many names there are.
        first: The first of them, at most ``MOST_NAMES``.
    """

    count: int = 0
    first: tuple[str, ...] = ()

    def with_names(self, names: Iterable[str]) -> "NameList":
        """The list with more names at its end."""
        added = list(names)
        return NameList(self.count + len(added), (*self.first, *added[:MOST_NAMES])[:MOST_NAMES])


NO_NAMES = NameList()


class Repair(StrEnum):
    """What a reconcile would do about a sheet."""

    TILE = "tile"
    """An object of the sheet is broken or missing: its ``.dzi`` is deleted, and, unless the upload was stopped, its page is tiled again."""
    COUNT = "count"
    """The sheet is whole, but the progress does not have it ready: the progress is corrected."""
    PRUNE = "prune"
    """Objects that no sheet owns are removed; nothing else is done."""


class Proof(StrEnum):
    """What was proved of a sheet."""

    DIGEST = "digest"
    """The bytes of every tile."""
    NAMES = "names"
    """Names and sizes only."""


@dataclass(frozen=True)
class SheetReport:
    """What was found of one sheet. A list has at most ``MOST_NAMES`` names; its count is of all.

    Args:
        number: 1-based.
        status: What the progress says; without a progress, ready if the sheet's ``.dzi`` exists, else pending.
        expected: Tiles that the sheet should have; 0 when it is not ready, or its size is not known.
        found: Tiles that are there and not empty.
        missing: Names of tiles that are not there, ``{level}/{col}_{row}.jpeg``.
        missing_count: How many tiles are missing.
        foreign: Objects below the sheet's prefix that no sheet has, as paths below ``sheets/``.
        foreign_count: How many objects are foreign.
        empty: Names of tiles of 0 bytes.
        empty_count: How many tiles are empty.
        problems: What else is wrong, a sentence each.
        verified: Whether the sheet is ready and nothing is wrong with it.
        proof: What the verdict rests on; None unless verified.
        reason: The name of the error with which the sheet failed, when the progress says that it did.
        repair: What a reconcile would do about the sheet; None if nothing.
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

    @property
    def is_whole(self) -> bool:
        """Whether the sheet has every object that it should, unbroken; foreign objects do not count."""
        return not (self.missing_count or self.empty_count or self.problems)

    @property
    def is_wrong(self) -> bool:
        """Whether something is wrong with the sheet. A sheet that failed by name, or is not done yet, is not wrong for that."""
        return bool(self.foreign_count) or not self.is_whole


@dataclass(frozen=True)
class UploadReport:
    """What was found of an upload as a whole.

    Args:
        ref: The upload.
        status: What its progress says; None without a progress.
        verified: Whether nothing is wrong with any sheet, nor with the upload as a whole.
        deep: Whether every tile was read back and decoded.
        total_sheets: How many sheets the progress has; without a progress, how many were begun.
        verified_sheets: How many sheets are verified.
        wrong_sheets: With how many sheets something is wrong.
        expected: Tiles that all ready sheets should have.
        found: Tiles of all sheets that are there and not empty.
        missing_count: How many tiles are missing, of all sheets.
        foreign: Objects below ``sheets/`` but below no sheet's prefix, at most ``MOST_NAMES``, as paths below ``sheets/``.
        foreign_count: How many objects are foreign, with those below the sheets' prefixes.
        empty_count: How many tiles are empty, of all sheets.
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
