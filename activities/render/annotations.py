"""Draws the annotations that PDFium leaves out of a page: form fields, and markups without an appearance. Loaded in render children only.

1. PDFium draws form fields through its form environment only, never with the page. It draws each once, also one that no AcroForm
   lists, and makes the appearance of one that has none. No JavaScript platform is given and no action is called, so nothing runs.
2. What is changed in memory so that PDFium draws right, it never writes back; markups are put back as they were, so that a page
   drawn twice gives the same pixels and the same notes.
3. PDFium tells neither line endings nor border styles of a markup: pikepdf reads them, by the same place in the page's ``/Annots``.
"""

import ctypes
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import filterfalse
from pathlib import Path
from typing import Any

import pikepdf
import pypdfium2.raw as pdfium

from activities.bucket.records import Note
from activities.render.fonts import MOST_ANNOTATIONS, text_of
from activities.render.markups import Appearance, appearance, is_cloud

MOST_MARKUPS = 2_000
"""Markups of a page that are drawn here."""

MOST_VERTICES = 100
"""Of a markup beside the page; one with more is taken to reach into it."""

MOST_OPERATORS = 4 << 20
"""Bytes of the operators that draw them, about."""

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
"""Kinds that PDFium does not draw without an appearance, or only one line of: core/fpdfdoc/cpdf_generateap.cpp, tried with 159.0.8149."""

CLOUDY = {pdfium.FPDF_ANNOT_SQUARE: "Square", pdfium.FPDF_ANNOT_CIRCLE: "Circle"}
"""Kinds that PDFium draws, but with a straight edge where a cloud is asked for (``/BE``)."""

_OFF_SCREEN = pdfium.FPDF_ANNOT_FLAG_HIDDEN | pdfium.FPDF_ANNOT_FLAG_NOVIEW


@dataclass(frozen=True)
class PageAnnotations:
    """A page whose annotations are ready to be drawn.

    Args:
        notes: What will be missing, or will not look as it was meant.
        form: PDFium's form environment; None on a page without fields.
    """

    notes: tuple[Note, ...]
    form: "pdfium.FPDF_FORMHANDLE | None"

    def draw_fields(self, bitmap: "pdfium.FPDF_BITMAP", page: "pdfium.FPDF_PAGE", width: int, height: int) -> None:
        """Draws the form fields over a page that was drawn at this size in pixels."""
        if self.form is not None:
            # Without FPDF_ANNOT, with which it would draw popups.
            pdfium.FPDF_FFLDraw(self.form, bitmap, page, 0, 0, width, height, 0, pdfium.FPDF_REVERSE_BYTE_ORDER)


class Annotations:
    """The annotations of an open document.

    Args:
        document: It stays the caller's; close this first.
        source: Its file.
    """

    def __init__(self, document: "pdfium.FPDF_DOCUMENT", source: Path) -> None:
        self._document = document
        self._source = source
        self._pdf: pikepdf.Pdf | None = None
        # PDFium keeps a pointer to it for as long as there is an environment.
        self._form_info = pdfium.FPDF_FORMFILLINFO(version=2, xfa_disabled=True)
        self._form: pdfium.FPDF_FORMHANDLE | None = None
        # Page and place of the fields whose appearance PDFium has made: it stays with the document.
        self._made: set[tuple[int, int]] = set()

    def close(self) -> None:
        """Ends the form environment."""
        if self._form is not None:
            pdfium.FPDFDOC_ExitFormFillEnvironment(self._form)
        if self._pdf is not None:
            self._pdf.close()

    @contextmanager
    def ready(self, page: "pdfium.FPDF_PAGE", index: int) -> Iterator[PageAnnotations]:
        """Makes ready what PDFium would leave out, and puts it back at the end.

        Args:
            page: Loaded; it is closed after this has ended.
            index: 0-based.
        """
        fields, markups = _to_do(page)
        with ExitStack() as undo:
            form, notes = self._fields(page, index, fields, undo) if fields else (None, ())
            notes += self._markups(page, index, markups, undo) if markups else ()
            if pdfium.FPDF_GetFormType(self._document) == pdfium.FORMTYPE_XFA_FULL:
                notes += (Note("FormNotDrawn", "The form is an XFA form, which is not drawn; the PDF has this page in its place."),)
            if (count := pdfium.FPDFPage_GetAnnotCount(page)) > MOST_ANNOTATIONS:
                notes += (Note("AnnotationNotDrawn", f"Only {MOST_ANNOTATIONS:,} of {count:,} annotations were looked at."),)
            yield PageAnnotations(notes, form)

    def _fields(
        self, page: "pdfium.FPDF_PAGE", index: int, fields: list[int], undo: ExitStack
    ) -> tuple["pdfium.FPDF_FORMHANDLE", tuple[Note, ...]]:
        if self._form is None:
            self._form = pdfium.FPDFDOC_InitFormFillEnvironment(self._document, self._form_info)
            pdfium.FPDF_SetFormFieldHighlightAlpha(self._form, 0)
        before = {place: _appearance_size(page, place) for place in fields}
        pdfium.FORM_OnAfterLoadPage(page, self._form)
        undo.callback(pdfium.FORM_OnBeforeClosePage, page, self._form)
        self._made.update((index, place) for place in fields if _appearance_size(page, place) != before[place])
        unwritten: set[str] = set()
        for place in fields:
            with _annotation(page, place) as field:
                if (index, place) in self._made and not pdfium.FPDFAnnot_GetFlags(field) & _OFF_SCREEN:
                    unwritten.update(filterfalse(_is_written, text_of(pdfium.FPDFAnnot_GetFormFieldValue, self._form, field)))
                kind = pdfium.FPDFAnnot_GetFormFieldType(self._form, field)
                if kind == -1 and _has_appearance(field):
                    # No field to PDFium, for it has no type: its appearance is drawn with the page.
                    pdfium.FPDFAnnot_SetStringValue(field, b"Subtype", _wide("Stamp"))
                elif kind in (pdfium.FPDF_FORMFIELD_CHECKBOX, pdfium.FPDF_FORMFIELD_RADIOBUTTON) and pdfium.FPDFAnnot_HasKey(field, b"AP"):
                    _settle_button(field)
        if not unwritten:
            return self._form, ()
        text = f"{len(unwritten):,} characters of form fields may be missing, for the PDF does not say how they look"
        return self._form, (Note("FontMissing", f"{text}: {' '.join(sorted(unwritten)[:10])}"),)

    def _markups(self, page: "pdfium.FPDF_PAGE", index: int, markups: dict[int, str], undo: ExitStack) -> tuple[Note, ...]:
        found = self._dictionaries(index, markups)
        left: Counter[str] = Counter()
        substituted, drawn, room = 0, 0, MOST_OPERATORS
        with _helvetica(self._document) as width_of:
            for place, kind in markups.items():
                if place in found and _is_right(found[place], kind):
                    continue
                look = appearance(found[place], width_of) if place in found and drawn < MOST_MARKUPS and room > 0 else None
                drawn += 1
                if look is None or not _give(page, place, look, undo):
                    left[kind] += 1
                    continue
                room -= len(look.content)
                substituted += look.font_substituted
        notes = []
        if left:
            names = ", ".join(f"{count:,} {kind}" for kind, count in left.most_common())
            text = f"{left.total():,} markups have" if left.total() > 1 else "1 markup has"
            notes.append(Note("AnnotationNotDrawn", f"{text} no appearance in the PDF. Missing or incomplete: {names}."))
        if substituted:
            text = f"{substituted:,} text markups are" if substituted > 1 else "1 text markup is"
            notes.append(Note("FontSubstituted", f"{text} drawn in Helvetica: the PDF has no appearance in the right font."))
        return tuple(notes)

    def _dictionaries(self, index: int, markups: dict[int, str]) -> dict[int, pikepdf.Dictionary]:
        """The markups by their place, as pikepdf reads them; without those that it sees otherwise than PDFium."""
        try:
            if self._pdf is None:
                self._pdf = pikepdf.open(
                    self._source, suppress_warnings=True, attempt_recovery=False, access_mode=pikepdf.AccessMode.stream
                )
            if len(self._pdf.pages) != pdfium.FPDF_GetPageCount(self._document):
                return {}
            annotations: Any = self._pdf.pages[index].obj["/Annots"]
            return {place: annotations[place] for place, kind in markups.items() if annotations[place]["/Subtype"] == f"/{kind}"}
        except (MemoryError, OSError):
            raise
        except Exception:  # noqa: BLE001 (its refusals have no common base, and PDFium has the last word on the document)
            return {}


def _to_do(page: "pdfium.FPDF_PAGE") -> tuple[list[int], dict[int, str]]:
    """Places of the form fields in the page's ``/Annots``; and places and kinds of the markups that PDFium would not draw right."""
    box = pdfium.FS_RECTF()
    pdfium.FPDF_GetPageBoundingBox(page, box)
    fields, markups = [], {}
    for place in range(min(pdfium.FPDFPage_GetAnnotCount(page), MOST_ANNOTATIONS)):
        with _annotation(page, place) as annotation:
            subtype = pdfium.FPDFAnnot_GetSubtype(annotation)
            if subtype == pdfium.FPDF_ANNOT_WIDGET:
                fields.append(place)
                continue
            kind = UNDRAWN.get(subtype) or CLOUDY.get(subtype)
            if (
                kind
                and (subtype in UNDRAWN or pdfium.FPDFAnnot_HasKey(annotation, b"BE"))
                and not _has_appearance(annotation)
                and _shows(annotation, box)
            ):
                markups[place] = kind
    return fields, markups


def _has_appearance(annotation: "pdfium.FPDF_ANNOTATION") -> bool:
    """Whether the PDF has one that is not empty; PDFium marks those that it has made itself."""
    return bool(
        pdfium.FPDFAnnot_HasKey(annotation, b"AP")
        and not pdfium.FPDFAnnot_HasKey(annotation, b"PDFIUM_HasGeneratedAP")
        and pdfium.FPDFAnnot_GetAP(annotation, pdfium.FPDF_ANNOT_APPEARANCEMODE_NORMAL, None, 0) > 2
    )


def _appearance_size(page: "pdfium.FPDF_PAGE", place: int) -> int:
    with _annotation(page, place) as annotation:
        return int(pdfium.FPDFAnnot_GetAP(annotation, pdfium.FPDF_ANNOT_APPEARANCEMODE_NORMAL, None, 0))


def _is_written(character: str) -> bool:
    """Whether PDFium writes it into an appearance that it makes: it knows Windows code pages only. Tried with 159.0.8149."""
    if unicodedata.category(character)[0] in "CZ" or unicodedata.east_asian_width(character) in "WF":
        return True
    pages = ["cp1252"]
    if "\u0100" <= character < "\u0180" or ("\u0370" <= character < "\u0e80" and character != "\u06a9"):
        pages += ["cp1250", "cp1253", "cp1251", "cp1255", "cp1256", "cp874"]
    elif "\u2000" <= character < "\u2070":
        pages += ["gbk"]
    return any(character.encode(page, "ignore") for page in pages)


def _is_right(markup: pikepdf.Dictionary, kind: str) -> bool:
    """Whether PDFium draws it right after all: its appearance is there and draws nothing, or it is a square or circle without a cloud."""
    looks = markup.get("/AP")
    blank = isinstance(looks, pikepdf.Dictionary) and isinstance(looks.get("/N"), pikepdf.Stream)
    return blank or (kind in CLOUDY.values() and not is_cloud(markup))


def _shows(annotation: "pdfium.FPDF_ANNOTATION", page: "pdfium.FS_RECTF") -> bool:
    """Whether its rectangle, or one around its points, touches the page: where they differ, it is the points that are drawn."""
    if pdfium.FPDFAnnot_GetFlags(annotation) & _OFF_SCREEN:
        return False
    rect = pdfium.FS_RECTF()
    if pdfium.FPDFAnnot_GetRect(annotation, rect) and _touch(page, rect.left, rect.bottom, rect.right, rect.top):
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
    return _touch(page, min(xs), min(ys), max(xs), max(ys))


def _touch(page: "pdfium.FS_RECTF", left: float, bottom: float, right: float, top: float) -> bool:
    return bool(left <= page.right and right >= page.left and bottom <= page.top and top >= page.bottom)


def _settle_button(field: "pdfium.FPDF_ANNOTATION") -> None:
    """Has the appearance of a check box's state drawn, and not the grey frame that PDFium draws where the state has none."""
    if not pdfium.FPDFAnnot_HasKey(field, b"AS"):
        size = pdfium.FPDFAnnot_GetStringValue(field, b"V", None, 0)
        value = (pdfium.FPDF_WCHAR * max(1, size // 2))()
        pdfium.FPDFAnnot_GetStringValue(field, b"V", value, size)
        pdfium.FPDFAnnot_SetStringValue(field, b"AS", value if value[0] else _wide("Off"))
    if pdfium.FPDFAnnot_GetAP(field, pdfium.FPDF_ANNOT_APPEARANCEMODE_NORMAL, None, 0) <= 2:
        pdfium.FPDFAnnot_SetFlags(field, pdfium.FPDFAnnot_GetFlags(field) | pdfium.FPDF_ANNOT_FLAG_HIDDEN)


def _give(page: "pdfium.FPDF_PAGE", place: int, look: Appearance, undo: ExitStack) -> bool:
    """Gives an annotation an appearance until ``undo`` is closed."""
    annotation = undo.enter_context(_annotation(page, place))
    before = pdfium.FS_RECTF()
    pdfium.FPDFAnnot_GetRect(annotation, before)
    left, bottom, right, top = look.rect
    pdfium.FPDFAnnot_SetRect(annotation, pdfium.FS_RECTF(left, top, right, bottom))
    undo.callback(pdfium.FPDFAnnot_SetRect, annotation, before)
    undo.callback(pdfium.FPDFAnnot_SetAP, annotation, pdfium.FPDF_ANNOT_APPEARANCEMODE_NORMAL, None)
    return bool(pdfium.FPDFAnnot_SetAP(annotation, pdfium.FPDF_ANNOT_APPEARANCEMODE_NORMAL, _wide(look.content)))


@contextmanager
def _annotation(page: "pdfium.FPDF_PAGE", place: int) -> Iterator["pdfium.FPDF_ANNOTATION"]:
    annotation = pdfium.FPDFPage_GetAnnot(page, place)
    try:
        yield annotation
    finally:
        pdfium.FPDFPage_CloseAnnot(annotation)


@contextmanager
def _helvetica(document: "pdfium.FPDF_DOCUMENT") -> Iterator[Callable[[str], float]]:
    """A function that gives the width of a text in Helvetica of size 1."""
    font = pdfium.FPDFText_LoadStandardFont(document, b"Helvetica")

    @cache
    def width_of(character: str) -> float:
        width = ctypes.c_float()
        pdfium.FPDFFont_GetGlyphWidth(font, ord(character), 1000, width)
        return width.value / 1000

    try:
        yield lambda text: sum(map(width_of, text))
    finally:
        pdfium.FPDFFont_Close(font)


def _wide(text: str) -> "ctypes.Array[Any]":
    """A string for PDFium: UTF-16LE with a terminator."""
    string: ctypes.Array[Any] = (pdfium.FPDF_WCHAR * (len(text) + 1))(*text.encode("ascii"))
    return string
