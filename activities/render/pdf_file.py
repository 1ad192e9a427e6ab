"""Opens a PDF. Loaded in render children only."""

from pathlib import Path

import pypdfium2.raw as pdfium

from activities.errors import NoPages, NotAPdf, PasswordRequired, UnreadablePdf
from activities.render.annotations.page import DocumentAnnotations
from activities.render.content import PageContents
from activities.render.fonts import mapper
from activities.render.passwords import password_forms
from activities.render.structure import has_no_pages

HEADER_BYTES = 1024
"""Readers accept the ``%PDF-`` header anywhere in the first 1,024 bytes: PDF 1.7 reference, appendix H, note 13.
https://opensource.adobe.com/dc-acrobat-sdk-docs/pdfstandards/pdfreference1.7old.pdf
"""

_NOT_GIVEN = "the PDF opens only with a password, and the server has none: a password is forgotten when its upload ends"
_WRONG = "the PDF opens only with a password, and the password that was given is wrong"


class PdfFile:
    """An open PDF.

    Args:
        source: The file.
        password: Opens it; a document that opens without one does not need it.

    Attributes:
        source: The file.
        password: The password that was given.
        document: PDFium's handle.
        annotations: The annotations of all pages.
        page_count: At least 1.
        contents: The contents of all pages.

    Raises:
        NotAPdf: No ``%PDF-`` in its first 1,024 bytes.
        PasswordRequired: It opens only with a password, which is missing or wrong.
        NoPages: It has no page.
        UnreadablePdf: PDFium cannot open it for another reason.
    """

    def __init__(self, source: Path, password: str = "") -> None:
        with source.open("rb") as file:
            if b"%PDF-" not in file.read(HEADER_BYTES):
                msg = f"no %PDF- header in the first {HEADER_BYTES:,} bytes"
                raise NotAPdf(msg)
        mapper.install()
        self.source = source
        self.password = password
        code = pdfium.FPDF_ERR_SUCCESS
        for form in (None, *password_forms(password)):
            self.document = pdfium.FPDF_LoadDocument(str(source).encode(), form)
            code = pdfium.FPDF_ERR_SUCCESS if self.document else pdfium.FPDF_GetLastError()
            if code != pdfium.FPDF_ERR_PASSWORD:
                break
        if not self.document:
            if code == pdfium.FPDF_ERR_PASSWORD:
                raise PasswordRequired(_WRONG if password else _NOT_GIVEN)
            reason = {
                pdfium.FPDF_ERR_FILE: "the file cannot be read",
                pdfium.FPDF_ERR_FORMAT: "its structure is damaged or cut off",
                pdfium.FPDF_ERR_SECURITY: "it is protected in a way that cannot be opened",
            }.get(code, f"PDFium error {code}")
            msg = f"the PDF cannot be opened: {reason}"
            raise UnreadablePdf(msg)
        self.annotations = DocumentAnnotations(self.document, source, password)
        self.page_count = int(pdfium.FPDF_GetPageCount(self.document))
        self.contents = PageContents(source, self.page_count, password)
        if self.page_count < 1:
            self.close()
            if has_no_pages(source, password):
                msg = "the PDF has no page"
                raise NoPages(msg)
            msg = "the PDF cannot be opened: its pages cannot be found"
            raise UnreadablePdf(msg)

    def close(self) -> None:
        """Closes the document and frees its memory."""
        self.contents.close()
        self.annotations.close()
        pdfium.FPDF_CloseDocument(self.document)
