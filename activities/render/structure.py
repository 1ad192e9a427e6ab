"""What PDFium does not tell of a document, read by pikepdf: each page's UserUnit, and whether it is a portfolio. In render children only.

1. PDFium has opened the document already. Whatever pikepdf refuses, a damaged file or a password that only attachments need, is no error.
2. pikepdf first reads a file as its cross-reference table says. Where it does not find the pages that PDFium found, it reads the file again
   and looks for the objects themselves, which takes 1.8 s of CPU for a damaged file of 263 MB.
3. Where both fail, the file's bytes may still show that no page has a UserUnit. Else the UserUnit is unknown; it is never taken for 1
   without a word.
"""

import mmap
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pikepdf

USER_UNIT_LIMIT = 1_000_000.0
"""No reader knows a larger one; it only keeps the arithmetic finite."""

SAME_SIZE = 0.01
"""How far two readers may differ in a page's size, relative to it: PDFium calculates in single precision."""

PAGE_TREE_DEPTH = 100
"""Nodes above a page that are looked at: qpdf reads no deeper tree either."""

T = TypeVar("T")

_COLLECTION = re.compile(rb"/Collection[\s<\d]")


@dataclass(frozen=True)
class Structure:
    """What the file says beside what PDFium tells.

    Args:
        user_units: Of each page, by index; None where it cannot be known.
        is_collection: Whether the document is a portfolio (PDF 1.7 reference, section 8.2.4): its content is the files inside.
        entries: How many pages have a UserUnit of their own.
    """

    user_units: Sequence[float | None]
    is_collection: bool
    entries: int


def read_structure(source: Path, sizes: Sequence[tuple[float, float]]) -> Structure:
    """Reads a document that PDFium has opened.

    Args:
        source: The file.
        sizes: Width and height of each page as PDFium has them, in units of the page.

    Raises:
        OSError: The file cannot be read.
        MemoryError: There is not enough memory.
    """
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found: Structure | None = None
        for recover in (False, True):
            found = _asked(source, lambda pdf: _structure(pdf, sizes), recover=recover) or found
            # An entry that refers to a lost object looks like none: then the file names it more often than its pages do.
            if found and None not in found.user_units and (recover or not _is_named_more_than(found.entries, data)):
                return found
        if found is None:
            found = Structure([None] * len(sizes), is_collection=_COLLECTION.search(data) is not None, entries=0)
        # Objects may be compressed, in streams of the type ObjStm: there a name cannot be searched for.
        if not _is_named_more_than(0, data) and data.find(b"/ObjStm") < 0:
            return replace(found, user_units=[unit or 1.0 for unit in found.user_units])
    return found


def has_no_pages(source: Path) -> bool:
    """Whether the document is sound and empty: PDFium opens some broken files as if they were."""
    return bool(_asked(source, lambda pdf: len(pdf.pages) == 0, recover=False))


def _asked(source: Path, question: Callable[[pikepdf.Pdf], T], *, recover: bool) -> T | None:
    """The answer; None when pikepdf cannot read the document."""
    try:
        with pikepdf.open(source, suppress_warnings=True, attempt_recovery=recover, access_mode=pikepdf.AccessMode.stream) as pdf:
            return question(pdf)
    except (MemoryError, OSError):
        raise
    except Exception:  # noqa: BLE001 (its refusals have no common base, and PDFium has the last word on the document)
        return None


def _structure(pdf: pikepdf.Pdf, sizes: Sequence[tuple[float, float]]) -> Structure:
    units: list[float | None] = [None] * len(sizes)
    if len(pdf.pages) == len(sizes):
        units = [_user_unit(page) if _is_of_size(page, *size) else None for page, size in zip(pdf.pages, sizes, strict=True)]
    entries = sum("/UserUnit" in page.obj for page in pdf.pages)
    return Structure(units, is_collection="/Collection" in pdf.Root, entries=entries)


def _user_unit(page: pikepdf.Page) -> float | None:
    """A number that is not positive, or not finite, counts as 1; None where the entry is no number."""
    try:
        value = float(page.obj.get("/UserUnit", 1))
    except (TypeError, ValueError, ArithmeticError, pikepdf.PdfError):
        return None
    return value if 0 < value <= USER_UNIT_LIMIT else 1.0


def _is_of_size(page: pikepdf.Page, width: float, height: float) -> bool:
    """Whether this can be the page that PDFium found: as wide and as high, or turned."""
    if not (width > 0 and height > 0):
        return True  # no size to compare, and PDFium cannot draw it
    left, bottom, right, top = media = _box(page, "/MediaBox") or (0.0, 0.0, 612.0, 792.0)
    # The same defaults as PDFium's: core/fpdfapi/page/cpdf_page.cpp.
    crop = _box(page, "/CropBox") or media
    left, bottom, right, top = max(left, crop[0]), max(bottom, crop[1]), min(right, crop[2]), min(top, crop[3])
    return all(
        abs(mine - theirs) <= SAME_SIZE * theirs
        for mine, theirs in zip(sorted((right - left, top - bottom)), sorted((width, height)), strict=True)
    )


def _is_named_more_than(times: int, data: mmap.mmap) -> bool:
    """Whether the file's bytes name UserUnit more often than that."""
    at = -1
    for _ in range(times + 1):
        at = data.find(b"/UserUnit", at + 1)
        if at < 0:
            return False
    return True


def _box(page: pikepdf.Page, name: str) -> tuple[float, float, float, float] | None:
    """A box of the page or of a node above it: left, bottom, right, top; None if it has none, or one without area."""
    node: pikepdf.Object = page.obj
    seen = 0
    while name not in node and "/Parent" in node and seen < PAGE_TREE_DEPTH:
        node, seen = node["/Parent"], seen + 1
    try:
        x0, y0, x1, y1 = (float(value) for value in node[name])
    except (KeyError, TypeError, ValueError, ArithmeticError, pikepdf.PdfError):
        return None
    left, bottom, right, top = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
    return (left, bottom, right, top) if left < right and bottom < top else None
