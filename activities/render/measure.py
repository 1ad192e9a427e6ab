"""The pages of a PDF: their sizes, titles and first notes. Loaded in render children only.

PDFium reports sizes without UserUnit, so ``structure`` reads the file a second time. A page whose UserUnit cannot be read gets a note.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import pypdfium2.raw as pdfium

from activities.bucket.dzi import MINIMUM_DPI, sheet_size
from activities.bucket.records import Note, UploadOptions, scaled_note
from activities.errors import PageTooLarge, PageUnreadable, PdfPortfolio, TooManyPages
from activities.interface import Document, Page
from activities.render.pdf_file import PdfFile
from activities.render.strings import read_text
from activities.render.structure import read_structure
from activities.render.titles import clean_title, page_titles

USER_UNIT_UNCERTAIN = (
    "The size of this sheet is uncertain: the file is damaged, and its unit of length (UserUnit) could not be read. "
    "One unit was taken for 1/72 inch."
)

MOST_ATTACHMENTS = 1_000
"""Attachments that are counted. PDFium starts at the first one for each, so the time grows with the square of their number."""

MOST_NAMES = 10
"""Attachments that a message names."""


def measure(pdf: PdfFile, options: UploadOptions, max_pages: int) -> Document:
    """Size and title of every page.

    Args:
        pdf: Open.
        options: ``dpi`` and ``budget_bytes`` decide the sizes.
        max_pages: The published limit.

    Raises:
        TooManyPages: The document has more; no page was looked at.
        PdfPortfolio: The drawings are other PDFs inside this one.
    """
    if pdf.page_count > max_pages:
        msg = f"{pdf.page_count:,} pages, limit {max_pages:,}"
        raise TooManyPages(msg)
    sizes = [_page_size(pdf, index) for index in range(pdf.page_count)]
    structure = read_structure(pdf.source, sizes, pdf.password)
    notes = _portfolio_notes(pdf) if structure.is_collection else ()
    titles = page_titles(pdf.document, pdf.page_count)
    pages = [
        _page(index + 1, title, size, user_unit, options)
        for index, (title, size, user_unit) in enumerate(zip(titles, sizes, structure.user_units, strict=True))
    ]
    pages[0] = replace(pages[0], notes=(*notes, *pdf.layers.notes, *pages[0].notes))
    return Document(pages=tuple(pages))


def _page_size(pdf: PdfFile, index: int) -> tuple[float, float]:
    """Width and height of a page in its own units; NaN when it cannot be loaded."""
    size = pdfium.FS_SIZEF()
    if not pdfium.FPDF_GetPageSizeByIndexF(pdf.document, index, size):
        return (math.nan, math.nan)
    return (size.width, size.height)


def _page(number: int, title: str | None, size: tuple[float, float], user_unit: float | None, options: UploadOptions) -> Page:
    width, height = size
    if math.isnan(width) or math.isnan(height):
        return Page(number, title, reason=PageUnreadable.__name__, detail=f"page {number:,} cannot be loaded")
    if not (0 < width < math.inf and 0 < height < math.inf):
        detail = f"page {number:,} has no area: {width:,g} x {height:,g} pt"
        return Page(number, title, reason=PageUnreadable.__name__, detail=detail)
    notes: tuple[Note, ...] = () if user_unit else (Note("UserUnitUncertain", USER_UNIT_UNCERTAIN),)
    user_unit = user_unit or 1.0
    sheet = sheet_size(width, height, user_unit, options.dpi, options.budget_bytes)
    if sheet is None:
        inches = f"{width * user_unit / 72:,.1f} x {height * user_unit / 72:,.1f} in"
        detail = f"page {number:,} is {inches}: over {options.budget_bytes:,} bytes of pixels even at {min(MINIMUM_DPI, options.dpi)} dpi"
        return Page(number, title, reason=PageTooLarge.__name__, detail=detail, notes=notes)
    if sheet.scaled:
        reason = f"at {options.dpi} its pixels would take more than {options.budget_bytes:,} bytes"
        notes = (scaled_note(sheet.dpi, options.dpi, reason), *notes)
    return Page(number, title, sheet.width, sheet.height, sheet.dpi, sheet.scaled, notes=notes)


def _portfolio_notes(pdf: PdfFile) -> tuple[Note, ...]:
    """The notes on a portfolio whose own pages are its drawings.

    Raises:
        PdfPortfolio: Its drawings are other PDFs inside it.
    """
    names, least = _attachment_names(pdf)
    drawings = [name for name in names if name.lower().endswith(".pdf")]
    if drawings:
        count = "1 PDF" if len(drawings) == 1 else f"{len(drawings):,} PDFs"
        msg = f"the file is a portfolio with {least}{count} inside: {_listed(drawings, least)}; upload each of them by itself"
        raise PdfPortfolio(msg)
    if not names:
        return ()
    return (Note("AttachmentsNotDrawn", f"The file is a portfolio. The files inside it are not drawn: {_listed(names, least)}."),)


def _attachment_names(pdf: PdfFile) -> tuple[list[str], str]:
    """The names of the files inside the document, fit to show; and "at least " where there are more."""
    names = []
    count = pdfium.FPDFDoc_GetAttachmentCount(pdf.document)
    for index in range(min(count, MOST_ATTACHMENTS)):
        attachment = pdfium.FPDFDoc_GetAttachment(pdf.document, index)
        names.append(clean_title(read_text(pdfium.FPDFAttachment_GetName, attachment)) or "without a name")
    return names, "at least " if count > MOST_ATTACHMENTS else ""


def _listed(names: Sequence[str], least: str) -> str:
    """The first names, and how many more there are; ``least`` stands before this number."""
    shown = ", ".join(names[:MOST_NAMES])
    return f"{shown} and {least}{len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else shown
