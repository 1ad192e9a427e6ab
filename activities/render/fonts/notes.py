"""What a sheet says of the fonts that the PDF does not embed. Loaded in render children only.

1. The twelve standard fonts, and Arimo for Arial, are not noted: they look like the fonts that the PDF names, and half of all plans
   name one.
2. Any other substitute is noted, and so are characters without a glyph.
"""

import re
from collections.abc import Iterable, Iterator

from activities.bucket.records import Note
from activities.render.fonts.faces import BUILT_IN_GENERIC_SANS, BUILT_IN_GENERIC_SERIF, BUILT_IN_STANDARD, BUILT_IN_SYMBOLS
from activities.render.fonts.mapper import family_key, without_subset_tag
from activities.render.fonts.page import UnembeddedFont

MOST_NOTED_FONTS = 50

_GENERIC = {
    BUILT_IN_GENERIC_SANS: "a general sans-serif font of the same widths",
    BUILT_IN_GENERIC_SERIF: "a general serif font of the same widths",
}
_FIELD_FONTS = {b"ChromeSansMM", b"ChromeSerifMM"}
"""The only names that PDFium has for the fonts of text that it makes for form fields."""

_PICTURE_FONT_NAME = re.compile(b"dings|symbol", re.IGNORECASE)
"""Matches the names of fonts whose letters are pictures."""


def font_notes(fonts: Iterable[UnembeddedFont]) -> tuple[Note, ...]:
    """A note for each font that was substituted, and for each that lacks characters; each font is noted once."""
    merged: dict[tuple[bytes, str], UnembeddedFont] = {}
    for font in fonts:
        same = merged.setdefault((font.name, font.family), UnembeddedFont(font.name, font.family))
        same.characters |= font.characters
        same.unmapped += font.unmapped
    return tuple(note for font in list(merged.values())[:MOST_NOTED_FONTS] for note in _notes_of(font))


def _notes_of(font: UnembeddedFont) -> Iterator[Note]:
    name = "of a form field" if font.name in _FIELD_FONTS else _shown(font.name)
    absent = f"The font {name} is not in the PDF"
    if font.family in _GENERIC and _PICTURE_FONT_NAME.search(font.name):
        yield Note("FontMissing", f"{absent}: its signs are drawn as letters.")
        return
    looks_alike = font.family in BUILT_IN_STANDARD | BUILT_IN_SYMBOLS or (font.family, family_key(font.name)) == ("Arimo", "helvetica")
    if not looks_alike:
        yield Note("FontSubstituted", f"{absent}: its text is drawn with {_GENERIC.get(font.family, font.family)}.")
    if font.unmapped:
        yield Note("FontMissing", f"{absent}, which does not say what its text is: {font.unmapped:,} characters are wrong or not drawn.")
    if missing := sorted(font.missing):
        yield Note("FontMissing", f"{absent}: {len(missing):,} of its characters are not drawn: {' '.join(missing[:10])}")


def _shown(name: bytes) -> str:
    """A font's name, fit to show: a PDF may name it anything."""
    printable = "".join(filter(str.isprintable, without_subset_tag(name.decode(errors="replace"))))
    return f"\N{LEFT DOUBLE QUOTATION MARK}{printable[:60]}\N{RIGHT DOUBLE QUOTATION MARK}"
