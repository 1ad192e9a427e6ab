"""Makes PDFium draw the form fields of a page. Loaded in render children only.

1. PDFium draws form fields through its form environment, never with the page. It draws each field once, even a field that no AcroForm
   lists, and makes an appearance for a field that has none.
2. Nothing in a document runs: the form environment gets no JavaScript platform, and no action is called.
3. An appearance that PDFium has made stays in the open document, so ``_made`` remembers its field: the notes are the same each time.
"""

import unicodedata
from contextlib import ExitStack
from itertools import filterfalse

import pypdfium2.raw as pdfium

from activities.bucket.records import Note
from activities.render.annotations.handles import EMPTY_TEXT_BYTES, appearance_bytes, has_appearance, is_off_screen, open_annotation
from activities.render.strings import read_text, utf16

_MADE_STATE = "Yes"
"""The state of a button that is on, in the appearances that PDFium makes, whatever ``/AS`` says: ``CPDF_FormControl::GetCheckedAPState`` in
https://pdfium.googlesource.com/pdfium/+/refs/heads/chromium/8149/core/fpdfdoc/cpdf_formcontrol.cpp
"""

_NO_FIELD = -1
"""The field type of a widget that PDFium does not take for a field."""


class FormFields:
    """The form fields of an open document.

    Args:
        document: It stays the caller's, who closes these fields before the document.
    """

    def __init__(self, document: "pdfium.FPDF_DOCUMENT") -> None:
        self._document = document
        # Kept, because PDFium keeps only its address.
        self._form_info = pdfium.FPDF_FORMFILLINFO(version=2, xfa_disabled=True)
        self._form: pdfium.FPDF_FORMHANDLE | None = None
        self._made: set[tuple[int, int]] = set()
        """Page index and position of each field whose appearance PDFium has made."""

    def close(self) -> None:
        """Ends the form environment."""
        if self._form is not None:
            pdfium.FPDFDOC_ExitFormFillEnvironment(self._form)

    def prepare(
        self, page: "pdfium.FPDF_PAGE", index: int, fields: list[int], undo: ExitStack
    ) -> tuple["pdfium.FPDF_FORMHANDLE", tuple[Note, ...]]:
        """Makes the fields of a page ready to be drawn.

        Args:
            page: Loaded.
            index: 0-based.
            fields: Positions of the fields in the page's ``/Annots``.
            undo: Gets the calls that must be made before the page is closed.

        Returns:
            The form environment; and a note where characters may be missing.
        """
        if self._form is None:
            self._form = pdfium.FPDFDOC_InitFormFillEnvironment(self._document, self._form_info)
            pdfium.FPDF_SetFormFieldHighlightAlpha(self._form, 0)
        sizes_before = {position: _appearance_bytes(page, position) for position in fields}
        without = {position for position in fields if not _has_appearances(page, position)}
        pdfium.FORM_OnAfterLoadPage(page, self._form)
        undo.callback(pdfium.FORM_OnBeforeClosePage, page, self._form)
        self._made.update((index, position) for position in fields if _appearance_bytes(page, position) != sizes_before[position])
        unwritten: set[str] = set()
        for position in fields:
            with open_annotation(page, position) as field:
                if (index, position) in self._made and not is_off_screen(field):
                    unwritten.update(filterfalse(_is_written, read_text(pdfium.FPDFAnnot_GetFormFieldValue, self._form, field)))
                kind = pdfium.FPDFAnnot_GetFormFieldType(self._form, field)
                if kind == _NO_FIELD and has_appearance(field):
                    # As a watermark, its appearance is drawn with the page. It must be no review markup, because these may be left out.
                    pdfium.FPDFAnnot_SetStringValue(field, b"Subtype", utf16("Watermark"))
                elif kind in (pdfium.FPDF_FORMFIELD_CHECKBOX, pdfium.FPDF_FORMFIELD_RADIOBUTTON) and pdfium.FPDFAnnot_HasKey(field, b"AP"):
                    state = read_text(pdfium.FPDFAnnot_GetStringValue, field, b"AS")
                    if position in without and state not in ("", "Off") and appearance_bytes(field) <= EMPTY_TEXT_BYTES:
                        pdfium.FPDFAnnot_SetStringValue(field, b"AS", utf16(_MADE_STATE))
                    _settle_button(field)
        if not unwritten:
            return self._form, ()
        text = f"{len(unwritten):,} characters of form fields may be missing, for the PDF does not say how they look"
        return self._form, (Note("FontMissing", f"{text}: {' '.join(sorted(unwritten)[:10])}"),)


def _appearance_bytes(page: "pdfium.FPDF_PAGE", position: int) -> int:
    with open_annotation(page, position) as field:
        return appearance_bytes(field)


def _has_appearances(page: "pdfium.FPDF_PAGE", position: int) -> bool:
    """Whether there is an appearance dictionary; one for other states than the field's is enough."""
    with open_annotation(page, position) as field:
        return bool(pdfium.FPDFAnnot_HasKey(field, b"AP"))


def _is_written(character: str) -> bool:
    """Whether PDFium writes a character into an appearance that it makes: it knows only Windows code pages. Tried with 159.0.8149."""
    if unicodedata.category(character)[0] in "CZ" or unicodedata.east_asian_width(character) in "WF":
        return True
    code_pages = ["cp1252"]
    if "\u0100" <= character < "\u0180" or ("\u0370" <= character < "\u0e80" and character != "\u06a9"):
        code_pages += ["cp1250", "cp1253", "cp1251", "cp1255", "cp1256", "cp874"]
    elif "\u2000" <= character < "\u2070":
        code_pages += ["gbk"]
    return any(character.encode(code_page, "ignore") for code_page in code_pages)


def _settle_button(field: "pdfium.FPDF_ANNOTATION") -> None:
    """Makes PDFium draw the appearance of a button's state, and nothing where the state has none: it would draw a grey frame."""
    if not pdfium.FPDFAnnot_HasKey(field, b"AS"):
        size = pdfium.FPDFAnnot_GetStringValue(field, b"V", None, 0)
        value = (pdfium.FPDF_WCHAR * max(1, size // 2))()
        pdfium.FPDFAnnot_GetStringValue(field, b"V", value, size)
        pdfium.FPDFAnnot_SetStringValue(field, b"AS", value if value[0] else utf16("Off"))
    if appearance_bytes(field) <= EMPTY_TEXT_BYTES:
        pdfium.FPDFAnnot_SetFlags(field, pdfium.FPDFAnnot_GetFlags(field) | pdfium.FPDF_ANNOT_FLAG_HIDDEN)
