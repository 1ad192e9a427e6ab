"""Makes the annotations of a page ready to be drawn by PDFium, which leaves some of them out. Loaded in render children only.

1. PDFium draws form fields only through its form environment: see ``fields``. It draws no markup without an appearance: see ``markups``.
2. Every change is made in memory and never written to the file. Changed markups are restored, so a page that is drawn twice gives
   the same pixels and the same notes.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pypdfium2.raw as pdfium

from activities.bucket.records import Note
from activities.render.annotations.fields import FormFields
from activities.render.annotations.handles import MOST_ANNOTATIONS, open_annotation, positions
from activities.render.annotations.markups import Markups, undrawn_kind


@dataclass(frozen=True)
class PageAnnotations:
    """A page whose annotations are ready to be drawn.

    Args:
        notes: What will be missing, or will not look as its author meant it.
        form: PDFium's form environment; None on a page without fields.
    """

    notes: tuple[Note, ...]
    form: "pdfium.FPDF_FORMHANDLE | None"

    def draw_fields(self, bitmap: "pdfium.FPDF_BITMAP", page: "pdfium.FPDF_PAGE", width: int, height: int, flags: int) -> None:
        """Draws the form fields over the page, which was drawn at this size in pixels, in the byte order that the flags name."""
        if self.form is not None:
            # Without FPDF_ANNOT: with this flag PDFium would also draw popups.
            pdfium.FPDF_FFLDraw(self.form, bitmap, page, 0, 0, width, height, 0, flags)


class DocumentAnnotations:
    """The annotations of an open document.

    Args:
        document: It stays the caller's, who closes these annotations before the document.
        source: Its file.
        password: Opens it.
    """

    def __init__(self, document: "pdfium.FPDF_DOCUMENT", source: Path, password: str = "") -> None:
        self._document = document
        self._fields = FormFields(document)
        self._markups = Markups(document, source, password)

    def close(self) -> None:
        """Ends the form environment, and closes the file."""
        self._fields.close()
        self._markups.close()

    @contextmanager
    def ready(self, page: "pdfium.FPDF_PAGE", index: int) -> Iterator[PageAnnotations]:
        """Within, PDFium draws the page's form fields and markups.

        Args:
            page: Loaded; the caller closes it afterwards.
            index: 0-based.
        """
        fields, markups = _fields_and_markups(page)
        with ExitStack() as undo:
            form, notes = self._fields.prepare(page, index, fields, undo) if fields else (None, ())
            notes += self._markups.prepare(page, index, markups, undo) if markups else ()
            if pdfium.FPDF_GetFormType(self._document) == pdfium.FORMTYPE_XFA_FULL:
                notes += (Note("FormNotDrawn", "The form is an XFA form, which is not drawn; the PDF has this page in its place."),)
            if (count := pdfium.FPDFPage_GetAnnotCount(page)) > MOST_ANNOTATIONS:
                notes += (Note("AnnotationNotDrawn", f"Only {MOST_ANNOTATIONS:,} of {count:,} annotations were looked at."),)
            yield PageAnnotations(notes, form)


def _fields_and_markups(page: "pdfium.FPDF_PAGE") -> tuple[list[int], dict[int, str]]:
    """Positions of the form fields; and positions and kinds of the markups that PDFium would not draw right."""
    box = pdfium.FS_RECTF()
    pdfium.FPDF_GetPageBoundingBox(page, box)
    fields, markups = [], {}
    for position in positions(page):
        with open_annotation(page, position) as annotation:
            if pdfium.FPDFAnnot_GetSubtype(annotation) == pdfium.FPDF_ANNOT_WIDGET:
                fields.append(position)
            elif kind := undrawn_kind(annotation, box):
                markups[position] = kind
    return fields, markups
