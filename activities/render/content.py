"""Looks for damage in the content of a page, which PDFium draws as far as it can, without a word. Loaded in render children only.

1. A content stream that is compressed by Flate ends with a checksum. It is inflated here once more: 10 ms of CPU for 1 MB of the file,
   which was 0.3 to 1.3 % of what the sheets of three plan sets took.
2. A content stream that is compressed in another way, or not at all, has no checksum. Form XObjects are not looked at.
3. PDFium inflates a stream to 1 GiB at most, and draws the page without the rest. For an image its size tells.
4. A file that pikepdf cannot read, or in which it does not find the pages that PDFium found, is not looked at.
5. Content that is not there, because its object is missing, counts as damaged. So does ``/Contents null``, which pikepdf reads alike.
"""

import zlib
from itertools import islice
from pathlib import Path
from typing import Any

import pikepdf

from activities.bucket.records import Note
from activities.render.objects.reader import PdfObjects
from activities.render.passwords import open_with_pikepdf

CONTENT_DAMAGED = Note("ContentDamaged", "The drawing is damaged in the file: parts of this sheet may be missing or wrong.")

MOST_STREAMS = 1_000
"""Content streams of a page that are looked at."""

MOST_IMAGES = 10_000
"""Images and forms of a page that are looked at."""

MOST_INFLATED_BYTES = 1 << 30
"""PDFium's limit: ``kMaxTotalOutSize`` in
https://pdfium.googlesource.com/pdfium/+/refs/heads/chromium/8149/core/fxcodec/flate/flatemodule.cpp
"""

_PIECE_BYTES = 32 << 10
_COMPONENTS = {"/DeviceRGB": 3, "/CalRGB": 3, "/Lab": 3, "/DeviceCMYK": 4}


class PageContents:
    """The contents of the pages of an open document.

    Args:
        source: Its file, which is opened once more only if it must be repaired.
        objects: The same document as pikepdf reads it.
        page_count: How many pages PDFium found.
        password: Opens the document.
    """

    def __init__(self, source: Path, objects: PdfObjects, page_count: int, password: str = "") -> None:
        self._source = source
        self._objects = objects
        self._password = password
        self._page_count = page_count
        self._pdf: pikepdf.Pdf | None = None
        self._is_unreadable = False
        self._damaged: dict[tuple[int, int], bool] = {}
        """Whether a content stream is damaged, by object number and generation."""

    def close(self) -> None:
        """Closes the file."""
        if self._pdf is not None:
            self._pdf.close()

    def notes(self, index: int) -> tuple[Note, ...]:
        """A note if the content of a page is damaged, and one if an image of it is too large to be drawn whole.

        Args:
            index: 0-based.

        Raises:
            OSError: The file cannot be read.
            MemoryError: There is not enough memory.
        """
        try:
            pdf = self._open()
            if pdf is None:
                return ()
            page = pdf.pages[index]
            # A dictionary has an entry with a missing object only among its items.
            contents: Any = next((value for key, value in page.obj.items() if key == "/Contents"), pikepdf.Array())
            streams = contents if isinstance(contents, pikepdf.Array) else [contents]
            notes = (CONTENT_DAMAGED,) if any(map(self._is_damaged, islice(streams, MOST_STREAMS))) else ()
            return (*notes, *_image_notes(page))
        except (MemoryError, OSError):
            raise
        except Exception:  # noqa: BLE001 (pikepdf's errors have no common base, and a file that PDFium has opened is no error)
            return ()

    def _is_damaged(self, stream: Any) -> bool:
        if not isinstance(stream, pikepdf.Stream):
            return True
        if stream.objgen not in self._damaged:
            self._damaged[stream.objgen] = _is_damaged(stream)
        return self._damaged[stream.objgen]

    def _open(self) -> pikepdf.Pdf | None:
        """The document; None where pikepdf cannot read it."""
        if (pdf := self._objects.pdf()) is not None:
            return pdf
        if self._pdf is None and not self._is_unreadable:
            self._is_unreadable = True
            pdf = open_with_pikepdf(self._source, self._password, suppress_warnings=True, access_mode=pikepdf.AccessMode.stream)
            if len(pdf.pages) == self._page_count:
                self._pdf, self._is_unreadable = pdf, False
            else:
                pdf.close()
        return self._pdf


def _is_damaged(stream: pikepdf.Stream) -> bool:
    """Whether a stream does not inflate to its end, or to other bytes than were compressed."""
    if _filters(stream)[:1] != ["/FlateDecode"]:
        return False
    data, inflate, inflated_bytes = memoryview(stream.read_raw_bytes()), zlib.decompressobj(), 0
    if not data:
        return False
    try:
        for start in range(0, len(data), _PIECE_BYTES):
            inflated_bytes += len(inflate.decompress(data[start : start + _PIECE_BYTES]))
            if inflated_bytes > MOST_INFLATED_BYTES:
                return True
            if inflate.eof:
                return False
    except zlib.error:
        return True
    # A file may give a length that is too short by some bytes. If only the checksum is cut off, zlib has the whole content already, and
    # takes any bytes that follow for the checksum.
    try:
        inflate.decompress(b"\x00\x00\x00\x01")
    except zlib.error as error:
        return "incorrect data check" not in str(error)
    return not inflate.eof


def _image_notes(page: pikepdf.Page) -> tuple[Note, ...]:
    """A note on the first image that PDFium cannot inflate whole."""
    images: Any = page.resources.get("/XObject", {})
    for image in islice(images.values(), MOST_IMAGES):
        if image.get("/Subtype") == "/Image" and _filters(image)[-1:] in (["/FlateDecode"], ["/LZWDecode"]):
            width, height = int(image["/Width"]), int(image["/Height"])
            row_bytes = -(-width * int(image.get("/BitsPerComponent", 1)) * _components(image.get("/ColorSpace")) // 8)
            if row_bytes * height > MOST_INFLATED_BYTES:
                return (Note("ImageNotDrawn", f"An image of {width:,} x {height:,} px is too large: a part of it is not drawn."),)
    return ()


def _components(space: Any) -> int:
    """How many numbers a pixel of a colour space has: ISO 32000-1, section 8.6."""
    kind = space[0] if isinstance(space, pikepdf.Array) else space
    if kind == "/ICCBased":
        return int(space[1]["/N"])
    return len(space[1]) if kind == "/DeviceN" else _COMPONENTS.get(str(kind), 1)


def _filters(stream: Any) -> list[str]:
    filters = stream.get("/Filter")
    return [str(each) for each in (filters if isinstance(filters, pikepdf.Array) else [filters])]
