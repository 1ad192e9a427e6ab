"""The fonts that the visible text of a page uses and the PDF does not embed. Loaded in render children only.

1. PDFium names a font that it asks for but not its text, and "ArialMT" may be Cyrillic or Arabic. So the characters of the page are
   read here, and where some have no glyph, ``choose_faces`` finds the face that has most of them. The page is then drawn from a document
   opened anew, because PDFium keeps the fonts of a document.
2. So pixels and notes follow from the page alone, whatever pages the child has drawn before it.
3. Text that is never painted, such as the text layer behind a scan, does not count.
4. Text within a tiling pattern or a soft mask is not checked: PDFium asks for its fonts only once for a document and does not tell which
   page they belong to. Where such text lacks glyphs, no note says so.
"""

import ctypes
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pypdfium2.raw as pdfium

from activities.bucket.records import Note
from activities.render.annotations.handles import is_off_screen, open_annotation, positions
from activities.render.fonts.faces import BUILT_IN_CHARACTERS, BUILT_IN_SYMBOLS, FACES_BY_COVERAGE, Face, characters_of
from activities.render.fonts.mapper import family_key, install
from activities.render.passwords import open_with_pdfium
from activities.render.strings import read_bytes, read_text

MOST_CHARACTERS = 500_000
"""Characters of a page that are checked."""

SAMPLED_CHARACTERS = 5_000
"""Of the characters behind them, about so many are looked at: only whether their fonts are embedded."""

MOST_APPEARANCES = 2_000
"""Annotations with an appearance that are checked."""

MOST_OBJECTS = 100_000
"""Objects of a page's appearances that are checked. A stamp of a real plan has up to 2,000."""

MOST_NESTED_FORMS = 10
"""Form XObjects within one another that are checked."""


@dataclass
class UnembeddedFont:
    """A font of a page that the PDF does not embed.

    Args:
        name: Its name in the PDF, in whatever encoding.
        family: The family that PDFium draws its text with.
        characters: The characters of its text.
        unmapped: How many codes of its text the PDF maps to no character.
    """

    name: bytes
    family: str
    characters: set[str] = field(default_factory=set)
    unmapped: int = 0

    @property
    def missing(self) -> set[str]:
        """The characters that neither the family nor the built-in font, which PDFium falls back to, has a glyph for."""
        return set() if self.family in BUILT_IN_SYMBOLS else self.characters - BUILT_IN_CHARACTERS - characters_of(self.family)


def unembedded_fonts(
    page: "pdfium.FPDF_PAGE", form: "pdfium.FPDF_FORMHANDLE | None", source: Path, index: int, password: str = ""
) -> tuple[list[UnembeddedFont], tuple[Note, ...]]:
    """The fonts of annotations, then of the page's content; and notes on text that was not checked.

    Args:
        page: Loaded; its annotations are ready to be drawn.
        form: The form environment of a page with fields.
        source: The file.
        index: 0-based.
        password: Opens the file.
    """
    fonts = _FontTable()
    if not _read_annotations(page, form, fonts):
        with _flattened(source, index, password) as flat:
            if flat is None:
                fonts.unchecked.append("text in annotations")
            _read_content(flat or page, fonts)
    elif install().was_asked:
        _read_content(page, fonts)
    return fonts.unembedded(), tuple(Note("FontMissing", f"Not checked for missing glyphs: {text}.") for text in fonts.unchecked)


def choose_faces(fonts: Iterable[UnembeddedFont]) -> dict[str, Face]:
    """For each family that lacks characters, the face that has most of its characters, if it has more than the font drawn now.

    Returns:
        ``family_key`` to face, as ``mapper.prefer`` takes it.
    """
    characters: dict[str, set[str]] = {}
    missing: dict[str, set[str]] = {}
    for font in fonts:
        family = family_key(font.name)
        characters.setdefault(family, set()).update(font.characters)
        missing.setdefault(family, set()).update(font.missing)
    chosen = {}
    for family in filter(missing.get, missing):
        best = max(FACES_BY_COVERAGE, key=lambda face: len(characters[family] & characters_of(face.family)))
        if len(characters[family] & characters_of(best.family)) > len(characters[family] - missing[family]):
            chosen[family] = best
    return chosen


@contextmanager
def _flattened(source: Path, index: int, password: str) -> Iterator["pdfium.FPDF_PAGE | None"]:
    """A page of a document opened anew whose annotations have become part of its content; None where PDFium cannot do this."""
    document = open_with_pdfium(source, password)
    page = pdfium.FPDF_LoadPage(document, index)
    done = pdfium.FPDFPage_Flatten(page, pdfium.FLAT_NORMALDISPLAY) == pdfium.FLATTEN_SUCCESS
    pdfium.FPDF_ClosePage(page)
    page = pdfium.FPDF_LoadPage(document, index)
    try:
        yield page if done else None
    finally:
        pdfium.FPDF_ClosePage(page)
        pdfium.FPDF_CloseDocument(document)


class _FontTable:
    """The fonts of a page, by the address of PDFium's handle.

    Attributes:
        unchecked: Text that was not checked, in words for a user.
    """

    def __init__(self) -> None:
        self.unchecked: list[str] = []
        self._fonts: dict[int | None, UnembeddedFont | None] = {}

    def font_of(self, text_object: "pdfium.FPDF_PAGEOBJECT") -> UnembeddedFont | None:
        """The font of a text object; None where the PDF embeds it, or the text is not painted."""
        if pdfium.FPDFTextObj_GetTextRenderMode(text_object) == pdfium.FPDF_TEXTRENDERMODE_INVISIBLE:
            return None
        font = pdfium.FPDFTextObj_GetFont(text_object)
        address = ctypes.cast(font, ctypes.c_void_p).value
        if address not in self._fonts:
            self._fonts[address] = None if not font or pdfium.FPDFFont_GetIsEmbedded(font) else _unembedded(font)
        return self._fonts[address]

    def unembedded(self) -> list[UnembeddedFont]:
        """The fonts that the PDF does not embed. Spaces and control characters do not count among their characters."""
        fonts = [font for font in self._fonts.values() if font]
        for font in fonts:
            font.characters = {character for character in font.characters if unicodedata.category(character)[0] not in "CZ"}
        return fonts


def _unembedded(font: "pdfium.FPDF_FONT") -> UnembeddedFont:
    family = read_bytes(pdfium.FPDFFont_GetFamilyName, font).decode(errors="replace")
    return UnembeddedFont(read_bytes(pdfium.FPDFFont_GetBaseFontName, font), family)


def _read_content(page: "pdfium.FPDF_PAGE", fonts: _FontTable) -> None:
    """Reads the text of the page's content."""
    text = pdfium.FPDFText_LoadPage(page)
    if not text:
        return
    previous, font = None, None
    count = pdfium.FPDFText_CountChars(text)
    for index in range(min(count, MOST_CHARACTERS)):
        text_object = pdfium.FPDFText_GetTextObject(text, index)
        address = ctypes.cast(text_object, ctypes.c_void_p).value
        if address != previous:
            previous, font = address, fonts.font_of(text_object) if text_object else None
        if font is None:
            continue
        if pdfium.FPDFText_HasUnicodeMapError(text, index):
            font.unmapped += 1
        else:
            font.characters.add(chr(min(pdfium.FPDFText_GetUnicode(text, index), 0x10FFFF)))
    # A sample of the rest decides whether there is anything to note: nothing is missing where the PDF embeds all fonts.
    rest = range(MOST_CHARACTERS, count, max(1, (count - MOST_CHARACTERS) // SAMPLED_CHARACTERS))
    if any(text_object and fonts.font_of(text_object) for text_object in (pdfium.FPDFText_GetTextObject(text, index) for index in rest)):
        fonts.unchecked.append(f"{count - MOST_CHARACTERS:,} of {count:,} characters")
    pdfium.FPDFText_ClosePage(text)


def _read_annotations(page: "pdfium.FPDF_PAGE", form: "pdfium.FPDF_FORMHANDLE | None", fonts: _FontTable) -> bool:
    """Reads the text of the annotations. PDFium does not tell the text of an appearance: the annotation's contents or value stand for it.

    Returns:
        Whether every annotation with text in an unembedded font has contents or a value.
    """
    all_told = True
    appearances, cut_short, room = 0, 0, MOST_OBJECTS
    for position in positions(page):
        with open_annotation(page, position) as annotation:
            if not pdfium.FPDFAnnot_HasKey(annotation, b"AP") or is_off_screen(annotation):
                continue
            appearances += 1
            if appearances > MOST_APPEARANCES:
                continue
            objects = _objects(annotation)
            for item in islice(objects, room):
                room -= 1
                if pdfium.FPDFPageObj_GetType(item) == pdfium.FPDF_PAGEOBJ_TEXT and (font := fonts.font_of(item)):
                    text = _text_of(annotation, form)
                    font.characters.update(text)
                    all_told = all_told and bool(text)
            cut_short += next(objects, None) is not None
    if appearances > MOST_APPEARANCES:
        fonts.unchecked.append(f"{appearances - MOST_APPEARANCES:,} annotations")
    if cut_short:
        fonts.unchecked.append(f"the objects behind the first {MOST_OBJECTS:,}, in {cut_short:,} annotations")
    return all_told


def _objects(annotation: "pdfium.FPDF_ANNOTATION") -> Iterator["pdfium.FPDF_PAGEOBJECT"]:
    """The objects of an annotation's appearance and of the forms within it: the text of a signature lies three forms deep."""
    levels = [(pdfium.FPDFAnnot_GetObject, annotation, iter(range(pdfium.FPDFAnnot_GetObjectCount(annotation))))]
    while levels:
        get_object, parent, indexes = levels[-1]
        index = next(indexes, None)
        if index is None:
            levels.pop()
            continue
        item = get_object(parent, index)
        yield item
        if pdfium.FPDFPageObj_GetType(item) == pdfium.FPDF_PAGEOBJ_FORM and len(levels) < MOST_NESTED_FORMS:
            levels.append((pdfium.FPDFFormObj_GetObject, item, iter(range(pdfium.FPDFFormObj_CountObjects(item)))))


def _text_of(annotation: "pdfium.FPDF_ANNOTATION", form: "pdfium.FPDF_FORMHANDLE | None") -> str:
    """The value of a field, which may be its parent's; else the contents of the annotation."""
    value = read_text(pdfium.FPDFAnnot_GetFormFieldValue, form, annotation) if form else ""
    return value or read_text(pdfium.FPDFAnnot_GetStringValue, annotation, b"Contents")
