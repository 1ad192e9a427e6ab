"""Annotations of a page as PDFium's handles. Loaded in render children only."""

from collections.abc import Iterator
from contextlib import contextmanager

import pypdfium2.raw as pdfium

MOST_ANNOTATIONS = 20_000
"""Annotations of one page that are looked at; those behind them are not."""

EMPTY_TEXT_BYTES = 2
"""Size that PDFium reports for a text without characters: its terminator."""

_OFF_SCREEN = pdfium.FPDF_ANNOT_FLAG_HIDDEN | pdfium.FPDF_ANNOT_FLAG_NOVIEW


def positions(page: "pdfium.FPDF_PAGE") -> range:
    """The positions in the page's ``/Annots`` that are looked at."""
    return range(min(pdfium.FPDFPage_GetAnnotCount(page), MOST_ANNOTATIONS))


@contextmanager
def open_annotation(page: "pdfium.FPDF_PAGE", position: int) -> Iterator["pdfium.FPDF_ANNOTATION"]:
    """The annotation at a position in the page's ``/Annots``."""
    annotation = pdfium.FPDFPage_GetAnnot(page, position)
    try:
        yield annotation
    finally:
        pdfium.FPDFPage_CloseAnnot(annotation)


def is_off_screen(annotation: "pdfium.FPDF_ANNOTATION") -> bool:
    """Whether its flags keep the annotation off the screen."""
    return bool(pdfium.FPDFAnnot_GetFlags(annotation) & _OFF_SCREEN)


def appearance_bytes(annotation: "pdfium.FPDF_ANNOTATION") -> int:
    """The size of its normal appearance as a text, terminator included."""
    return int(pdfium.FPDFAnnot_GetAP(annotation, pdfium.FPDF_ANNOT_APPEARANCEMODE_NORMAL, None, 0))


def has_appearance(annotation: "pdfium.FPDF_ANNOTATION") -> bool:
    """Whether the PDF has an appearance for it that is not empty. PDFium marks the appearances that it has made itself."""
    return bool(
        pdfium.FPDFAnnot_HasKey(annotation, b"AP")
        and not pdfium.FPDFAnnot_HasKey(annotation, b"PDFIUM_HasGeneratedAP")
        and appearance_bytes(annotation) > EMPTY_TEXT_BYTES
    )
