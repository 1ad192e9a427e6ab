"""The font files that SiteLink brings, and the characters that they and PDFium's own fonts have. Loaded in render children only.

The files come from packages that ``uv.lock`` pins. The packages' versions are among the engines of a sheet.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from struct import iter_unpack, unpack_from

import pypdfium2.raw as pdfium


@dataclass(frozen=True)
class Face:
    """A font file of a package.

    Args:
        package: As the package index names it.
        file: Path below the package's folder.
        family: As the font file itself names it.
    """

    package: str
    file: str
    family: str

    @property
    def path(self) -> str:
        """Where the file lies on this machine."""
        return str(_PACKAGES[self.package].locate_file(f"{self.package.replace('-', '_')}/{self.file}"))


@dataclass(frozen=True)
class _EastAsianSet:
    """An East Asian character set of PDFium.

    Args:
        language: As the package of its faces names it.
        suffix: As the family of its faces names it.
        encoding: Of font names in old PDFs.
    """

    language: str
    suffix: str
    encoding: str


_EAST_ASIAN_SETS = {
    pdfium.FXFONT_SHIFTJIS_CHARSET: _EastAsianSet("jp", "JP", "cp932"),
    pdfium.FXFONT_HANGEUL_CHARSET: _EastAsianSet("ko", "KR", "cp949"),
    pdfium.FXFONT_CHINESEBIG5_CHARSET: _EastAsianSet("zh-tw", "TC", "cp950"),
    pdfium.FXFONT_GB2312_CHARSET: _EastAsianSet("zh-cn", "SC", "gbk"),
}

_SERIF_NAME = re.compile("min|song|sun|kai|batang|myeongjo|myungjo|gungsuh|serif|明|宋|楷|바탕", re.IGNORECASE)
_SANS_NAME = re.compile("go|hei|dotum|gulim|sans|meiryo|malgun|ゴ|黑|黒|돋움|굴림|고딕", re.IGNORECASE)


def _noto(charset: int, design: str) -> Face:
    east_asian = _EAST_ASIAN_SETS[charset]
    return Face(
        f"pylopdf-fonts-{east_asian.language}", f"Noto{design}{east_asian.suffix}-Regular.otf", f"Noto {design} {east_asian.suffix}"
    )


FACES_BY_COVERAGE = (
    Face("fontpkg-arimo", "files/Arimo[wght].ttf", "Arimo"),
    Face("pylopdf-fonts-ar", "NotoSansArabic-Variable.ttf", "Noto Sans Arabic"),
    Face("pylopdf-fonts-th", "NotoSansThai-Variable.ttf", "Noto Sans Thai"),
    Face("pylopdf-fonts-hi", "NotoSansDevanagari-Variable.ttf", "Noto Sans Devanagari"),
    *(_noto(charset, "Sans") for charset in _EAST_ASIAN_SETS),
)
"""Faces to choose from by the characters that a page needs; of faces that have equally many the first is taken. All have Latin letters."""

FACES = (*FACES_BY_COVERAGE, *(_noto(charset, "Serif") for charset in _EAST_ASIAN_SETS))

_PACKAGES = {face.package: metadata.distribution(face.package) for face in FACES}

VERSIONS = {package: distribution.version for package, distribution in _PACKAGES.items()}

BUILT_IN_CHARACTERS = frozenset(
    bytes(range(0x20, 0x100)).decode("cp1252", "ignore")
    + "\u0131\u0141\u0142\u02c7\u02c9\u02d8\u02d9\u02da\u02db\u02dd\u03bc\u2044\u2212\u2215\u2219\ufb01\ufb02"
)
"""The characters of PDFium's own text fonts, under every code by which FreeType finds them.
https://pdfium.googlesource.com/pdfium/+/refs/heads/chromium/8149/core/fxge/fontdata/chromefontdata
"""

COURIER_CHARACTERS = frozenset("\u0130\u0132\u0133\u015e\u015f\u01e6\u01e7\u20a4\u211e\u2190\u2191\u2192\u2193\u2194\u2195")
"""Further characters that only PDFium's own Courier has."""

BUILT_IN_COURIER = "Chrom Fixed OTF"
BUILT_IN_STANDARD = frozenset({"Chrom Sans OTF", "Chrom Serif OTF", BUILT_IN_COURIER})
BUILT_IN_SYMBOLS = frozenset({"Chrom Symbol OTF", "Chrom Dingbats OTF"})
BUILT_IN_GENERIC_SANS = "Chrome Sans MM"
BUILT_IN_GENERIC_SERIF = "Chrome Serif MM"
"""Families of PDFium's own fonts, as PDFium names them."""


def east_asian_face(charset: int, name: bytes, pitch_and_family: int) -> Face | None:
    """The face for a font of an East Asian character set, serif or sans-serif as its name says; None for any other character set.

    Args:
        charset: As PDFium numbers it.
        name: As the PDF spells it.
        pitch_and_family: PDFium's flags of the font, which decide where the name does not.
    """
    east_asian = _EAST_ASIAN_SETS.get(charset)
    if east_asian is None:
        return None
    text = name.decode(east_asian.encoding, "replace")
    is_serif = _SERIF_NAME.search(text) or (not _SANS_NAME.search(text) and pitch_and_family & pdfium.FXFONT_FF_ROMAN)
    return _noto(charset, "Serif" if is_serif else "Sans")


@cache
def characters_of(family: str) -> frozenset[str]:
    """The characters of one of our faces, by its family; for any other family those of PDFium's own font."""
    face = next((face for face in FACES if face.family == family), None)
    if face:
        return _characters_in(face.path)
    return BUILT_IN_CHARACTERS | COURIER_CHARACTERS if family == BUILT_IN_COURIER else BUILT_IN_CHARACTERS


def _characters_in(path: str) -> frozenset[str]:
    """The characters that a font file maps to a glyph, by its table ``cmap`` in format 12, else in format 4.

    https://learn.microsoft.com/en-us/typography/opentype/spec/cmap
    """
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
