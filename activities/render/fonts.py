"""The fonts that PDFium draws with where a PDF does not bring its own. Loaded in render children only.

1. The host's fonts never decide a pixel: PDFium asks here for every font, and knows of no folder. The faces come from packages that
   ``uv.lock`` pins, and their versions are among the engines of a sheet.
2. Latin text gets PDFium's built-in fonts, as ``_map_font`` gives it none: for Helvetica, Times and Courier, and for Arial, Times New
   Roman and Courier New that have their widths, twelve faces whose letters and digits are as wide as in Adobe's and Liberation's; for
   all other names a multiple-master font that takes the widths that the PDF gives (core/fxge/cfx_fontmapper.cpp, ``UseInternalSubst``).
3. A font of a Chinese, Japanese or Korean character set gets the Noto face of that language, serif or sans-serif as its name says.
4. PDFium tells the name of the font but not the text, and "ArialMT" may be Cyrillic or Arabic. So where characters of a page have no
   glyph, a second look chooses the face that has most of them, and that page is drawn from a document opened anew: PDFium asks once
   for each font of a document, and keeps the answer.
5. So what is drawn and noted follows from the page alone: the pages that a child drew before it change nothing.
6. The twelve standard fonts, and Arimo for Arial, are not noted: they look like what was asked for, and half of all plans have one.
   Any other replacement is noted, and so is what has no glyph. Text that is never painted (the layer behind a scan) is not.
7. Text within a tiling pattern or a soft mask is not looked at: PDFium tells of its fonts only once for a document, and not of which
   page they are; so where it lacks glyphs, no note says so.
"""

import ctypes
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from itertools import islice
from pathlib import Path
from struct import iter_unpack, unpack_from

import pypdfium2.raw as pdfium

from activities.bucket.records import Note


@dataclass(frozen=True)
class Face:
    """A font file of a package.

    Args:
        package: As the package index names it.
        file: Below the package's folder.
        family: As the font file itself names it.
    """

    package: str
    file: str
    family: str

    @property
    def path(self) -> str:
        """Where it lies on this machine."""
        return str(_PACKAGES[self.package].locate_file(f"{self.package.replace('-', '_')}/{self.file}"))


_BY_CHARSET = {
    pdfium.FXFONT_SHIFTJIS_CHARSET: ("jp", "JP", "cp932"),
    pdfium.FXFONT_HANGEUL_CHARSET: ("ko", "KR", "cp949"),
    pdfium.FXFONT_CHINESEBIG5_CHARSET: ("zh-tw", "TC", "cp950"),
    pdfium.FXFONT_GB2312_CHARSET: ("zh-cn", "SC", "gbk"),
}
"""Character set to the package's language, the name of its faces, and the encoding of names in old PDFs."""


def _noto(charset: int, kind: str) -> Face:
    language, suffix, _ = _BY_CHARSET[charset]
    return Face(f"pylopdf-fonts-{language}", f"Noto{kind}{suffix}-Regular.otf", f"Noto {kind} {suffix}")


BY_TEXT = (
    Face("fontpkg-arimo", "files/Arimo[wght].ttf", "Arimo"),
    Face("pylopdf-fonts-ar", "NotoSansArabic-Variable.ttf", "Noto Sans Arabic"),
    Face("pylopdf-fonts-th", "NotoSansThai-Variable.ttf", "Noto Sans Thai"),
    Face("pylopdf-fonts-hi", "NotoSansDevanagari-Variable.ttf", "Noto Sans Devanagari"),
    *(_noto(charset, "Sans") for charset in _BY_CHARSET),
)
"""Faces to choose from for characters without a glyph; the first of equals wins. All have Latin letters, too."""

FACES = (*BY_TEXT, *(_noto(charset, "Serif") for charset in _BY_CHARSET))

_PACKAGES = {face.package: metadata.distribution(face.package) for face in FACES}

VERSIONS = {package: distribution.version for package, distribution in _PACKAGES.items()}

BUILT_IN = frozenset(
    bytes(range(0x20, 0x100)).decode("cp1252", "ignore")
    + "\u0131\u0141\u0142\u02c7\u02c9\u02d8\u02d9\u02da\u02db\u02dd\u03bc\u2044\u2212\u2215\u2219\ufb01\ufb02"
)
"""The characters of PDFium's own text fonts (core/fxge/fontdata/chromefontdata), by all codes that FreeType finds them by."""

_FIXED = "Chrom Fixed OTF"
_FIXED_TOO = frozenset("\u0130\u0132\u0133\u015e\u015f\u01e6\u01e7\u20a4\u211e\u2190\u2191\u2192\u2193\u2194\u2195")
"""The further characters that only PDFium's Courier has."""

_STANDARD = {"Chrom Sans OTF", "Chrom Serif OTF", _FIXED}
_SIGNS = {"Chrom Symbol OTF", "Chrom Dingbats OTF"}
_GENERIC = {"Chrome Sans MM": "a general sans-serif font of the same widths", "Chrome Serif MM": "a general serif font of the same widths"}
_UNNAMED = {b"ChromeSansMM", b"ChromeSerifMM"}
"""How PDFium's own fonts name themselves."""

_PICTURES = re.compile(b"dings|symbol", re.IGNORECASE)
"""Fonts whose letters are pictures."""

_SERIF = re.compile("min|song|sun|kai|batang|myeongjo|myungjo|gungsuh|serif|明|宋|楷|바탕", re.IGNORECASE)
_SANS = re.compile("go|hei|dotum|gulim|sans|meiryo|malgun|ゴ|黑|黒|돋움|굴림|고딕", re.IGNORECASE)

_STYLE = re.compile("(bold|italic|oblique|regular|reg|roman|ps|mt|std)+$")
_ALIASES = {"arial": "helvetica", "timesnew": "times", "couriernew": "courier"}

CHARACTERS_LOOKED_AT = 500_000
SAMPLES = 5_000
"""Of the characters behind them."""
ANNOTATIONS_LOOKED_AT = 2_000
"""Of those that have an appearance."""
MOST_ANNOTATIONS = 20_000
"""All of a page that are looked at."""
OBJECTS_LOOKED_AT = 1_000
"""Of one annotation."""
FORMS_DEEP = 10
"""One within another."""

FONTS_NOTED = 50


@dataclass
class Used:
    """A font of a page that the PDF does not bring.

    Args:
        asked: Its name in the PDF, in whatever encoding.
        given: The family that PDFium draws it with.
        characters: What it is used for.
        untold: How often the PDF does not tell which character a code is.
    """

    asked: bytes
    given: str
    characters: set[str] = field(default_factory=set)
    untold: int = 0

    @property
    def missing(self) -> set[str]:
        """The characters without a glyph, neither in the face nor in the built-in font that PDFium falls back to."""
        return set() if self.given in _SIGNS else self.characters - BUILT_IN - characters_of(self.given)


class _Substitutes:
    """Answers PDFium's questions for fonts.

    ``asked`` says whether it has asked for any in this process: where it has not, every page brought its fonts. ``preferred`` come
    before the rules. ``failure`` is what went wrong in a callback, which cannot raise.
    """

    def __init__(self) -> None:
        self.asked = False
        self.preferred: dict[str, Face] = {}
        self.failure: OSError | None = None
        self._given: list[Face] = []
        kinds = dict(pdfium.FPDF_SYSFONTINFO._fields_)
        # Kept, for PDFium keeps only the address.
        self.interface = pdfium.FPDF_SYSFONTINFO(
            version=1,
            MapFont=kinds["MapFont"](self._map_font),
            GetFontData=kinds["GetFontData"](self._font_data),
            GetFaceName=kinds["GetFaceName"](self._face_name),
            DeleteFont=kinds["DeleteFont"](lambda _this, _handle: None),
        )

    def _map_font(
        self, _this: object, _weight: int, _italic: int, charset: int, pitch: int, name: "ctypes._Pointer[ctypes.c_char]", _exact: object
    ) -> int | None:
        """A handle for a face: its position among those that were given, from 1. None for a font of PDFium's own."""
        self.asked = True
        asked = ctypes.string_at(name)
        face = self.preferred.get(_family(asked))
        if face is None and charset in _BY_CHARSET:
            face = _noto(charset, _kind(asked.decode(_BY_CHARSET[charset][2], "replace"), pitch))
        if face is None:
            return None
        if face not in self._given:
            self._given.append(face)
        return self._given.index(face) + 1

    def _font_data(self, _this: object, handle: int, table: int, buffer: "ctypes._Pointer[ctypes.c_char]", size: int) -> int:
        """The whole file; its tables are asked for by nobody but the lists of fonts that PDFium does not make here."""
        if table:
            return 0
        try:
            with open(self._given[handle - 1].path, "rb") as file:  # noqa: PTH123 (Path.open takes twice the time)
                length = file.seek(0, 2)
                if buffer and size >= length:
                    file.seek(0)
                    file.readinto((ctypes.c_ubyte * length).from_address(ctypes.cast(buffer, ctypes.c_void_p).value or 0))
                return length
        except OSError as error:
            self.failure = error
            return 0

    def _face_name(self, _this: object, handle: int, buffer: "ctypes._Pointer[ctypes.c_char]", size: int) -> int:
        """PDFium keeps one copy of a face by this name."""
        name = self._given[handle - 1].family.encode() + b"\0"
        if buffer and size >= len(name):
            ctypes.memmove(buffer, name, len(name))
        return len(name)


@cache
def install() -> _Substitutes:
    """Makes PDFium ask here for fonts, in this process, from now on."""
    substitutes = _Substitutes()
    pdfium.FPDF_SetSystemFontInfo(substitutes.interface)
    return substitutes


@contextmanager
def prefer(faces: dict[str, Face]) -> Iterator[None]:
    """Within, the fonts that PDFium asks for are drawn with these faces, as ``choose`` gave them."""
    substitutes = install()
    substitutes.preferred = faces
    try:
        yield
    finally:
        substitutes.preferred = {}


def check() -> None:
    """To be called when a page has been drawn.

    Raises:
        OSError: A font file could not be read, so text is missing.
    """
    substitutes = install()
    if failure := substitutes.failure:
        substitutes.failure = None
        raise failure


def used_by(
    page: "pdfium.FPDF_PAGE", form: "pdfium.FPDF_FORMHANDLE | None", source: Path, index: int
) -> tuple[list[Used], tuple[Note, ...]]:
    """The fonts that visible text uses and the PDF does not bring: in annotations, then in the page; and what was not looked at.

    Args:
        page: Loaded; its annotations are ready to be drawn.
        form: The form environment of a page with fields.
        source: The file.
        index: 0-based.
    """
    fonts = _Fonts()
    if not _read_annotations(page, form, fonts):
        with _flattened(source, index) as flat:
            if flat is None:
                fonts.unseen.append("text in annotations")
            _read_text(flat or page, fonts)
    elif install().asked:
        _read_text(page, fonts)
    return fonts.used(), tuple(Note("FontMissing", f"Whether glyphs are missing was not looked at in {what}.") for what in fonts.unseen)


@contextmanager
def _flattened(source: Path, index: int) -> Iterator["pdfium.FPDF_PAGE | None"]:
    """A page of a document opened anew, with what its annotations draw among its content; None where PDFium cannot do that."""
    document = pdfium.FPDF_LoadDocument(str(source).encode(), None)
    page = pdfium.FPDF_LoadPage(document, index)
    done = pdfium.FPDFPage_Flatten(page, pdfium.FLAT_NORMALDISPLAY) == pdfium.FLATTEN_SUCCESS
    pdfium.FPDF_ClosePage(page)
    page = pdfium.FPDF_LoadPage(document, index)
    try:
        yield page if done else None
    finally:
        pdfium.FPDF_ClosePage(page)
        pdfium.FPDF_CloseDocument(document)


class _Fonts:
    """The fonts of a page, by PDFium's address. ``unseen`` names text that was not looked at, for a user."""

    def __init__(self) -> None:
        self.unseen: list[str] = []
        self._fonts: dict[int | None, Used | None] = {}

    def of(self, item: "pdfium.FPDF_PAGEOBJECT") -> Used | None:
        """The font of a piece of text; None where the PDF brings it, or the text is not painted."""
        if pdfium.FPDFTextObj_GetTextRenderMode(item) == pdfium.FPDF_TEXTRENDERMODE_INVISIBLE:
            return None
        font = pdfium.FPDFTextObj_GetFont(item)
        address = ctypes.cast(font, ctypes.c_void_p).value
        if address not in self._fonts:
            self._fonts[address] = None if not font or pdfium.FPDFFont_GetIsEmbedded(font) else _used(font)
        return self._fonts[address]

    def used(self) -> list[Used]:
        """The fonts that the PDF does not bring. Spaces and control characters do not count among their characters."""
        fonts = [used for used in self._fonts.values() if used]
        for used in fonts:
            used.characters = {character for character in used.characters if unicodedata.category(character)[0] not in "CZ"}
        return fonts


def _read_text(page: "pdfium.FPDF_PAGE", fonts: _Fonts) -> None:
    text = pdfium.FPDFText_LoadPage(page)
    if not text:
        return
    previous, used = None, None
    count = pdfium.FPDFText_CountChars(text)
    for index in range(min(count, CHARACTERS_LOOKED_AT)):
        item = pdfium.FPDFText_GetTextObject(text, index)
        address = ctypes.cast(item, ctypes.c_void_p).value
        if address != previous:
            previous, used = address, fonts.of(item) if item else None
        if used is None:
            continue
        if pdfium.FPDFText_HasUnicodeMapError(text, index):
            used.untold += 1
        else:
            used.characters.add(chr(min(pdfium.FPDFText_GetUnicode(text, index), 0x10FFFF)))
    # Some of the rest, for it does not matter where the PDF brings all fonts: a page is noted whatever its child drew before.
    rest = range(CHARACTERS_LOOKED_AT, count, max(1, (count - CHARACTERS_LOOKED_AT) // SAMPLES))
    if any(item and fonts.of(item) for item in (pdfium.FPDFText_GetTextObject(text, index) for index in rest)):
        fonts.unseen.append(f"{count - CHARACTERS_LOOKED_AT:,} of {count:,} characters")
    pdfium.FPDFText_ClosePage(text)


def _read_annotations(page: "pdfium.FPDF_PAGE", form: "pdfium.FPDF_FORMHANDLE | None", fonts: _Fonts) -> bool:
    """PDFium does not tell the text of an appearance: what the annotation says it is about, or a field its value, stands for it.

    Returns:
        Whether there is such a word for each of them.
    """
    all_told = True
    looks, more = 0, 0
    for index in range(min(pdfium.FPDFPage_GetAnnotCount(page), MOST_ANNOTATIONS)):
        annotation = pdfium.FPDFPage_GetAnnot(page, index)
        if (
            annotation
            and pdfium.FPDFAnnot_HasKey(annotation, b"AP")
            and not pdfium.FPDFAnnot_GetFlags(annotation) & (pdfium.FPDF_ANNOT_FLAG_HIDDEN | pdfium.FPDF_ANNOT_FLAG_NOVIEW)
        ):
            looks += 1
            objects = _objects(annotation) if looks <= ANNOTATIONS_LOOKED_AT else iter(())
            for item in islice(objects, OBJECTS_LOOKED_AT):
                if pdfium.FPDFPageObj_GetType(item) == pdfium.FPDF_PAGEOBJ_TEXT and (used := fonts.of(item)):
                    words = _words(annotation, form)
                    used.characters.update(words)
                    all_told = all_told and bool(words)
            more += next(objects, None) is not None
        pdfium.FPDFPage_CloseAnnot(annotation)
    if looks > ANNOTATIONS_LOOKED_AT:
        fonts.unseen.append(f"{looks - ANNOTATIONS_LOOKED_AT:,} annotations")
    if more:
        fonts.unseen.append(f"{more:,} annotations of more than {OBJECTS_LOOKED_AT:,} objects, to their end")
    return all_told


def _objects(annotation: "pdfium.FPDF_ANNOTATION") -> Iterator["pdfium.FPDF_PAGEOBJECT"]:
    """The objects of an annotation's appearance, also of forms within it: the text of a signature lies three forms deep."""
    levels = [(pdfium.FPDFAnnot_GetObject, annotation, iter(range(pdfium.FPDFAnnot_GetObjectCount(annotation))))]
    while levels:
        get, parent, positions = levels[-1]
        position = next(positions, None)
        if position is None:
            levels.pop()
            continue
        item = get(parent, position)
        yield item
        if pdfium.FPDFPageObj_GetType(item) == pdfium.FPDF_PAGEOBJ_FORM and len(levels) < FORMS_DEEP:
            levels.append((pdfium.FPDFFormObj_GetObject, item, iter(range(pdfium.FPDFFormObj_CountObjects(item)))))


def _words(annotation: "pdfium.FPDF_ANNOTATION", form: "pdfium.FPDF_FORMHANDLE | None") -> str:
    """The value of a field, which may be its parent's; else what the annotation is about."""
    value = text_of(pdfium.FPDFAnnot_GetFormFieldValue, form, annotation) if form else ""
    return value or text_of(pdfium.FPDFAnnot_GetStringValue, annotation, b"Contents")


def text_of(call: "ctypes._FuncPointer", *args: object) -> str:
    """The text that a PDFium call writes as UTF-16, without its terminator. The call is asked for the size first."""
    size = call(*args, None, 0)
    buffer = (ctypes.c_ushort * (size // 2 + 1))()
    call(*args, buffer, size)
    return bytes(buffer)[: max(size - 2, 0)].decode("utf-16-le", "replace")


def choose(fonts: Iterable[Used]) -> dict[str, Face]:
    """For each family that lacks characters, the face that has most of them, if that is more than now. Empty inside ``prefer``."""
    if install().preferred:
        return {}
    wanted: dict[str, set[str]] = {}
    missing: dict[str, set[str]] = {}
    for used in fonts:
        family = _family(used.asked)
        wanted.setdefault(family, set()).update(used.characters)
        missing.setdefault(family, set()).update(used.missing)
    chosen = {}
    for family in filter(missing.get, missing):
        best = max(BY_TEXT, key=lambda face: len(wanted[family] & characters_of(face.family)))
        if len(wanted[family] & characters_of(best.family)) > len(wanted[family] - missing[family]):
            chosen[family] = best
    return chosen


def notes(fonts: Iterable[Used]) -> tuple[Note, ...]:
    """A note for each font that was substituted, and for each that lacks characters; each font is noted once."""
    merged: dict[tuple[bytes, str], Used] = {}
    for used in fonts:
        same = merged.setdefault((used.asked, used.given), Used(used.asked, used.given))
        same.characters |= used.characters
        same.untold += used.untold
    return tuple(note for used in list(merged.values())[:FONTS_NOTED] for note in _notes_of(used))


def _notes_of(used: Used) -> Iterator[Note]:
    # PDFium has no better name for what it makes the text of fields with.
    name = "of a form field" if used.asked in _UNNAMED else _shown(used.asked)
    asked = f"The font {name} is not in the PDF"
    if used.given in _GENERIC and _PICTURES.search(used.asked):
        yield Note("FontMissing", f"{asked}: its signs are drawn as letters.")
        return
    if used.given not in _STANDARD | _SIGNS and (used.given, _family(used.asked)) != ("Arimo", "helvetica"):
        yield Note("FontSubstituted", f"{asked}: its text is drawn with {_GENERIC.get(used.given, used.given)}.")
    if used.untold:
        yield Note("FontMissing", f"{asked}, which does not say what its text is: {used.untold:,} characters are wrong or not drawn.")
    if missing := sorted(used.missing):
        yield Note("FontMissing", f"{asked}: {len(missing):,} of its characters are not drawn: {' '.join(missing[:10])}")


def _shown(asked: bytes) -> str:
    name = re.sub("^[A-Z]{6}\\+", "", asked.decode(errors="replace"))
    return f"\N{LEFT DOUBLE QUOTATION MARK}{''.join(filter(str.isprintable, name))[:60]}\N{RIGHT DOUBLE QUOTATION MARK}"


def _family(name: bytes) -> str:
    """A font's name without style, subset and spelling, so that the PDF's name and PDFium's version of it are equal."""
    plain = re.sub("[\\s,_@-]", "", re.sub("^[A-Z]{6}\\+", "", name.decode("latin-1"))).lower()
    plain = _STYLE.sub("", plain) or plain
    return _ALIASES.get(plain, plain)


def _kind(name: str, pitch: int) -> str:
    if _SERIF.search(name):
        return "Serif"
    return "Sans" if _SANS.search(name) or not pitch & pdfium.FXFONT_FF_ROMAN else "Serif"


def _used(font: "pdfium.FPDF_FONT") -> Used:
    return Used(_string(pdfium.FPDFFont_GetBaseFontName, font), _string(pdfium.FPDFFont_GetFamilyName, font).decode(errors="replace"))


def _string(call: "ctypes._FuncPointer", font: "pdfium.FPDF_FONT") -> bytes:
    """The bytes that a PDFium call writes, without their terminator. The call is asked for the size first."""
    size = call(font, None, 0)
    buffer = ctypes.create_string_buffer(size)
    call(font, buffer, size)
    return buffer.value


@cache
def characters_of(family: str) -> frozenset[str]:
    """The characters of a face of ours by its family; of PDFium's own for any other."""
    face = next((face for face in FACES if face.family == family), None)
    if face:
        return _characters_in(face.path)
    return BUILT_IN | _FIXED_TOO if family == _FIXED else BUILT_IN


def _characters_in(path: str) -> frozenset[str]:
    """The characters that a font file maps to a glyph: https://learn.microsoft.com/typography/opentype/spec/cmap."""
    with open(path, "rb") as file:  # noqa: PTH123
        data = file.read()
    tables = {tag: offset for tag, _, offset, _ in iter_unpack(">4sIII", data[12 : 12 + 16 * unpack_from(">H", data, 4)[0]])}
    start = tables[b"cmap"]
    subtables = {
        (platform, encoding): start + offset
        for platform, encoding, offset in iter_unpack(">HHI", data[start + 4 : start + 4 + 8 * unpack_from(">H", data, start + 2)[0]])
    }
    if at := subtables.get((3, 10)):
        groups = iter_unpack(">III", data[at + 16 : at + 16 + 12 * unpack_from(">I", data, at + 12)[0]])
        return frozenset(chr(code) for first, last, _ in groups for code in range(first, last + 1))
    at = subtables[3, 1]
    count = unpack_from(">H", data, at + 6)[0] // 2
    lasts = unpack_from(f">{count}H", data, at + 14)
    firsts = unpack_from(f">{count}H", data, at + 16 + 2 * count)
    return frozenset(chr(code) for first, last in zip(firsts, lasts, strict=True) for code in range(first, last + 1) if code != 0xFFFF)
