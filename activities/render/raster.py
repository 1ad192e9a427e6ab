"""Draws a page of a PDF as pixels, by PDFium. Loaded in render children only.

PDFium's functions are called below pypdfium2's ``page.render``, which rounds sizes up by itself and copies the pixels.
"""

import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import pypdfium2
import pypdfium2.raw as pdfium

from activities.bucket.dzi import BYTES_PER_PIXEL
from activities.bucket.records import Layer, Note
from activities.errors import PageTooLarge, PageUnreadable
from activities.render.annotations.page import PageAnnotations
from activities.render.fonts import mapper
from activities.render.fonts.faces import Face
from activities.render.fonts.notes import font_notes
from activities.render.fonts.page import choose_faces, unembedded_fonts
from activities.render.objects.survey import survey
from activities.render.pdf_file import PdfFile

REVISION = "3"
"""Grows when a change of our own calls changes the bytes of tiles."""

PDFIUM_VERSION = str(pypdfium2.PDFIUM_INFO.tag)

_WHITE = 0xFF


class PixelBuffer:
    """Memory that a child draws every page into: new memory for each page would cost more time than an easy sheet.

    It is private, so that it counts against the child's memory limit.
    """

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def at_least(self, size_bytes: int) -> mmap.mmap:
        """The memory, at least ``size_bytes`` long; shorter memory is replaced."""
        if self._memory is None or len(self._memory) < size_bytes:
            self._memory = None
            memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            # With huge pages the page faults take a third of the time; the kernel may ignore this advice.
            memory.madvise(mmap.MADV_HUGEPAGE)
            self._memory = memory
        return self._memory


@dataclass(frozen=True)
class Drawn:
    """A page that was drawn.

    Args:
        pixels: Rows of three bytes a pixel without padding; part of the buffer that was given.
        notes: Why the page may differ from what its author drew.
        transform: From the page to its pixels, as ``SheetRecord`` explains.
        layers: The layers that the page uses.
    """

    pixels: memoryview
    notes: tuple[Note, ...]
    transform: tuple[float, ...]
    layers: tuple[Layer, ...]


def draw(pdf: PdfFile, number: int, width: int, height: int, buffer: PixelBuffer, *, blue_first: bool = False) -> Drawn:
    """Draws a page with its annotations and form fields on white, exactly ``width`` x ``height`` px.

    Args:
        pdf: Open.
        number: 1-based.
        width: Pixels.
        height: Pixels.
        buffer: Memory to draw into; the pixels of the result are part of it.
        blue_first: Whether a pixel becomes B, G, R, which PDFium draws faster than R, G, B. The picture is the same.

    Raises:
        PageUnreadable: The page cannot be loaded or drawn.
        PageTooLarge: PDFium has no bitmap of this size.
        OSError: A font file cannot be read.
    """
    found = survey(pdf.objects.pdf(), number - 1)
    if found.needs_rewriting():
        pdf.write_anew()
    page = pdfium.FPDF_LoadPage(pdf.document, number - 1)
    if not page:
        msg = f"page {number:,} cannot be loaded"
        raise PageUnreadable(msg)
    try:
        with pdf.annotations.ready(page, number - 1) as annotations:
            # The annotations come first: PDFium makes the text of form fields while they are made ready.
            fonts, unchecked_notes = unembedded_fonts(page, annotations.form, pdf.source, number - 1, pdf.password)
            faces = choose_faces(fonts) if not mapper.install().preferred else {}
            if not faces:
                pixels = _paint(page, annotations, number, width, height, buffer, blue_first=blue_first)
                notes = (*pdf.layer_notes, *found.notes(pdf.layers), *font_notes(fonts), *unchecked_notes, *annotations.notes)
                return Drawn(pixels, notes, _transform(page, width, height), found.layers(pdf.layers))
    finally:
        pdfium.FPDF_ClosePage(page)
    return _draw_with(faces, pdf, number, width, height, buffer, blue_first=blue_first)


def _draw_with(
    faces: dict[str, Face], pdf: PdfFile, number: int, width: int, height: int, buffer: PixelBuffer, *, blue_first: bool
) -> Drawn:
    """Draws a page with faces chosen for it, from a document opened anew: PDFium keeps the fonts of a document until it is closed."""
    with mapper.prefer(faces):
        reopened = PdfFile(pdf.source, pdf.password, pdf.options)
        try:
            return draw(reopened, number, width, height, buffer, blue_first=blue_first)
        finally:
            reopened.close()


def _paint(
    page: "pdfium.FPDF_PAGE", annotations: PageAnnotations, number: int, width: int, height: int, buffer: PixelBuffer, *, blue_first: bool
) -> memoryview:
    """The pixels of a page whose annotations are ready; part of the buffer."""
    size_bytes = width * height * BYTES_PER_PIXEL
    memory = buffer.at_least(size_bytes)
    first = ctypes.c_ubyte.from_buffer(memory)
    bitmap = pdfium.FPDFBitmap_CreateEx(width, height, pdfium.FPDFBitmap_BGR, ctypes.addressof(first), width * BYTES_PER_PIXEL)
    if not bitmap:
        msg = f"page {number:,} at {width:,} x {height:,} px is more than a bitmap can hold"
        raise PageTooLarge(msg)
    flags = 0 if blue_first else pdfium.FPDF_REVERSE_BYTE_ORDER
    try:
        ctypes.memset(ctypes.addressof(first), _WHITE, size_bytes)  # FPDFBitmap_FillRect takes five times as long
        if not _render(bitmap, page, width, height, flags):
            msg = f"page {number:,} cannot be drawn"
            raise PageUnreadable(msg)
        annotations.draw_fields(bitmap, page, width, height, flags)
        mapper.raise_failure()
    finally:
        pdfium.FPDFBitmap_Destroy(bitmap)
    return memoryview(memory)[:size_bytes]


def _transform(page: "pdfium.FPDF_PAGE", width: int, height: int) -> tuple[float, ...]:
    """The matrix from the page's user space to its pixels: the page's box, turned as the page says, fills all pixels."""
    box = pdfium.FS_RECTF()
    pdfium.FPDF_GetPageBoundingBox(page, box)
    turns = pdfium.FPDFPage_GetRotation(page)  # by 90 degrees, clockwise
    along_x, along_y = (height, width) if turns % 2 else (width, height)
    x_scale, y_scale = along_x / (box.right - box.left), along_y / (box.top - box.bottom)
    matrices = (
        (x_scale, 0.0, 0.0, -y_scale, -x_scale * box.left, y_scale * box.top),
        (0.0, x_scale, y_scale, 0.0, -y_scale * box.bottom, -x_scale * box.left),
        (-x_scale, 0.0, 0.0, y_scale, x_scale * box.right, -y_scale * box.bottom),
        (0.0, -x_scale, -y_scale, 0.0, y_scale * box.top, x_scale * box.right),
    )
    return tuple(number + 0.0 for number in matrices[turns])  # no negative zero


def _render(bitmap: "pdfium.FPDF_BITMAP", page: "pdfium.FPDF_PAGE", width: int, height: int, flags: int) -> bool:
    """Draws the page in steps, because only PDFium's progressive rendering says whether it has failed.

    Without the limit, PDFium keeps every image of the page decoded until the page is closed; with it, about 100 MB of them.

    https://pdfium.googlesource.com/pdfium/+/refs/heads/chromium/8149/public/fpdf_progressive.h
    """
    pause = pdfium.IFSDK_PAUSE(version=1, NeedToPauseNow=_PAUSE_AFTER_EACH_STEP, user=None)
    flags |= pdfium.FPDF_ANNOT | pdfium.FPDF_RENDER_LIMITEDIMAGECACHE
    status = pdfium.FPDF_RenderPageBitmap_Start(bitmap, page, 0, 0, width, height, 0, flags, pause)
    while status == pdfium.FPDF_RENDER_TOBECONTINUED:
        status = pdfium.FPDF_RenderPage_Continue(page, pause)
    pdfium.FPDF_RenderPage_Close(page)
    return bool(status == pdfium.FPDF_RENDER_DONE)


def _pause_after_each_step(_pause: Sequence[object]) -> int:
    return 1


_PAUSE_AFTER_EACH_STEP = dict(pdfium.IFSDK_PAUSE._fields_)["NeedToPauseNow"](_pause_after_each_step)
