"""A PDF page to pixels, drawn by PDFium. Loaded in render children only.

1. PDFium is called below its Python helpers: ``page.render`` rounds sizes up by itself and copies, and the outline helper raises on a loop.
2. PDFium reports sizes without UserUnit, so ``structure`` reads the file a second time; what it cannot know, a note of the sheet says.
3. PDFium also resolves the page of a remote go-to action, which is a page of some other file: only GoTo actions name pages of this one.
"""

import ctypes
import math
import mmap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pypdfium2
import pypdfium2.raw as pdfium

from activities.bucket.dzi import BYTES_PER_PIXEL, MINIMUM_DPI, sheet_size
from activities.bucket.records import Note, UploadOptions, scaled_note
from activities.errors import NoPages, NotAPdf, PageTooLarge, PageUnreadable, PasswordRequired, PdfPortfolio, TooManyPages, UnreadablePdf
from activities.interface import Document, Page
from activities.render import fonts
from activities.render.annotations import Annotations, PageAnnotations
from activities.render.structure import has_no_pages, read_structure

REVISION = "2"
"""Grows when a change of our own calls changes the bytes of tiles."""

PDFIUM_VERSION = str(pypdfium2.PDFIUM_INFO.tag)

FONT_VERSIONS = fonts.VERSIONS

HEADER_BYTES = 1024
"""Readers accept the ``%PDF-`` header anywhere in the first 1,024 bytes: PDF 1.7 reference, appendix H, note 13."""

TITLE_CHARACTERS = 120
OUTLINE_ITEMS = 20_000
"""Outline items looked at, at most; ten for each page of the largest document."""

UNCERTAIN = (
    "The size of this sheet is uncertain: the file is damaged, and its unit of length (UserUnit) could not be read. "
    "One unit was taken for 1/72 inch."
)

ATTACHMENTS_LOOKED_AT = 1_000
"""PDFium begins at the first for each."""

ATTACHMENTS_NAMED = 10
"""Files inside a portfolio that a message names, at most."""


class PixelBuffer:
    """Private anonymous memory that every page of a child is drawn into: fresh pages cost more than drawing an easy sheet.

    Private, so that it counts against the child's memory limit.
    """

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def at_least(self, size_bytes: int) -> mmap.mmap:
        """The memory, at least ``size_bytes`` long; grown by being replaced."""
        if self._memory is None or len(self._memory) < size_bytes:
            self._memory = None
            memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            # A third of the page faults' time, and the kernel may ignore it.
            memory.madvise(mmap.MADV_HUGEPAGE)
            self._memory = memory
        return self._memory


@dataclass(frozen=True)
class Drawn:
    """A page that was drawn.

    Args:
        pixels: Rows of RGB, 8 bits a channel, without padding; part of the buffer that was given.
        notes: Why it may differ from what its author drew.
    """

    pixels: memoryview
    notes: tuple[Note, ...] = ()


class PdfFile:
    """An open PDF.

    Args:
        source: The file.

    Raises:
        NotAPdf: No ``%PDF-`` in its first 1,024 bytes.
        PasswordRequired: It opens only with a password.
        NoPages: It has no page.
        UnreadablePdf: PDFium cannot open it for another reason.
    """

    def __init__(self, source: Path) -> None:
        with source.open("rb") as file:
            if b"%PDF-" not in file.read(HEADER_BYTES):
                msg = f"no %PDF- header in the first {HEADER_BYTES:,} bytes"
                raise NotAPdf(msg)
        fonts.install()
        self._source = source
        self._document = pdfium.FPDF_LoadDocument(str(source).encode(), None)
        if not self._document:
            code = pdfium.FPDF_GetLastError()
            if code == pdfium.FPDF_ERR_PASSWORD:
                msg = "the PDF opens only with a password; upload a copy without one"
                raise PasswordRequired(msg)
            reason = {
                pdfium.FPDF_ERR_FILE: "the file cannot be read",
                pdfium.FPDF_ERR_FORMAT: "its structure is damaged or cut off",
                pdfium.FPDF_ERR_SECURITY: "it is protected in a way that cannot be opened",
            }.get(code, f"PDFium error {code}")
            msg = f"the PDF cannot be opened: {reason}"
            raise UnreadablePdf(msg)
        self._annotations = Annotations(self._document, source)
        self.page_count = int(pdfium.FPDF_GetPageCount(self._document))
        if self.page_count < 1:
            self.close()
            if has_no_pages(source):
                msg = "the PDF has no page"
                raise NoPages(msg)
            msg = "the PDF cannot be opened: its pages cannot be found"
            raise UnreadablePdf(msg)

    def close(self) -> None:
        """Gives the document back to PDFium."""
        self._annotations.close()
        pdfium.FPDF_CloseDocument(self._document)

    def measure(self, options: UploadOptions, max_pages: int) -> Document:
        """Size and title of every page.

        Args:
            options: ``dpi`` and ``budget_bytes`` decide the sizes.
            max_pages: The published limit.

        Raises:
            TooManyPages: There are more; none was looked at.
            PdfPortfolio: The drawings are other PDFs inside this one.
        """
        if self.page_count > max_pages:
            msg = f"{self.page_count:,} pages, limit {max_pages:,}"
            raise TooManyPages(msg)
        sizes = [self._size(index) for index in range(self.page_count)]
        structure = read_structure(self._source, sizes)
        notes = self._portfolio_notes() if structure.is_collection else ()
        titles = self._bookmarks()
        pages = [
            self._page(index, titles.get(index) or self._label(index), size, user_unit, options)
            for index, (size, user_unit) in enumerate(zip(sizes, structure.user_units, strict=True))
        ]
        pages[0] = replace(pages[0], notes=(*notes, *pages[0].notes))
        return Document(pages=tuple(pages))

    def _portfolio_notes(self) -> tuple[Note, ...]:
        """What to say of a portfolio that can be taken as the pages that it has.

        Raises:
            PdfPortfolio: Its drawings are other PDFs inside it.
        """
        names, least = self._attachments()
        drawings = [name for name in names if name.lower().endswith(".pdf")]
        if drawings:
            count = "1 PDF" if len(drawings) == 1 else f"{len(drawings):,} PDFs"
            msg = f"the file is a portfolio with {least}{count} inside: {_listed(drawings, least)}; upload each of them by itself"
            raise PdfPortfolio(msg)
        if not names:
            return ()
        return (Note("AttachmentsNotDrawn", f"The file is a portfolio. The files inside it are not drawn: {_listed(names, least)}."),)

    def draw(self, number: int, width: int, height: int, buffer: PixelBuffer) -> Drawn:
        """Draws a page with its annotations and form fields on white, exactly ``width`` x ``height`` px.

        Args:
            number: 1-based.
            width: Pixels.
            height: Pixels.
            buffer: Memory to draw into; the pixels of the result are part of it.

        Raises:
            PageUnreadable: The page cannot be loaded or drawn.
            PageTooLarge: PDFium has no bitmap of this size.
        """
        page = pdfium.FPDF_LoadPage(self._document, number - 1)
        if not page:
            msg = f"page {number:,} cannot be loaded"
            raise PageUnreadable(msg)
        try:
            with self._annotations.ready(page, number - 1) as annotations:
                # Not before: PDFium has made the text of fields, which stays in the document.
                used, unseen = fonts.used_by(page, annotations.form, self._source, number - 1)
                preferred = fonts.choose(used)
                if not preferred:
                    pixels = _paint(page, annotations, number, width, height, buffer)
                    return Drawn(pixels, (*fonts.notes(used), *unseen, *annotations.notes))
        finally:
            pdfium.FPDF_ClosePage(page)
        return self._draw_with(preferred, number, width, height, buffer)

    def _draw_with(self, preferred: dict[str, fonts.Face], number: int, width: int, height: int, buffer: PixelBuffer) -> Drawn:
        """Draws with fonts chosen for this page. In a document of its own, for PDFium keeps a document's fonts until it is closed."""
        with fonts.prefer(preferred):
            document = PdfFile(self._source)
            try:
                return document.draw(number, width, height, buffer)
            finally:
                document.close()

    def _page(self, index: int, title: str | None, size: tuple[float, float], user_unit: float | None, options: UploadOptions) -> Page:
        number = index + 1
        width, height = size
        if math.isnan(width) or math.isnan(height):
            return Page(number, title, reason=PageUnreadable.__name__, detail=f"page {number:,} cannot be loaded")
        if not (0 < width < math.inf and 0 < height < math.inf):
            detail = f"page {number:,} has no area: {width:,g} x {height:,g} pt"
            return Page(number, title, reason=PageUnreadable.__name__, detail=detail)
        notes: tuple[Note, ...] = () if user_unit else (Note("UserUnitUncertain", UNCERTAIN),)
        user_unit = user_unit or 1.0
        sheet = sheet_size(width, height, user_unit, options.dpi, options.budget_bytes)
        if sheet is None:
            inches = f"{width * user_unit / 72:,.1f} x {height * user_unit / 72:,.1f} in"
            detail = (
                f"page {number:,} is {inches}: over {options.budget_bytes:,} bytes of pixels even at {min(MINIMUM_DPI, options.dpi)} dpi"
            )
            return Page(number, title, reason=PageTooLarge.__name__, detail=detail, notes=notes)
        if sheet.scaled:
            reason = f"at {options.dpi} its pixels would take more than {options.budget_bytes:,} bytes"
            notes = (scaled_note(sheet.dpi, options.dpi, reason), *notes)
        return Page(number, title, sheet.width, sheet.height, sheet.dpi, sheet.scaled, notes=notes)

    def _size(self, index: int) -> tuple[float, float]:
        """Width and height of a page in its own units; NaN when it cannot be loaded."""
        size = pdfium.FS_SIZEF()
        if not pdfium.FPDF_GetPageSizeByIndexF(self._document, index, size):
            return (math.nan, math.nan)
        return (size.width, size.height)

    def _attachments(self) -> tuple[list[str], str]:
        """The names of the files inside the document, fit to show; and "at least " where there are more."""
        names = []
        count = pdfium.FPDFDoc_GetAttachmentCount(self._document)
        for index in range(min(count, ATTACHMENTS_LOOKED_AT)):
            attachment = pdfium.FPDFDoc_GetAttachment(self._document, index)
            names.append(clean_title(fonts.text_of(pdfium.FPDFAttachment_GetName, attachment)) or "without a name")
        return names, "at least " if count > ATTACHMENTS_LOOKED_AT else ""

    def _bookmarks(self) -> dict[int, str]:
        """Page index to the title of the first outline item that points at it, in reading order."""
        titles: dict[int, str] = {}
        seen: set[int] = set()
        stack = [pdfium.FPDFBookmark_GetFirstChild(self._document, None)]
        while stack and len(seen) < OUTLINE_ITEMS:
            item = stack.pop()
            address = ctypes.cast(item, ctypes.c_void_p).value
            if address is None or address in seen:
                continue
            seen.add(address)
            stack.append(pdfium.FPDFBookmark_GetNextSibling(self._document, item))
            stack.append(pdfium.FPDFBookmark_GetFirstChild(self._document, item))
            index = self._target(item)
            if index is not None and index not in titles and (title := clean_title(fonts.text_of(pdfium.FPDFBookmark_GetTitle, item))):
                titles[index] = title
        return titles

    def _target(self, item: "pdfium.FPDF_BOOKMARK") -> int | None:
        action = pdfium.FPDFBookmark_GetAction(item)
        if action and pdfium.FPDFAction_GetType(action) != pdfium.PDFACTION_GOTO:
            return None
        destination = pdfium.FPDFBookmark_GetDest(self._document, item)
        if not destination:
            return None
        index = int(pdfium.FPDFDest_GetDestPageIndex(self._document, destination))
        return index if 0 <= index < self.page_count else None

    def _label(self, index: int) -> str | None:
        return clean_title(fonts.text_of(pdfium.FPDF_GetPageLabel, self._document, index))


def clean_title(text: str) -> str | None:
    """A title fit to show: no control or invisible characters, single spaces, at most 120 characters; None when nothing is left."""
    words = " ".join(text.split())
    visible = "".join(character for character in words if unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Cn"})
    return visible.strip()[:TITLE_CHARACTERS].strip() or None


def _listed(names: Sequence[str], least: str) -> str:
    """The first names, and how many more there are (``least`` stands before the number)."""
    shown = ", ".join(names[:ATTACHMENTS_NAMED])
    return f"{shown} and {least}{len(names) - ATTACHMENTS_NAMED:,} more" if len(names) > ATTACHMENTS_NAMED else shown


def _paint(page: "pdfium.FPDF_PAGE", annotations: PageAnnotations, number: int, width: int, height: int, buffer: PixelBuffer) -> memoryview:
    """The pixels of a page whose annotations are ready; part of the buffer."""
    size_bytes = width * height * BYTES_PER_PIXEL
    memory = buffer.at_least(size_bytes)
    first = ctypes.c_ubyte.from_buffer(memory)
    bitmap = pdfium.FPDFBitmap_CreateEx(width, height, pdfium.FPDFBitmap_BGR, ctypes.addressof(first), width * BYTES_PER_PIXEL)
    if not bitmap:
        msg = f"page {number:,} at {width:,} x {height:,} px is more than a bitmap can hold"
        raise PageTooLarge(msg)
    try:
        pdfium.FPDFBitmap_FillRect(bitmap, 0, 0, width, height, 0xFFFFFFFF)
        if not _render(bitmap, page, width, height):
            msg = f"page {number:,} cannot be drawn"
            raise PageUnreadable(msg)
        annotations.draw_fields(bitmap, page, width, height)
        fonts.check()
    finally:
        pdfium.FPDFBitmap_Destroy(bitmap)
    return memoryview(memory)[:size_bytes]


def _render(bitmap: "pdfium.FPDF_BITMAP", page: "pdfium.FPDF_PAGE", width: int, height: int) -> bool:
    """Draws step by step, because only the progressive call says whether it has failed."""
    pause = pdfium.IFSDK_PAUSE(version=1, NeedToPauseNow=_PAUSE, user=None)
    flags = pdfium.FPDF_ANNOT | pdfium.FPDF_REVERSE_BYTE_ORDER
    status = pdfium.FPDF_RenderPageBitmap_Start(bitmap, page, 0, 0, width, height, 0, flags, pause)
    while status == pdfium.FPDF_RENDER_TOBECONTINUED:
        status = pdfium.FPDF_RenderPage_Continue(page, pause)
    pdfium.FPDF_RenderPage_Close(page)
    return bool(status == pdfium.FPDF_RENDER_DONE)


def _pause(_pause: Sequence[object]) -> int:
    return 1


_PAUSE = dict(pdfium.IFSDK_PAUSE._fields_)["NeedToPauseNow"](_pause)
