"""PDFs of the tests, opened as a render child opens them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from activities.bucket.records import UploadOptions
from activities.render.pdf_file import PdfFile

_AS_DRAWN = UploadOptions()


@contextmanager
def opened(directory: Path, data: bytes, password: str = "", options: UploadOptions = _AS_DRAWN) -> Iterator[PdfFile]:
    """The PDF, open; it is written into the directory as ``source.pdf``."""
    path = directory / "source.pdf"
    path.write_bytes(data)
    pdf = PdfFile(path, password, options)
    try:
        yield pdf
    finally:
        pdf.close()
