"""The title of each page of a PDF: its bookmark, else its page label. Loaded in render children only.

1. PDFium's functions are called below pypdfium2's helper for outlines, which raises an error where an outline loops.
2. PDFium also resolves the page of a remote go-to action, which is a page of another file: only GoTo actions name pages of this file.
"""

import ctypes
import unicodedata

import pypdfium2.raw as pdfium

from activities.render.strings import read_text

MOST_CHARACTERS = 120
"""Characters of a title."""

MOST_OUTLINE_ITEMS = 20_000
"""Outline items that are looked at: ten for each page of the largest document."""


def page_titles(document: "pdfium.FPDF_DOCUMENT", page_count: int) -> list[str | None]:
    """The title of each page, by page index."""
    titles = _bookmarks(document, page_count)
    return [titles.get(index) or clean_title(read_text(pdfium.FPDF_GetPageLabel, document, index)) for index in range(page_count)]


def clean_title(text: str, most_characters: int = MOST_CHARACTERS) -> str | None:
    """A title fit to show: no control or invisible characters, single spaces, not too long; None when nothing is left."""
    words = " ".join(text.split())
    visible = "".join(character for character in words if unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Cn"})
    return visible.strip()[:most_characters].strip() or None


def _bookmarks(document: "pdfium.FPDF_DOCUMENT", page_count: int) -> dict[int, str]:
    """Page index to the title of the first outline item that points at the page, in reading order."""
    titles: dict[int, str] = {}
    seen: set[int] = set()
    stack = [pdfium.FPDFBookmark_GetFirstChild(document, None)]
    while stack and len(seen) < MOST_OUTLINE_ITEMS:
        item = stack.pop()
        address = ctypes.cast(item, ctypes.c_void_p).value
        if address is None or address in seen:
            continue
        seen.add(address)
        stack.append(pdfium.FPDFBookmark_GetNextSibling(document, item))
        stack.append(pdfium.FPDFBookmark_GetFirstChild(document, item))
        index = _page_index(document, item)
        if 0 <= index < page_count and index not in titles and (title := clean_title(read_text(pdfium.FPDFBookmark_GetTitle, item))):
            titles[index] = title
    return titles


def _page_index(document: "pdfium.FPDF_DOCUMENT", item: "pdfium.FPDF_BOOKMARK") -> int:
    """The index of the page that an outline item points at; -1 where it points at no page of this document."""
    action = pdfium.FPDFBookmark_GetAction(item)
    if action and pdfium.FPDFAction_GetType(action) != pdfium.PDFACTION_GOTO:
        return -1
    destination = pdfium.FPDFBookmark_GetDest(document, item)
    return int(pdfium.FPDFDest_GetDestPageIndex(document, destination)) if destination else -1
