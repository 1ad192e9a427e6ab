"""Makes the annotations of a page ready to be drawn by PDFium, which leaves some of them out. Loaded in render children only.

1. PDFium draws form fields only through its form environment: see ``fields``. It draws no markup without an appearance: see ``markups``.
2. PDFium draws an annotation whose layer is off. Such annotations are hidden here, and so are review markups that the upload leaves out.
3. Every change is made in memory and never written to the file. Changed markups are restored, so a page that is drawn twice gives
   the same pixels and the same notes.
"""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pikepdf
import pypdfium2.raw as pdfium

from activities.bucket.records import Note
from activities.render.annotations.fields import FormFields
from activities.render.annotations.handles import MOST_ANNOTATIONS, open_annotation, positions
from activities.render.annotations.markups import REVIEW_MARKUPS, Markups, undrawn_kind
from activities.render.objects.layers import Layers
from activities.render.objects.reader import PdfObjects


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


@dataclass(frozen=True)
class _Found:
    """Annotations of a page, by position in ``/Annots``.

    Args:
        fields: Form fields.
        markups: Those that PDFium would not draw right, with their kinds.
        layered: Those that belong to a layer.
        hidden: Those that are not drawn.
    """

    fields: list[int] = field(default_factory=list)
    markups: dict[int, str] = field(default_factory=dict)
    layered: list[int] = field(default_factory=list)
    hidden: list[int] = field(default_factory=list)


class DocumentAnnotations:
    """The annotations of an open document.

    Args:
        document: It stays the caller's, who closes these annotations before the document.
        objects: The same document as pikepdf reads it.
        layers: Its layers.
        with_markups: Whether review markups are drawn.
    """

    def __init__(self, document: "pdfium.FPDF_DOCUMENT", objects: PdfObjects, layers: Layers, *, with_markups: bool) -> None:
        self._document = document
        self._objects = objects
        self._layers = layers
        self._with_markups = with_markups
        self._fields = FormFields(document)
        self._markups = Markups(document)

    def close(self) -> None:
        """Ends the form environment."""
        self._fields.close()

    @contextmanager
    def ready(self, page: "pdfium.FPDF_PAGE", index: int) -> Iterator[PageAnnotations]:
        """Within, PDFium draws the page's form fields and markups.

        Args:
            page: Loaded; the caller closes it afterwards.
            index: 0-based.
        """
        with ExitStack() as undo:
            found = self._find(page)
            dictionaries = self._dictionaries(index, [*found.markups, *found.layered])
            for position in found.layered:
                if position in dictionaries and not self._layers.shows(dictionaries[position].get("/OC")):
                    found.hidden.append(position)
            for position in found.hidden:
                _hide(page, position, undo)
                found.markups.pop(position, None)
            form, notes = self._fields.prepare(page, index, found.fields, undo) if found.fields else (None, ())
            notes += self._markups.prepare(page, dictionaries, found.markups, undo) if found.markups else ()
            if pdfium.FPDF_GetFormType(self._document) == pdfium.FORMTYPE_XFA_FULL:
                notes += (Note("FormNotDrawn", "The form is an XFA form, which is not drawn; the PDF has this page in its place."),)
            if (count := pdfium.FPDFPage_GetAnnotCount(page)) > MOST_ANNOTATIONS:
                notes += (Note("AnnotationNotDrawn", f"Only {MOST_ANNOTATIONS:,} of {count:,} annotations were looked at."),)
            yield PageAnnotations(notes, form)

    def _find(self, page: "pdfium.FPDF_PAGE") -> _Found:
        """The annotations of a page that need something done."""
        box = pdfium.FS_RECTF()
        pdfium.FPDF_GetPageBoundingBox(page, box)
        found = _Found()
        for position in positions(page):
            with open_annotation(page, position) as annotation:
                subtype = pdfium.FPDFAnnot_GetSubtype(annotation)
                if not self._with_markups and subtype in REVIEW_MARKUPS:
                    found.hidden.append(position)
                    continue
                if self._layers.layers and pdfium.FPDFAnnot_HasKey(annotation, b"OC"):
                    found.layered.append(position)
                if subtype == pdfium.FPDF_ANNOT_WIDGET:
                    found.fields.append(position)
                elif kind := undrawn_kind(annotation, box):
                    found.markups[position] = kind
        return found

    def _dictionaries(self, index: int, wanted: Collection[int]) -> dict[int, pikepdf.Dictionary]:
        """The annotations' dictionaries by position in the page's ``/Annots``, as pikepdf reads them."""
        if not wanted or (pdf := self._objects.pdf()) is None:
            return {}
        try:
            annotations: Any = pdf.pages[index].obj["/Annots"]
            found = {position: annotations[position] for position in wanted}
        except (MemoryError, OSError):
            raise
        except Exception:  # noqa: BLE001 (pikepdf's errors have no common base, and a file that PDFium has opened is no error)
            return {}
        return {position: item for position, item in found.items() if isinstance(item, pikepdf.Dictionary)}


def _hide(page: "pdfium.FPDF_PAGE", position: int, undo: ExitStack) -> None:
    """Hides an annotation until ``undo`` is closed."""
    annotation = undo.enter_context(open_annotation(page, position))
    flags = pdfium.FPDFAnnot_GetFlags(annotation)
    pdfium.FPDFAnnot_SetFlags(annotation, flags | pdfium.FPDF_ANNOT_FLAG_HIDDEN)
    undo.callback(pdfium.FPDFAnnot_SetFlags, annotation, flags)
