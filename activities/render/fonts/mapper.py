"""Answers PDFium's requests for the fonts that a PDF does not embed. Loaded in render children only.

1. The fonts of the host never decide a pixel: PDFium asks here for every font, and is given no folder to look in.
2. Latin text is drawn with PDFium's own fonts, because the answer for its fonts is no face. For Helvetica, Times and Courier, and for
   Arial, Times New Roman and Courier New of the usual widths, PDFium has twelve faces whose letters and digits are as wide as in Adobe's
   and Liberation's. For every other name it has a multiple-master font that takes the widths that the PDF gives.
   https://pdfium.googlesource.com/pdfium/+/refs/heads/chromium/8149/core/fxge/cfx_fontmapper.cpp (``UseInternalSubst``)
3. A font of a Chinese, Japanese or Korean character set gets the Noto face of that language.
4. PDFium asks once for each font of a document and keeps the answer until the document is closed.
"""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pypdfium2.raw as pdfium

from activities.render.fonts.faces import Face, east_asian_face

_STYLE_SUFFIX = re.compile("(bold|italic|oblique|regular|reg|roman|ps|mt|std)+$")
_SUBSET_TAG = re.compile("^[A-Z]{6}\\+")
_ALIASES = {"arial": "helvetica", "timesnew": "times", "couriernew": "courier"}


class FontMapper:
    """PDFium's source of fonts.

    Attributes:
        was_asked: Whether PDFium has asked for a font in this process. Where it has not, every page so far embeds its fonts.
        preferred: Font family, as ``family_key`` spells it, to the face that it gets whatever the rules say.
        failure: The last error of a callback, which cannot raise.
    """

    def __init__(self) -> None:
        self.was_asked = False
        self.preferred: dict[str, Face] = {}
        self.failure: OSError | None = None
        self._faces: list[Face] = []
        """The faces that PDFium was given; the handle of a face is its position, counted from 1."""
        types = dict(pdfium.FPDF_SYSFONTINFO._fields_)
        # Kept, because PDFium keeps only its address.
        self.interface = pdfium.FPDF_SYSFONTINFO(
            version=1,
            MapFont=types["MapFont"](self._map_font),
            GetFontData=types["GetFontData"](self._font_data),
            GetFaceName=types["GetFaceName"](self._face_name),
            DeleteFont=types["DeleteFont"](lambda _this, _handle: None),
        )

    def _map_font(
        self, _this: object, _weight: int, _italic: int, charset: int, pitch: int, name: "ctypes._Pointer[ctypes.c_char]", _exact: object
    ) -> int | None:
        """The handle of a face for a font; None for a font of PDFium's own."""
        self.was_asked = True
        font_name = ctypes.string_at(name)
        face = self.preferred.get(family_key(font_name)) or east_asian_face(charset, font_name, pitch)
        if face is None:
            return None
        if face not in self._faces:
            self._faces.append(face)
        return self._faces.index(face) + 1

    def _font_data(self, _this: object, handle: int, table: int, buffer: "ctypes._Pointer[ctypes.c_char]", size: int) -> int:
        """The whole file. PDFium asks for single tables only while it lists the fonts of folders, which it does not do here."""
        if table:
            return 0
        try:
            with open(self._faces[handle - 1].path, "rb") as file:  # noqa: PTH123 (Path.open takes twice the time)
                length = file.seek(0, 2)
                if buffer and size >= length:
                    file.seek(0)
                    file.readinto((ctypes.c_ubyte * length).from_address(ctypes.cast(buffer, ctypes.c_void_p).value or 0))
                return length
        except OSError as error:
            self.failure = error
            return 0

    def _face_name(self, _this: object, handle: int, buffer: "ctypes._Pointer[ctypes.c_char]", size: int) -> int:
        """The family of a face, by which PDFium shares one copy of it."""
        name = self._faces[handle - 1].family.encode() + b"\0"
        if buffer and size >= len(name):
            ctypes.memmove(buffer, name, len(name))
        return len(name)


@cache
def install() -> FontMapper:
    """Makes PDFium ask here for fonts, in this process, from now on."""
    mapper = FontMapper()
    pdfium.FPDF_SetSystemFontInfo(mapper.interface)
    return mapper


@contextmanager
def prefer(faces: dict[str, Face]) -> Iterator[None]:
    """Within, the fonts of these families, as ``family_key`` spells them, are drawn with these faces."""
    mapper = install()
    mapper.preferred = faces
    try:
        yield
    finally:
        mapper.preferred = {}


def raise_failure() -> None:
    """Raises the error of a callback, if there was one. Call it after a page has been drawn.

    Raises:
        OSError: A font file could not be read, so text is missing on the page.
    """
    mapper = install()
    if failure := mapper.failure:
        mapper.failure = None
        raise failure


def family_key(name: bytes) -> str:
    """A font's name without subset tag, style and spelling, so that the PDF's name and PDFium's version of it are equal."""
    plain = re.sub("[\\s,_@-]", "", without_subset_tag(name.decode("latin-1"))).lower()
    plain = _STYLE_SUFFIX.sub("", plain) or plain
    return _ALIASES.get(plain, plain)


def without_subset_tag(name: str) -> str:
    """A font's name without the six letters that mark a subset: ISO 32000-1, section 9.6.4."""
    return _SUBSET_TAG.sub("", name)
