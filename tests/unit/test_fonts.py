"""Text whose font is not in the PDF: the font that draws it, which never comes from the host, and the notes."""

import ctypes
import hashlib
import json
import string
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pypdfium2.raw as pdfium
import pytest

from activities.render import raster
from activities.render.fonts import page as font_page
from activities.render.fonts.faces import FACES, FACES_BY_COVERAGE, Face, characters_of
from activities.render.fonts.mapper import prefer
from activities.render.pdf_file import PdfFile
from tests.resources import make_pdfs
from tests.unit.documents import opened

WIDTH, HEIGHT = 1600, 400
SCALE = WIDTH // 400
"""Pixels of a point: the pages are 400 x 100 pt."""

ROOT = Path(__file__).parents[2]


def draw(document: PdfFile, number: int = 1) -> tuple[bytes, list[tuple[str, str]]]:
    """A page's pixels and notes."""
    drawn = raster.draw(document, number, WIDTH, HEIGHT, raster.PixelBuffer())
    return bytes(drawn.pixels), [(note.type, note.message) for note in drawn.notes]


def cells(pixels: bytes, count: int) -> list[bytes]:
    """The picture of each character of a line, from the left."""
    size = make_pdfs.FONT_SIZE * SCALE
    left, bottom = 10 * SCALE, HEIGHT - 33 * SCALE
    return [
        b"".join(
            pixels[3 * (WIDTH * y + left + size * index) : 3 * (WIDTH * y + left + size * (index + 1))]
            for y in range(bottom - 2 * size, bottom)
        )
        for index in range(count)
    ]


EAST_ASIAN: dict[str, tuple[bytes, int, str]] = {
    "MS-Gothic": (make_pdfs.text_by_cmap("MS-Gothic", "Japan1", "UniJIS-UCS2-H", "平面図直径あいう"), 8, "Noto Sans JP"),
    "MS-Mincho": (make_pdfs.text_by_cmap("MS-Mincho", "Japan1", "UniJIS-UCS2-H", "平面図直径あいう"), 8, "Noto Serif JP"),
    "SimHei": (make_pdfs.text_by_cmap("SimHei", "GB1", "UniGB-UCS2-H", "总平面图直径"), 6, "Noto Sans SC"),
    "SimSun": (make_pdfs.text_by_cmap("SimSun", "GB1", "UniGB-UCS2-H", "总平面图直径"), 6, "Noto Serif SC"),
    "PMingLiU": (make_pdfs.text_by_cmap("PMingLiU", "CNS1", "UniCNS-UCS2-H", "總平面圖直徑"), 6, "Noto Serif TC"),
    "Dotum": (make_pdfs.text_by_cmap("Dotum", "Korea1", "UniKS-UCS2-H", "평면도직경"), 5, "Noto Sans KR"),
}

BY_NAMES = {
    "TimesNewRomanPSMT": ("Планэтж", "Arimo"),
    "GOST_A": ("Планэтж", "Arimo"),
    "Calibri-Bold": ("Κάτοψη", "Arimo"),
    "ArialMT": ("مخطلوقع", "Noto Sans Arabic"),
    "SimplifiedArabic": ("مخطلوقع", "Noto Sans Arabic"),
    "David": ("תכניקומה", "Arimo"),
    "AngsanaNew": ("แปลนพ", "Noto Sans Thai"),
    "Mangal": ("मजलयन", "Noto Sans Devanagari"),
    "SimSun-Identity": ("总平面图直径", "Noto Sans SC"),
}


@pytest.mark.parametrize(
    ("name", "data", "count", "given"),
    [
        *((name, data, count, given) for name, (data, count, given) in EAST_ASIAN.items()),
        *((name, make_pdfs.text_by_names(name, text), len(text), given) for name, (text, given) in BY_NAMES.items()),
    ],
)
def test_text_is_drawn_without_its_font(tmp_path: Path, name: str, data: bytes, count: int, given: str) -> None:
    """Every character has a picture of its own, not a box; and the note names the font that draws them."""
    with opened(tmp_path, data) as document:
        pixels, notes = draw(document)
    pictures = cells(pixels, count)
    assert all(min(picture) < 128 for picture in pictures)
    assert len(set(pictures)) == count
    assert notes == [("FontSubstituted", f"The font “{name}” is not in the PDF: its text is drawn with {given}.")]


def test_text_of_a_markup_is_drawn_without_its_font(tmp_path: Path) -> None:
    """A markup's text in Arabic is drawn; characters that cannot be drawn are noted."""
    with opened(tmp_path, make_pdfs.markup_by_names("SimplifiedArabic", "مخطلوقع")) as document:
        pixels, notes = draw(document)
    pictures = cells(pixels, 7)
    assert all(min(picture) < 128 for picture in pictures)
    assert len(set(pictures)) == 7
    assert notes == [("FontSubstituted", "The font “SimplifiedArabic” is not in the PDF: its text is drawn with Noto Sans Arabic.")]
    with opened(tmp_path, make_pdfs.markup_by_names("ArialMT", "ፕላን")) as document:
        assert [kind for kind, _ in draw(document)[1]] == ["FontMissing"]


@pytest.mark.parametrize("signature", [False, True])
def test_text_that_only_an_appearance_has_is_drawn_without_its_font(tmp_path: Path, signature: bool) -> None:
    """The text is in no other entry of the annotation; and a signature's text lies in forms within its appearance."""
    with opened(tmp_path, make_pdfs.markup_by_names("SimplifiedArabic", "مخطلوقع", told=False, signature=signature)) as document:
        pixels, notes = draw(document)
        assert draw(document) == (pixels, notes)
    pictures = cells(pixels, 7)
    assert all(min(picture) < 128 for picture in pictures)
    assert len(set(pictures)) == 7
    assert notes == [("FontSubstituted", "The font “SimplifiedArabic” is not in the PDF: its text is drawn with Noto Sans Arabic.")]
    with opened(tmp_path, make_pdfs.markup_by_names("ArialMT", "ፕላን", told=False, signature=signature)) as document:
        assert draw(document)[1] == [("FontMissing", "The font “ArialMT” is not in the PDF: 3 of its characters are not drawn: ላ ን ፕ")]
    with opened(tmp_path, make_pdfs.markup_by_names("ArialMT", "Plan", told=False, signature=signature)) as document:
        assert draw(document)[1] == []


@pytest.mark.parametrize("name", ["Helvetica", "Arial,Bold", "ArialMT", "TimesNewRomanPS-BoldMT", "CourierNew"])
def test_standard_fonts_are_not_noted(tmp_path: Path, name: str) -> None:
    """Their substitutes look like the fonts that the PDF names, and half of all plans name one."""
    with opened(tmp_path, make_pdfs.text_by_names(name, "Plan 1:100")) as document:
        pixels, notes = draw(document)
    assert all(min(picture) < 128 for picture in cells(pixels, 4))
    assert notes == []


def test_arial_in_cyrillic_is_not_noted(tmp_path: Path) -> None:
    """Arimo is as wide as Arial and looks like it."""
    with opened(tmp_path, make_pdfs.text_by_names("ArialMT", "Планэтж")) as document:
        pixels, notes = draw(document)
    assert all(min(picture) < 128 for picture in cells(pixels, 7))
    assert notes == []


def test_latin_letters_are_as_wide_as_arials() -> None:
    """PDFium's built-in Helvetica has the widths of Arimo, which has Arial's widths."""
    document = pdfium.FPDF_CreateNewDocument()
    built_in = pdfium.FPDFText_LoadStandardFont(document, b"Helvetica")
    data = Path(FACES_BY_COVERAGE[0].path).read_bytes()
    arimo = pdfium.FPDFText_LoadFont(document, (ctypes.c_ubyte * len(data)).from_buffer_copy(data), len(data), pdfium.FPDF_FONT_TRUETYPE, 1)
    for character in string.ascii_letters + string.digits + ".,:;/()+-=\"'%&#":
        widths = []
        for font in (built_in, arimo):
            width = ctypes.c_float()
            assert pdfium.FPDFFont_GetGlyphWidth(font, ord(character), 1000, width)
            widths.append(width.value)
        assert abs(widths[0] - widths[1]) <= 1, character
    pdfium.FPDFFont_Close(arimo)
    pdfium.FPDFFont_Close(built_in)
    pdfium.FPDF_CloseDocument(document)


@pytest.mark.parametrize(
    ("data", "types"),
    [
        (make_pdfs.text_by_names("Calibri", "Plan"), ["FontSubstituted"]),
        (make_pdfs.text_by_names("Wingdings", "Plan"), ["FontMissing"]),
        (make_pdfs.text_by_names("Nyala", "ፕላን"), ["FontSubstituted", "FontMissing"]),
        (make_pdfs.text_by_names("ArialMT", "Plan ፕላን"), ["FontMissing"]),
        (make_pdfs.text_by_cmap("ArialMT", "Identity", "Identity-H", "\x24\x25\x26"), ["FontMissing"]),
        (make_pdfs.text_by_names("Nyala", "ፕላን", hidden=True), []),
        (make_pdfs.text_with_its_font(Path(FACES_BY_COVERAGE[0].path), "Plan"), []),
        (make_pdfs.text_drawn_by_procedures(), []),
        (make_pdfs.text_by_names("CourierNew", "a\N{RIGHTWARDS ARROW}b"), []),
        (make_pdfs.text_by_names("Webdings#83S", "Plan"), ["FontMissing"]),
        (make_pdfs.plan_set(1), []),
        (make_pdfs.blank(), []),
    ],
)
def test_notes_say_what_was_substituted_and_what_is_missing(tmp_path: Path, data: bytes, types: list[str]) -> None:
    """A similar font is a substitute. Signs drawn as letters, characters that no font has, and codes without a character are missing."""
    with opened(tmp_path, data) as document:
        _, notes = draw(document)
    assert [kind for kind, _ in notes] == types


def test_text_that_is_not_checked_for_glyphs_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text behind a limit may be missing. Where the PDF embeds its fonts there is no note, whatever the process drew before."""
    unchecked = "Not checked for missing glyphs:"
    monkeypatch.setattr(font_page, "MOST_CHARACTERS", 3)
    with opened(tmp_path, make_pdfs.text_by_names("ArialMT", "Plan ፕላን")) as document:
        assert draw(document)[1] == [("FontMissing", f"{unchecked} 5 of 8 characters.")]
    with opened(tmp_path, make_pdfs.text_with_its_font(Path(FACES_BY_COVERAGE[0].path), "Plan 1:100")) as document:
        assert draw(document)[1] == []
    writer = make_pdfs.Writer()
    many = writer.stream(b"0 0 1 1 re f " * (font_page.MOST_OBJECTS + 1), "/Type /XObject /Subtype /Form /BBox [0 0 9 9]")
    stamp = writer.add(f"<< /Type /Annot /Subtype /Stamp /Rect [0 0 9 9] /F 4 /AP << /N {many} 0 R >> >>")
    few = writer.stream(b"0 0 1 1 re f", "/Type /XObject /Subtype /Form /BBox [0 0 9 9]")
    other = writer.add(f"<< /Type /Annot /Subtype /Stamp /Rect [0 0 9 9] /F 4 /AP << /N {few} 0 R >> >>")
    others = f"{other} 0 R " * (font_page.MOST_APPEARANCES + 1)
    page = writer.page(b"", f"/MediaBox [0 0 400 100] /Annots [{stamp} 0 R {others}]")
    with opened(tmp_path, writer.finish([page])) as document:
        assert [message for _, message in draw(document)[1]] == [
            f"{unchecked} 2 annotations.",
            f"{unchecked} the objects behind the first 100,000, in {font_page.MOST_APPEARANCES:,} annotations.",
        ]


def test_stamp_of_many_objects_is_checked_whole(tmp_path: Path) -> None:
    """A scanned stamp of a real plan has 1,800 objects, and needs no note."""
    writer = make_pdfs.Writer()
    many = writer.stream(b"0 0 1 1 re f " * 1800, "/Type /XObject /Subtype /Form /BBox [0 0 9 9]")
    stamp = writer.add(f"<< /Type /Annot /Subtype /Stamp /Rect [0 0 9 9] /F 4 /AP << /N {many} 0 R >> >>")
    with opened(tmp_path, writer.finish([writer.page(b"", f"/MediaBox [0 0 400 100] /Annots [{f'{stamp} 0 R ' * 20}]")])) as document:
        assert draw(document)[1] == []


def test_missing_characters_are_named(tmp_path: Path) -> None:
    """The user can then find them on the sheet."""
    with opened(tmp_path, make_pdfs.text_by_names("ArialMT", "Plan ፕላን")) as document:
        _, notes = draw(document)
    assert notes == [("FontMissing", "The font “ArialMT” is not in the PDF: 3 of its characters are not drawn: ላ ን ፕ")]


def test_names_of_fonts_are_fit_to_show(tmp_path: Path) -> None:
    """A PDF may name a font anything: control characters, long names and the tag of a subset are not shown."""
    name = "ABCDEF+Evil#0A#1B#E2#80#AE" + 500 * "x"
    with opened(tmp_path, make_pdfs.text_by_names(name, "Plan")) as document:
        _, [(_, message)] = draw(document)
    assert message.startswith("The font “Evilxxxxx")
    assert message.isprintable()
    assert len(message) < 200


FOUR_TEXTS = make_pdfs.text_by_names("ArialMT", "Plan", "Планэтж", "مخطلوقع", "ፕላን")
"""One font on four pages, each of which needs another face."""

SIX_FIELDS = make_pdfs.form_without_appearances("Планэтж", "Κάτοψη", "แปลนพ", "תכניקומה", "مخطلوقع", "≤≥±Ø")
"""Fields whose text PDFium makes and keeps in the open document."""


@pytest.mark.parametrize(
    ("data", "order"),
    [
        *((FOUR_TEXTS, order) for order in list(permutations((1, 2, 3, 4)))[::5]),
        *((SIX_FIELDS, order) for order in ((1, 2, 3, 4, 5, 6), (6, 5, 4, 3, 2, 1), (3, 6, 1, 5, 2, 4))),
    ],
)
def test_pixels_and_notes_follow_from_the_page_alone(tmp_path: Path, data: bytes, order: tuple[int, ...]) -> None:
    """A process that has drawn other pages of the document draws and notes the same as a new process."""
    cold = {}
    for number in order:
        with opened(tmp_path, data) as document:
            cold[number] = draw(document, number)
    with opened(tmp_path, data) as document:
        warm = {number: draw(document, number) for number in order}
        again = {number: draw(document, number) for number in order}
    assert warm == cold
    assert again == cold
    assert len({pixels for pixels, _ in cold.values()}) == len(order)


@pytest.mark.parametrize(
    ("number", "given"), [(1, "Arimo"), (2, "Arimo"), (3, "Noto Sans Thai"), (4, "Arimo"), (5, "Noto Sans Arabic"), (6, None)]
)
def test_text_that_is_made_for_a_field_is_drawn(tmp_path: Path, number: int, given: str | None) -> None:
    """A field without appearance shows its value in any script, and the note names none of PDFium's own fonts."""
    with opened(tmp_path, SIX_FIELDS) as document:
        pixels, notes = draw(document, number)
    assert min(pixels) < 128
    text = f"The font of a form field is not in the PDF: its text is drawn with {given}."
    missing = "2 characters of form fields may be missing, for the PDF does not say how they look: ≤ ≥"
    assert notes == [("FontSubstituted", text) if given else ("FontMissing", missing)]


IN_FIELDS = "ąĀΩἀЁӘא،ک٠ก≤№→Ơ漢あ가Ａﬁ€˘\N{PRIME}\N{EN DASH}"


def test_each_character_of_a_field_is_drawn_or_noted(tmp_path: Path) -> None:
    """A character for which PDFium has no code, so that its appearance lacks it, is noted."""
    with opened(tmp_path, make_pdfs.form_without_appearances(*IN_FIELDS)) as document:
        for number, character in enumerate(IN_FIELDS, 1):
            pixels, notes = draw(document, number)
            said = any(kind == "FontMissing" and message.endswith(f": {character}") for kind, message in notes)
            assert said == (min(pixels) == 255), character


ON_A_HOST = """
import ctypes, hashlib, json, os, sys
from pathlib import Path
import pypdfium2_raw as pdfium

source, number, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
# The folders that PDFium takes for the host's. pypdfium2 initialises PDFium a second time, which changes nothing.
folders = (ctypes.POINTER(ctypes.c_char) * 2)(ctypes.cast(ctypes.c_char_p(folder.encode()), ctypes.POINTER(ctypes.c_char)))
pdfium.FPDF_InitLibraryWithConfig(pdfium.FPDF_LIBRARY_CONFIG(version=2, m_pUserFontPaths=folders))

page = pdfium.FPDF_LoadPage(pdfium.FPDF_LoadDocument(source.encode(), None), number - 1)
bitmap = pdfium.FPDFBitmap_Create(1600, 400, 0)
pdfium.FPDFBitmap_FillRect(bitmap, 0, 0, 1600, 400, 0xFFFFFFFF)
pdfium.FPDF_RenderPageBitmap(bitmap, page, 0, 0, 1600, 400, 0, 0)
bare = ctypes.string_at(pdfium.FPDFBitmap_GetBuffer(bitmap), 4 * 1600 * 400)

from activities.render.pdf_file import PdfFile
from activities.render.raster import PixelBuffer, draw

drawn = draw(PdfFile(Path(source)), number, 1600, 400, PixelBuffer())
notes = [[note.type, note.message] for note in drawn.notes]
print(json.dumps([hashlib.sha256(bare).hexdigest(), hashlib.sha256(drawn.pixels).hexdigest(), notes]), flush=True)
os._exit(0)
"""


def on_a_host(source: Path, number: int, folder: Path) -> tuple[str, tuple[str, list[list[str]]]]:
    """Draws a page in a new process, on a host whose fonts are those of a folder.

    Returns:
        The digest of the pixels as PDFium draws them by itself; and the digest of our pixels with our notes.
    """
    command = [sys.executable, "-c", ON_A_HOST, str(source), str(number), str(folder)]
    result = subprocess.run(command, capture_output=True, check=True, text=True, cwd=ROOT)
    bare, ours, notes = json.loads(result.stdout)
    return bare, (ours, notes)


def test_fonts_of_the_host_decide_nothing(tmp_path: Path) -> None:
    """A host without fonts and a host that has the very font draw and note the same; PDFium by itself draws two different pages."""
    source, empty, full = tmp_path / "source.pdf", tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    (full / "host.ttf").symlink_to(Path(FACES_BY_COVERAGE[2].path).with_name("NotoSerifThai-Variable.ttf"))
    source.write_bytes(make_pdfs.text_by_names("NotoSerifThai", "Plan 1:100"))
    bare_without, without = on_a_host(source, 1, empty)
    bare_with, with_fonts = on_a_host(source, 1, full)
    assert bare_without != bare_with
    assert without == with_fonts


def test_a_new_process_draws_and_notes_the_same(tmp_path: Path) -> None:
    """The same as a process that has drawn other documents before."""
    with opened(tmp_path, FOUR_TEXTS) as document:
        pixels, notes = draw(document, 3)
    _, ours = on_a_host(tmp_path / "source.pdf", 3, tmp_path)
    assert ours == (hashlib.sha256(pixels).hexdigest(), [list(note) for note in notes])


def test_a_font_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """The page fails and can be tried again elsewhere; no sheet is made without its text."""
    gone = Face("fontpkg-arimo", "files/gone.ttf", "Gone")
    data = make_pdfs.text_by_names("ArialMT", "Plan")
    with prefer({"helvetica": gone}), opened(tmp_path, data) as document, pytest.raises(FileNotFoundError):
        draw(document)
    with opened(tmp_path, data) as document:
        assert min(draw(document)[0]) < 128


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.family)
def test_faces_are_what_they_are_said_to_be(face: Face) -> None:
    """PDFium reads the family in the file that the face says, by which notes and characters are looked up; all faces have Latin letters."""
    data = Path(face.path).read_bytes()
    document = pdfium.FPDF_CreateNewDocument()
    font = pdfium.FPDFText_LoadFont(document, (ctypes.c_ubyte * len(data)).from_buffer_copy(data), len(data), pdfium.FPDF_FONT_TRUETYPE, 1)
    name = ctypes.create_string_buffer(100)
    pdfium.FPDFFont_GetFamilyName(font, name, len(name))
    pdfium.FPDFFont_Close(font)
    pdfium.FPDF_CloseDocument(document)
    assert name.value.decode() == face.family
    assert set(string.ascii_letters + string.digits) <= characters_of(face.family)
    assert "\N{ETHIOPIC SYLLABLE PE}" not in characters_of(face.family)
