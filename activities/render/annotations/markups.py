"""Makes PDFium draw the markups that have no appearance in the PDF. Loaded in render children only.

1. PDFium tells neither line endings nor border styles of a markup: pikepdf reads them.
2. Each markup gets an appearance in memory, which is taken back when the page has been drawn.
"""

import ctypes
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache

import pikepdf
import pypdfium2.raw as pdfium

from activities.bucket.records import Note
from activities.render.annotations.appearance import Appearance, TextWidth, make_appearance
from activities.render.annotations.entries import has_cloudy_edge
from activities.render.annotations.handles import has_appearance, is_off_screen, open_annotation
from activities.render.strings import utf16

MOST_MARKUPS = 2_000
"""Markups of a page that get an appearance here."""

MOST_OPERATORS = 4 << 20
"""About so many bytes of operators draw the markups of a page."""

MOST_VERTICES = 100
"""Vertices of a markup that are compared with the page; a markup with more is taken to reach into it."""

UNDRAWN = {
    pdfium.FPDF_ANNOT_FREETEXT: "FreeText",
    pdfium.FPDF_ANNOT_LINE: "Line",
    pdfium.FPDF_ANNOT_POLYGON: "Polygon",
    pdfium.FPDF_ANNOT_POLYLINE: "PolyLine",
    pdfium.FPDF_ANNOT_STAMP: "Stamp",
    pdfium.FPDF_ANNOT_CARET: "Caret",
    pdfium.FPDF_ANNOT_FILEATTACHMENT: "FileAttachment",
    pdfium.FPDF_ANNOT_WATERMARK: "Watermark",
    pdfium.FPDF_ANNOT_REDACT: "Redact",
    pdfium.FPDF_ANNOT_THREED: "3D",
    pdfium.FPDF_ANNOT_RICHMEDIA: "RichMedia",
}
"""Kinds that PDFium does not draw without an appearance; of a free text it draws one line. Tried with 159.0.8149.
https://pdfium.googlesource.com/pdfium/+/refs/heads/chromium/8149/core/fpdfdoc/cpdf_generateap.cpp
"""

CLOUDY = {pdfium.FPDF_ANNOT_SQUARE: "Square", pdfium.FPDF_ANNOT_CIRCLE: "Circle"}
"""Kinds that PDFium draws, but with a straight edge where the markup asks for a cloud (``/BE``)."""


REVIEW_MARKUPS = frozenset(
    {
        pdfium.FPDF_ANNOT_TEXT,
        pdfium.FPDF_ANNOT_FREETEXT,
        pdfium.FPDF_ANNOT_LINE,
        pdfium.FPDF_ANNOT_SQUARE,
        pdfium.FPDF_ANNOT_CIRCLE,
        pdfium.FPDF_ANNOT_POLYGON,
        pdfium.FPDF_ANNOT_POLYLINE,
        pdfium.FPDF_ANNOT_HIGHLIGHT,
        pdfium.FPDF_ANNOT_UNDERLINE,
        pdfium.FPDF_ANNOT_SQUIGGLY,
        pdfium.FPDF_ANNOT_STRIKEOUT,
        pdfium.FPDF_ANNOT_STAMP,
        pdfium.FPDF_ANNOT_CARET,
        pdfium.FPDF_ANNOT_INK,
        pdfium.FPDF_ANNOT_POPUP,
        pdfium.FPDF_ANNOT_FILEATTACHMENT,
        pdfium.FPDF_ANNOT_SOUND,
        pdfium.FPDF_ANNOT_REDACT,
    }
)
"""The kinds that reviewers add, and their popups.
https://opensource.adobe.com/dc-acrobat-sdk-docs/standards/pdfstandards/pdf/PDF32000_2008.pdf, table 169
"""


def undrawn_kind(annotation: "pdfium.FPDF_ANNOTATION", page_box: "pdfium.FS_RECTF") -> str | None:
    """The kind of a markup on the page that PDFium would leave out, or may draw without its cloud; None for any other annotation."""
    subtype = pdfium.FPDFAnnot_GetSubtype(annotation)
    kind = UNDRAWN.get(subtype) or CLOUDY.get(subtype)
    if kind is None or (subtype in CLOUDY and not pdfium.FPDFAnnot_HasKey(annotation, b"BE")):
        return None
    return kind if not has_appearance(annotation) and _is_visible(annotation, page_box) else None


class Markups:
    """The markups of an open document.

    Args:
        document: It stays the caller's.
    """

    def __init__(self, document: "pdfium.FPDF_DOCUMENT") -> None:
        self._document = document

    def prepare(
        self, page: "pdfium.FPDF_PAGE", dictionaries: Mapping[int, pikepdf.Dictionary], markups: dict[int, str], undo: ExitStack
    ) -> tuple[Note, ...]:
        """Gives the markups of a page appearances.

        Args:
            page: Loaded.
            dictionaries: The markups' dictionaries by position, as far as pikepdf can read them.
            markups: Position in the page's ``/Annots`` to ``undrawn_kind``.
            undo: Gets the calls that take the appearances back.

        Returns:
            Notes on markups that will be missing, and on text that will be in another font.
        """
        missing: Counter[str] = Counter()
        substituted, tried, room_bytes = 0, 0, MOST_OPERATORS
        with _helvetica(self._document) as text_width:
            for position, kind in markups.items():
                markup = dictionaries.get(position)
                if markup is not None and markup.get("/Subtype") != f"/{kind}":
                    markup = None  # PDFium has read another annotation at this position.
                if markup is not None and _is_drawn_right(markup, kind):
                    continue
                made = None
                if markup is not None and tried < MOST_MARKUPS and room_bytes > 0:
                    made = make_appearance(markup, text_width)
                tried += 1
                if made is None or not _set_appearance(page, position, made, undo):
                    missing[kind] += 1
                    continue
                room_bytes -= len(made.content)
                substituted += made.font_substituted
        notes = []
        if missing:
            names = ", ".join(f"{count:,} {kind}" for kind, count in missing.most_common())
            text = f"{missing.total():,} markups have" if missing.total() > 1 else "1 markup has"
            notes.append(Note("AnnotationNotDrawn", f"{text} no appearance in the PDF. Missing or incomplete: {names}."))
        if substituted:
            text = f"{substituted:,} text markups are" if substituted > 1 else "1 text markup is"
            notes.append(Note("FontSubstituted", f"{text} drawn in Helvetica: the PDF has no appearance in the right font."))
        return tuple(notes)


def _is_drawn_right(markup: pikepdf.Dictionary, kind: str) -> bool:
    """Whether PDFium draws the markup right after all: its appearance draws nothing, or it is a square or circle without a cloud."""
    appearances = markup.get("/AP")
    blank = isinstance(appearances, pikepdf.Dictionary) and isinstance(appearances.get("/N"), pikepdf.Stream)
    return blank or (kind in CLOUDY.values() and not has_cloudy_edge(markup))


def _is_visible(annotation: "pdfium.FPDF_ANNOTATION", page_box: "pdfium.FS_RECTF") -> bool:
    """Whether its rectangle, or a rectangle around its points, touches the page: where the two differ, the points are drawn."""
    if is_off_screen(annotation):
        return False
    rect = pdfium.FS_RECTF()
    if pdfium.FPDFAnnot_GetRect(annotation, rect) and _touches(page_box, rect.left, rect.bottom, rect.right, rect.top):
        return True
    count = pdfium.FPDFAnnot_GetVertices(annotation, None, 0)
    if count > MOST_VERTICES:
        return True
    points = (pdfium.FS_POINTF * max(2, count))()
    if count:
        pdfium.FPDFAnnot_GetVertices(annotation, points, count)
    elif not pdfium.FPDFAnnot_GetLine(annotation, points[0], points[1]):
        return False
    xs, ys = [point.x for point in points[: count or 2]], [point.y for point in points[: count or 2]]
    return _touches(page_box, min(xs), min(ys), max(xs), max(ys))


def _touches(page_box: "pdfium.FS_RECTF", left: float, bottom: float, right: float, top: float) -> bool:
    return bool(left <= page_box.right and right >= page_box.left and bottom <= page_box.top and top >= page_box.bottom)


def _set_appearance(page: "pdfium.FPDF_PAGE", position: int, appearance: Appearance, undo: ExitStack) -> bool:
    """Gives a markup its appearance until ``undo`` is closed."""
    annotation = undo.enter_context(open_annotation(page, position))
    before = pdfium.FS_RECTF()
    pdfium.FPDFAnnot_GetRect(annotation, before)
    left, bottom, right, top = appearance.rect
    pdfium.FPDFAnnot_SetRect(annotation, pdfium.FS_RECTF(left, top, right, bottom))
    undo.callback(pdfium.FPDFAnnot_SetRect, annotation, before)
    undo.callback(pdfium.FPDFAnnot_SetAP, annotation, pdfium.FPDF_ANNOT_APPEARANCEMODE_NORMAL, None)
    return bool(pdfium.FPDFAnnot_SetAP(annotation, pdfium.FPDF_ANNOT_APPEARANCEMODE_NORMAL, utf16(appearance.content)))


@contextmanager
def _helvetica(document: "pdfium.FPDF_DOCUMENT") -> Iterator[TextWidth]:
    """A function that gives the width of a text in Helvetica of size 1."""
    font = pdfium.FPDFText_LoadStandardFont(document, b"Helvetica")

    @cache
    def character_width(character: str) -> float:
        width = ctypes.c_float()
        pdfium.FPDFFont_GetGlyphWidth(font, ord(character), 1000, width)
        return width.value / 1000

    try:
        yield lambda text: sum(map(character_width, text))
    finally:
        pdfium.FPDFFont_Close(font)
