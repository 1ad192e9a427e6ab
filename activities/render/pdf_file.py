"""Opens a PDF. Loaded in render children only."""

from pathlib import Path

import pypdfium2.raw as pdfium

from activities.bucket.records import Note, UploadOptions
from activities.errors import NoPages, NotAPdf, PasswordRequired, UnreadablePdf
from activities.render.annotations.page import DocumentAnnotations
from activities.render.content import PageContents
from activities.render.fonts import mapper
from activities.render.objects.layers import read_layers, written_with
from activities.render.objects.reader import PdfObjects
from activities.render.passwords import open_with_pdfium
from activities.render.structure import has_no_pages

HEADER_BYTES = 1024
"""Readers accept the ``%PDF-`` header anywhere in the first 1,024 bytes: PDF 1.7 reference, appendix H, note 13.
https://opensource.adobe.com/dc-acrobat-sdk-docs/pdfstandards/pdfreference1.7old.pdf
"""

_NOT_GIVEN = "the PDF opens only with a password, and the server has none: a password is forgotten when its upload ends"
_WRONG = "the PDF opens only with a password, and the password that was given is wrong"


LAYER_UNCERTAIN = "The layers may not be drawn as they should be: the PDF could not be written anew with them switched."

_AS_DRAWN = UploadOptions()


class PdfFile:
    """An open PDF.

    Args:
        source: The file.
        password: Opens it; a document that opens without one does not need it.
        options: ``layers`` and ``markups`` decide what is drawn.

    Attributes:
        source: The file.
        password: The password that was given.
        options: The options.
        document: PDFium's handle.
        objects: The same document as pikepdf reads it.
        layers: Its layers, as they are drawn.
        layer_notes: A note for each sheet where the layers may not be as the author or the upload wants them.
        annotations: The annotations of all pages.
        page_count: At least 1.
        contents: The contents of all pages.

    Raises:
        NotAPdf: No ``%PDF-`` in its first 1,024 bytes.
        PasswordRequired: It opens only with a password, which is missing or wrong.
        NoPages: It has no page.
        UnreadablePdf: PDFium cannot open it for another reason.
    """

    def __init__(self, source: Path, password: str = "", options: UploadOptions = _AS_DRAWN) -> None:
        with source.open("rb") as file:
            if b"%PDF-" not in file.read(HEADER_BYTES):
                msg = f"no %PDF- header in the first {HEADER_BYTES:,} bytes"
                raise NotAPdf(msg)
        mapper.install()
        self.source = source
        self.password = password
        self.options = options
        self._copy: bytes | None = None
        self.document = open_with_pdfium(source, password)
        if not self.document:
            code = pdfium.FPDF_GetLastError()
            if code == pdfium.FPDF_ERR_PASSWORD:
                raise PasswordRequired(_WRONG if password else _NOT_GIVEN)
            reason = {
                pdfium.FPDF_ERR_FILE: "the file cannot be read",
                pdfium.FPDF_ERR_FORMAT: "its structure is damaged or cut off",
                pdfium.FPDF_ERR_SECURITY: "it is protected in a way that cannot be opened",
            }.get(code, f"PDFium error {code}")
            msg = f"the PDF cannot be opened: {reason}"
            raise UnreadablePdf(msg)
        self.page_count = int(pdfium.FPDF_GetPageCount(self.document))
        if self.page_count < 1:
            pdfium.FPDF_CloseDocument(self.document)
            if has_no_pages(source, password):
                msg = "the PDF has no page"
                raise NoPages(msg)
            msg = "the PDF cannot be opened: its pages cannot be found"
            raise UnreadablePdf(msg)
        self.objects = PdfObjects(source, password, self.page_count)
        self.contents = PageContents(source, self.objects, self.page_count, password)
        self.layers = read_layers(self.objects.pdf(), options.layers)
        self.annotations = self._annotations()
        is_uncertain = self.layers.is_changed and not self.write_anew()
        self.layer_notes = (Note("LayerUncertain", LAYER_UNCERTAIN),) if is_uncertain else ()

    @property
    def is_written_anew(self) -> bool:
        """Whether PDFium reads a document in memory, whose layers are as they should be, instead of the file."""
        return self._copy is not None

    def write_anew(self) -> bool:
        """Replaces the document by a copy in memory whose layers PDFium draws as they should be; returns whether this is done.

        No page may be loaded.
        """
        pdf = self.objects.pdf()
        if pdf is None or self.is_written_anew:
            return self.is_written_anew
        try:
            contents = written_with(pdf, self.layers)
        except (MemoryError, OSError):
            raise
        except Exception:  # noqa: BLE001 (any nonsense may stand in a dictionary, and pikepdf's errors have no common base)
            return False
        document = pdfium.FPDF_LoadMemDocument64(contents, len(contents), None)
        if not document or pdfium.FPDF_GetPageCount(document) != self.page_count:
            pdfium.FPDF_CloseDocument(document)
            return False
        self.annotations.close()
        pdfium.FPDF_CloseDocument(self.document)
        self.document = document
        self.annotations = self._annotations()
        self._copy = contents  # PDFium reads it until the document is closed.
        return True

    def _annotations(self) -> DocumentAnnotations:
        return DocumentAnnotations(self.document, self.objects, self.layers, with_markups=self.options.markups)

    def close(self) -> None:
        """Closes the document and frees its memory."""
        self.contents.close()
        self.annotations.close()
        self.objects.close()
        pdfium.FPDF_CloseDocument(self.document)
        self._copy = None
