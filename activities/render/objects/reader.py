"""The objects of a PDF that PDFium has opened, as pikepdf reads them. Loaded in render children only."""

from pathlib import Path

import pikepdf

from activities.render.passwords import open_with_pikepdf


class PdfObjects:
    """Opens a document by pikepdf when this is first asked for, and keeps it open.

    Args:
        source: The file.
        password: Opens it; may be empty.
        page_count: How many pages PDFium has found.
    """

    def __init__(self, source: Path, password: str, page_count: int) -> None:
        self._source = source
        self._password = password
        self._page_count = page_count
        self._opened: pikepdf.Pdf | None = None
        self._is_unreadable = False

    def pdf(self) -> pikepdf.Pdf | None:
        """The document; None where pikepdf cannot read it, or finds other pages than PDFium.

        Raises:
            OSError: The file cannot be read.
            MemoryError: There is not enough memory.
        """
        if self._opened is None and not self._is_unreadable:
            self._is_unreadable = True
            try:
                options = {"suppress_warnings": True, "attempt_recovery": False, "access_mode": pikepdf.AccessMode.stream}
                pdf = open_with_pikepdf(self._source, self._password, **options)
                if len(pdf.pages) == self._page_count:
                    self._opened = pdf
            except (MemoryError, OSError):
                raise
            except Exception:  # noqa: BLE001 (pikepdf's errors have no common base, and a file that PDFium has opened is no error)
                return None
        return self._opened

    def close(self) -> None:
        """Closes the file."""
        if self._opened is not None:
            self._opened.close()
