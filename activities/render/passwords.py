"""Opens encrypted PDFs with a password in every form that it may have in the file. Loaded in render children only.

A file has its password as bytes: with the encryption of revision 6 UTF-8 after SASLprep, before in PDFDocEncoding (ISO 32000-2, 7.6.4).
Not every program follows, so each form is tried.
"""

import unicodedata
from pathlib import Path
from typing import Any

import pikepdf
import pypdfium2.raw as pdfium


def password_forms(password: str) -> list[bytes]:
    """The bytes that may stand for a password, without duplicates; none for an empty password."""
    texts = list(filter(None, dict.fromkeys((password, unicodedata.normalize("NFKC", password)))))
    forms = [text.encode() for text in texts]
    for text in texts:
        try:
            forms.append(text.encode("pdfdoc"))
        except UnicodeEncodeError:
            continue
    return list(dict.fromkeys(forms))


def open_with_pdfium(source: Path, password: str) -> "pdfium.FPDF_DOCUMENT | None":
    """Opens a PDF, first without a password, because many encrypted files need none.

    Args:
        source: The file.
        password: May be empty.

    Returns:
        PDFium's handle. None if it cannot be opened; ``FPDF_GetLastError`` then says why.
    """
    for form in (None, *password_forms(password)):
        if document := pdfium.FPDF_LoadDocument(str(source).encode(), form):
            return document
        if pdfium.FPDF_GetLastError() != pdfium.FPDF_ERR_PASSWORD:
            return None
    return None


def open_with_pikepdf(source: Path, password: str, **options: Any) -> pikepdf.Pdf:
    """Opens a PDF in the same way.

    Args:
        source: The file.
        password: May be empty.
        options: Of ``pikepdf.open``.

    Raises:
        pikepdf.PasswordError: The password does not open the file.
    """
    for form in (b"", *password_forms(password)):
        try:
            return pikepdf.open(source, password=form, **options)
        except pikepdf.PasswordError as error:
            refusal = error
    raise refusal
