"""Reads by pikepdf what PDFium does not tell of a document: each page's UserUnit, and whether it is a portfolio. In render children only.

1. PDFium has opened the document already. So a file that pikepdf refuses, because it is damaged or its attachments need a password,
   is no error.
2. pikepdf first reads a file by its cross-reference table. Where it does not find the pages that PDFium found, it reads the file again
   and searches for the objects themselves, which takes 1.8 s of CPU for a damaged file of 263 MB.
3. Where both ways fail, the file's bytes may still show that no page has a UserUnit. Else the UserUnit is unknown, and the caller must
   say so: it is never taken for 1 silently.
"""

import mmap
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pikepdf

from activities.render.passwords import open_with_pikepdf

USER_UNIT_LIMIT = 1_000_000.0
"""Keeps the arithmetic finite; no reader supports a larger UserUnit."""

SIZE_TOLERANCE = 0.01
"""How far the sizes of a page in two readers may differ, as a share of the size: PDFium calculates in single precision."""

PAGE_TREE_DEPTH = 100
"""Nodes above a page that are looked at: qpdf reads no deeper tree."""

T = TypeVar("T")

_COLLECTION = re.compile(rb"/Collection[\s<\d]")


@dataclass(frozen=True)
class Structure:
    """The facts of a document that PDFium does not tell.

    Args:
        user_units: The UserUnit of each page, by index; None where it is unknown.
        is_collection: Whether the document is a portfolio, whose content is the files inside it: ISO 32000-1, section 12.3.5,
            https://opensource.adobe.com/dc-acrobat-sdk-docs/standards/pdfstandards/pdf/PDF32000_2008.pdf
        user_unit_entries: How many pages have an entry ``/UserUnit``.
    """

    user_units: Sequence[float | None]
    is_collection: bool
    user_unit_entries: int


def read_structure(source: Path, sizes: Sequence[tuple[float, float]], password: str = "") -> Structure:
    """Reads a document that PDFium has opened.

    Args:
        source: The file.
        sizes: Width and height of each page as PDFium reports them, in units of the page.
        password: Opens the document.

    Raises:
        OSError: The file cannot be read.
        MemoryError: There is not enough memory.
    """
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as data:
        found: Structure | None = None
        for recover in (False, True):
            found = _read(source, password, lambda pdf: _structure(pdf, sizes), recover=recover) or found
            # An entry that refers to a lost object looks like no entry. Then the file names UserUnit more often than its pages have it.
            if found and None not in found.user_units and (recover or not _names_user_unit_more_than(found.user_unit_entries, data)):
                return found
        if found is None:
            found = Structure([None] * len(sizes), is_collection=_COLLECTION.search(data) is not None, user_unit_entries=0)
        # Objects may be compressed, in streams of the type ObjStm: a name in them cannot be found.
        if not _names_user_unit_more_than(0, data) and data.find(b"/ObjStm") < 0:
            return replace(found, user_units=[unit or 1.0 for unit in found.user_units])
    return found


def has_no_pages(source: Path, password: str = "") -> bool:
    """Whether the document is sound and has no page: PDFium opens some broken files as if they had none."""
    return bool(_read(source, password, lambda pdf: len(pdf.pages) == 0, recover=False))


def _read(source: Path, password: str, read: Callable[[pikepdf.Pdf], T], *, recover: bool) -> T | None:
    """What ``read`` returns for the open document; None when pikepdf cannot read it.

    Args:
        source: The file.
        password: Opens the document.
        read: Reads the document.
        recover: Whether to search for the objects themselves where the cross-reference table is damaged.
    """
    try:
        options = {"suppress_warnings": True, "attempt_recovery": recover, "access_mode": pikepdf.AccessMode.stream}
        with open_with_pikepdf(source, password, **options) as pdf:
            return read(pdf)
    except (MemoryError, OSError):
        raise
    except Exception:  # noqa: BLE001 (pikepdf's errors have no common base, and a file that PDFium has opened is no error)
        return None


def _structure(pdf: pikepdf.Pdf, sizes: Sequence[tuple[float, float]]) -> Structure:
    units: list[float | None] = [None] * len(sizes)
    if len(pdf.pages) == len(sizes):
        units = [_user_unit(page) if _is_of_size(page, *size) else None for page, size in zip(pdf.pages, sizes, strict=True)]
    entries = sum("/UserUnit" in page.obj for page in pdf.pages)
    return Structure(units, is_collection="/Collection" in pdf.Root, user_unit_entries=entries)


def _user_unit(page: pikepdf.Page) -> float | None:
    """The UserUnit of a page; 1 for a number that is not positive or not finite; None where the entry is no number."""
    try:
        value = float(page.obj.get("/UserUnit", 1))
    except (TypeError, ValueError, ArithmeticError, pikepdf.PdfError):
        return None
    return value if 0 < value <= USER_UNIT_LIMIT else 1.0


def _is_of_size(page: pikepdf.Page, width: float, height: float) -> bool:
    """Whether this can be the page that PDFium found: it has the same width and height, or is turned."""
    if not (width > 0 and height > 0):
        return True  # PDFium cannot draw the page and has no size to compare.
    left, bottom, right, top = media = _box(page, "/MediaBox") or (0.0, 0.0, 612.0, 792.0)
    # PDFium's defaults: https://pdfium.googlesource.com/pdfium/+/refs/heads/chromium/8149/core/fpdfapi/page/cpdf_page.cpp
    crop = _box(page, "/CropBox") or media
    left, bottom, right, top = max(left, crop[0]), max(bottom, crop[1]), min(right, crop[2]), min(top, crop[3])
    return all(
        abs(by_pikepdf - by_pdfium) <= SIZE_TOLERANCE * by_pdfium
        for by_pikepdf, by_pdfium in zip(sorted((right - left, top - bottom)), sorted((width, height)), strict=True)
    )


def _names_user_unit_more_than(times: int, data: mmap.mmap) -> bool:
    """Whether the file's bytes name UserUnit more than so many times."""
    at = -1
    for _ in range(times + 1):
        at = data.find(b"/UserUnit", at + 1)
        if at < 0:
            return False
    return True


def _box(page: pikepdf.Page, name: str) -> tuple[float, float, float, float] | None:
    """A box of the page, which a node above it may define: left, bottom, right, top. None if there is none, or it has no area."""
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
