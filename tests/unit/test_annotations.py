"""Form fields, and markups without an appearance: they are drawn as poppler draws them, and noted where they are not drawn."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pypdfium2
import pytest

from activities.bucket.records import Note, UploadOptions
from activities.interface import TilePage
from activities.render import raster
from activities.render.annotations.handles import MOST_ANNOTATIONS
from activities.render.annotations.markups import MOST_MARKUPS
from activities.render.child import ChildPool
from activities.render.fonts.page import MOST_APPEARANCES
from activities.render.pdf_file import PdfFile
from tests.missing import miss
from tests.resources import make_pdfs

Rect = tuple[float, float, float, float]
PX_PER_PT = 2
_AS_DRAWN = UploadOptions()


class Picture:
    """Rows of RGB of a page at 144 dpi."""

    def __init__(self, pixels: bytes, width: int, height: int) -> None:
        self.pixels, self.width, self.height = pixels, width, height

    def colours(self, rect: Rect) -> Counter[str]:
        """How many pixels of each strong colour lie in a rectangle: left, top, right, bottom in points from the upper left."""
        left, top, right, bottom = (round(edge * PX_PER_PT) for edge in rect)
        found: Counter[str] = Counter()
        for y in range(top, bottom):
            row = self.pixels[3 * (y * self.width + left) : 3 * (y * self.width + right)]
            for pixel in zip(row[::3], row[1::3], row[2::3], strict=True):
                if max(pixel) - min(pixel) > 60:
                    found[("red", "green", "blue")[pixel.index(max(pixel))]] += 1
                elif max(pixel) < 100:
                    found["black"] += 1
        return found

    def strongest(self, rect: Rect) -> str:
        """The colour that most pixels have; empty for a white rectangle."""
        return max(self.colours(rect).items(), key=lambda item: item[1], default=("", 0))[0]


def drawn(
    path: Path, width: int = 400, height: int = 200, times: int = 1, options: UploadOptions = _AS_DRAWN
) -> tuple[Picture, tuple[Note, ...]]:
    """The first page and its notes, which must be the same each time it is drawn."""
    pdf = PdfFile(path, options=options)
    try:
        buffer = raster.PixelBuffer()
        results = [(bytes(page.pixels), page.notes) for page in (raster.draw(pdf, 1, width, height, buffer) for _ in range(times))]
    finally:
        pdf.close()
    assert all(result == results[0] for result in results)
    return Picture(results[0][0], width, height), results[0][1]


@pytest.fixture(scope="session")
def by_poppler() -> Callable[[Path], Picture]:
    """Draws the first page by poppler. Without it a test run on CI fails; elsewhere its tests are skipped."""
    program = shutil.which("pdftoppm")
    if program is None:
        reason = "No pdftoppm here; it is in Debian's package poppler-utils."
        miss(reason)

    def draw(path: Path) -> Picture:
        command = [program, "-r", str(72 * PX_PER_PT), "-singlefile", str(path)]
        data = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
        header = re.match(rb"P6\s(\d+)\s(\d+)\s255\s", data)
        assert header is not None
        return Picture(data[header.end() :], int(header[1]), int(header[2]))

    return draw


def written(directory: Path, data: bytes) -> Path:
    """A file of its own."""
    path = directory / "source.pdf"
    path.write_bytes(data)
    return path


ROWS: dict[str, Rect] = {
    name: (60, row * make_pdfs.FIELD_PT + 1, 190, (row + 1) * make_pdfs.FIELD_PT - 1) for row, name in enumerate(make_pdfs.FIELDS)
}
FORM_HEIGHT = PX_PER_PT * make_pdfs.FIELD_PT * len(ROWS)


@pytest.mark.parametrize("acro_form", [True, False])
def test_form_fields_show_as_in_poppler(tmp_path: Path, by_poppler: Callable[[Path], Picture], acro_form: bool) -> None:
    """Text, check marks and seals, with and without appearance, listed in the form or not: the same colours, and no hidden field."""
    path = written(tmp_path, make_pdfs.form(acro_form))
    ours, notes = drawn(path, 400, FORM_HEIGHT, times=3)
    theirs = by_poppler(path)
    assert {name: ours.strongest(rect) for name, rect in ROWS.items()} == make_pdfs.FIELDS
    assert {name: theirs.strongest(rect) for name, rect in ROWS.items()} == make_pdfs.FIELDS
    assert notes == ()


def test_form_field_of_a_rotated_page_shows_in_its_place(tmp_path: Path) -> None:
    """The fields turn with the page."""
    picture, _ = drawn(written(tmp_path, make_pdfs.form(entries="/Rotate 90")), FORM_HEIGHT, 400)
    height = make_pdfs.FIELD_PT * len(ROWS)
    turned = {name: (height - bottom, left, height - top, right) for name, (left, top, right, bottom) in ROWS.items()}
    assert {name: picture.strongest(rect) for name, rect in turned.items()} == make_pdfs.FIELDS


def test_form_field_is_drawn_once(tmp_path: Path) -> None:
    """A field of half opacity is half red, not three quarters; and no highlight lies over any field."""
    picture, _ = drawn(written(tmp_path, make_pdfs.form()), 400, FORM_HEIGHT)
    left, top, _, _ = ROWS["half"]
    at = 3 * (PX_PER_PT * round(top + 8) * picture.width + PX_PER_PT * round(left + 60))
    red, green, blue = picture.pixels[at : at + 3]
    assert red == 255
    assert abs(green - 127) <= 2
    assert green == blue
    left, top, right, bottom = ROWS["unchecked"]
    assert {*picture.pixels[3 * PX_PER_PT * round(top) * picture.width :][: 3 * picture.width]} == {255}
    assert not picture.colours((left - 2, top, right + 2, bottom))


def test_form_that_was_filled_in_later_shows_its_values(tmp_path: Path, by_poppler: Callable[[Path], Picture]) -> None:
    """Where the form asks for appearances, PDFium makes one for a field that has none, and replaces an old one."""
    path = written(tmp_path, make_pdfs.form_filled_in_later())
    ours, notes = drawn(path, times=3)
    for picture in (ours, by_poppler(path)):
        for rect in ((10, 5, 190, 45), (10, 55, 190, 95)):
            colours = picture.colours(rect)
            assert colours["blue"] > 200
            assert not colours["red"]
    assert notes == ()


def test_pages_with_fields_are_equal_in_any_order(tmp_path: Path) -> None:
    """An appearance that PDFium makes for a field stays in the document, but changes no other page, and not the same page later."""
    path = written(tmp_path, make_pdfs.form_on_three_pages())
    orders = ([1, 2, 3], [3, 2, 1], [2, 2, 3, 1])
    pictures: list[dict[int, bytes]] = []
    for order in orders:
        pdf = PdfFile(path)
        buffer = raster.PixelBuffer()
        pictures.append({number: bytes(raster.draw(pdf, number, 200, 100, buffer).pixels) for number in order})
        pdf.close()
    assert pictures[0] == pictures[1] == pictures[2]
    assert len(set(pictures[0].values())) == 3


def test_pdfium_has_no_javascript() -> None:
    """Nor XFA: the PDFium that draws forms is built without either."""
    assert not {"V8", "XFA"} & set(pypdfium2.PDFIUM_INFO.flags)


def test_xfa_form_is_noted(tmp_path: Path) -> None:
    """The page that takes the form's place is drawn, and a note says so."""
    picture, notes = drawn(written(tmp_path, make_pdfs.xfa_form()))
    assert picture.colours((0, 0, 200, 100))["red"]
    assert [note.type for note in notes] == ["FormNotDrawn"]


LINE = "/Subtype /Line /F 4 /Rect [10 10 190 90] /L [20 20 180 80] /C [1 0 0] /BS << /W 3 >>"


@pytest.mark.parametrize(
    ("body", "colours"),
    [
        (LINE, {"red"}),
        (f"{LINE} /LE [/Circle /ClosedArrow] /IC [0 0 1]", {"red", "blue"}),
        (f"{LINE} /LE [/Square /Diamond] /IC [0 0 1]", {"red", "blue"}),
        ("/Subtype /Line /Rect [10 10 190 90] /L [20 20 180 80] /C [1 0 0] /Border [0 0 3 [9 6]] /LE [/Butt /Slash]", {"red"}),
        ("/Subtype /Line /Rect [10 10 190 90] /L [20 30 180 30] /C [1 0 0] /LL 30 /LLE 9 /Cap true /Contents (12 FT)", {"red", "black"}),
        ("/Subtype /Polygon /Rect [10 10 190 90] /Vertices [20 20 180 20 100 80] /C [1 0 0] /IC [0 0 1] /BS << /W 4 >>", {"red", "blue"}),
        ("/Subtype /PolyLine /Rect [10 10 190 90] /Vertices [20 20 60 80 100 20 180 80] /C [0 0.6 0] /LE [/None /OpenArrow]", {"green"}),
        ("/Subtype /FreeText /Rect [10 10 190 90] /DA (/Helv 18 Tf 0 0 1 rg) /Contents (Verify in field) /BS << /W 2 >>", {"blue"}),
        ("/Subtype /FreeText /Rect [10 10 190 90] /DA (/Helv 9 Tf 0 0 1 rg) /C [1 0 0] /Q 1 /Contents (Two\nlines)", {"red", "blue"}),
        ("/Subtype /Ink /Rect [10 10 190 90] /InkList [[20 20 180 80]] /C [1 0 0] /BS << /W 3 >>", {"red"}),
        ("/Subtype /Square /Rect [10 10 190 90] /C [1 0 0] /IC [0 0 1] /BS << /W 3 >>", {"red", "blue"}),
        ("/Subtype /Circle /Rect [10 10 190 90] /C [1 0 0] /BS << /W 3 >>", {"red"}),
    ],
)
def test_markup_without_appearance_shows_as_in_poppler(
    tmp_path: Path, by_poppler: Callable[[Path], Picture], body: str, colours: set[str]
) -> None:
    """The same colours in the same parts of the page, in about the same amounts, and nothing to note."""
    path = written(tmp_path, make_pdfs.markups(body))
    ours, notes = drawn(path, times=3)
    theirs = by_poppler(path)
    whole = (0, 0, 200, 100)
    for picture in (ours, theirs):
        assert {colour for colour, count in picture.colours(whole).items() if count > 20} == colours
    for colour in colours:
        assert 0.5 < ours.colours(whole)[colour] / theirs.colours(whole)[colour] < 2
    for column in range(4):
        part = (50 * column, 0, 50 * column + 50, 100)
        # Text wraps elsewhere, because the widths of the fonts differ.
        assert (ours.colours(part).total() > 20) == (theirs.colours(part).total() > 20) or "Contents" in body
    assert notes == ()


@pytest.mark.parametrize(
    "body",
    [
        "/Subtype /Polygon /Rect [30 30 170 70] /Vertices [30 30 170 30 170 70 30 70] /C [1 0 0] /BE << /S /C /I 2 >>",
        "/Subtype /Polygon /Rect [30 30 170 70] /Vertices [30 70 170 70 170 30 30 30] /C [1 0 0] /BE << /S /C /I 2 >>",
        "/Subtype /Square /Rect [30 30 170 70] /C [1 0 0] /BE << /S /C /I 2 >>",
        "/Subtype /Circle /Rect [30 30 170 70] /C [1 0 0] /BE << /S /C /I 2 >>",
    ],
)
def test_revision_cloud_bulges_outwards(tmp_path: Path, body: str) -> None:
    """The bumps lie outside the shape, whether its corners go clockwise or counter-clockwise."""
    picture, notes = drawn(written(tmp_path, make_pdfs.markups(body)), times=2)
    outside = picture.colours((0, 0, 200, 28))["red"], picture.colours((0, 72, 200, 100))["red"]
    assert min(outside) > 100
    assert not picture.colours((60, 42, 140, 58))
    assert notes == ()


def test_free_text_wraps_in_its_box(tmp_path: Path) -> None:
    """A long text takes more lines and does not leave the box; PDFium alone draws one line and cuts it off."""
    body = "/Subtype /FreeText /Rect [20 20 120 80] /DA (/Helv 10 Tf 0 0 1 rg) /Border [0 0 0] /Contents (%s)"
    picture, _ = drawn(written(tmp_path, make_pdfs.markups(body % "VERIFY ALL DIMENSIONS IN FIELD BEFORE YOU CUT THE OPENING")))
    inside, page = picture.colours((20, 20, 120, 80)), picture.colours((0, 0, 200, 100))
    assert inside == page
    lines = [bool(picture.colours((20, y / 2, 120, y / 2 + 0.5))) for y in range(40, 160)]
    assert sum(now and not before for before, now in pairwise(lines)) + lines[0] >= 3


def test_callout_has_its_line(tmp_path: Path) -> None:
    """The line of a callout begins outside the box of its text."""
    body = "/Subtype /FreeText /Rect [10 10 190 90] /RD [100 5 5 40] /CL [15 15 60 50 110 60] /LE /OpenArrow /DA (/Helv 9 Tf 1 0 0 rg)"
    picture, _ = drawn(written(tmp_path, make_pdfs.markups(f"{body} /Contents (see A-501)")))
    assert picture.colours((10, 50, 70, 90))["red"] > 100


def test_markup_that_is_not_drawn_is_noted(tmp_path: Path) -> None:
    """The note counts each kind, without markups that are hidden or beside the page, links, popups, and markups with an appearance."""
    stamp = "/Subtype /Stamp /Rect [10 10 60 60]"
    path = written(
        tmp_path,
        make_pdfs.markups(
            stamp,
            stamp,
            "/Subtype /Caret /Rect [10 10 20 20]",
            "/Subtype /FreeText /Rect [10 10 90 90] /DA (/Helv 9 Tf) /Contents <FEFF65E5672C>",
            f"{stamp} /F 2",
            f"{stamp} /F 32",
            "/Subtype /Stamp /Rect [300 10 350 60]",
            "/Subtype /Link /Rect [10 10 60 60]",
            "/Subtype /Popup /Rect [10 10 60 60]",
            LINE,
        ),
    )
    _, notes = drawn(path, times=3)
    text = "4 markups have no appearance in the PDF. Missing or incomplete: 2 Stamp, 1 Caret, 1 FreeText."
    assert notes == (Note("AnnotationNotDrawn", text),)
    _, notes = drawn(written(tmp_path, make_pdfs.annotation_on_white()))
    assert notes == ()


@pytest.mark.parametrize(
    "points",
    ["/Line /L [1020 1020 1180 1080]", "/PolyLine /Vertices [1020 1020 1180 1080]", "/Polygon /Vertices [1020 1020 1180 1080 1180 1020]"],
)
def test_markup_without_a_rectangle_is_drawn_where_its_points_are(tmp_path: Path, points: str) -> None:
    """The page begins at 1000, so an empty rectangle lies beside it, and the points lie on it. A markup without ``/Rect`` is noted."""
    body, entries = f"/Subtype {points} /C [1 0 0] /BS << /W 3 >>", "/MediaBox [1000 1000 1200 1100]"
    picture, notes = drawn(written(tmp_path, make_pdfs.markups(f"{body} /Rect [0 0 0 0]", entries=entries)), times=2)
    assert picture.colours((20, 20, 180, 80))["red"] > 100
    assert notes == ()
    _, notes = drawn(written(tmp_path, make_pdfs.markups(body, entries=entries)), times=2)
    assert [note.type for note in notes] == ["AnnotationNotDrawn"]


def test_text_of_another_font_is_noted(tmp_path: Path) -> None:
    """The text is drawn in Helvetica, and a note says so."""
    body = "/Subtype /FreeText /Rect [10 10 190 90] /DA (/TiRo 9 Tf 0 0 1 rg) /Contents (Times) /Border [0 0 0]"
    picture, notes = drawn(written(tmp_path, make_pdfs.markups(body)), times=2)
    assert picture.colours((0, 0, 200, 100))["blue"]
    assert [note.type for note in notes] == ["FontSubstituted"]


@pytest.mark.parametrize(
    "body",
    [
        "/Subtype /Line /Rect [10 10 190 90] /L [0 0 1e30 10]",
        "/Subtype /Line /Rect [10 10 190 90] /L [20 20 20 20]",
        "/Subtype /Line /Rect [10 10 190 90] /L [20 20 80 80] /C /Red",
        "/Subtype /Line /Rect [10 10 190 90] /L [20 20 80 80] /BS << /W (thick) >>",
        "/Subtype /Polygon /Rect [10 10 190 90] /Vertices [1 2 (a) << >> 3 4]",
        "/Subtype /Polygon /Rect [10 10 190 90]",
        f"/Subtype /Polygon /Rect [10 10 190 90] /Vertices [{'7 ' * 12_000}]",
        "/Subtype /Polygon /Rect [10 10 190 90] /Vertices [0 0 900000 0 900000 900000] /BE << /S /C >>",
        "/Subtype /Circle /Rect [10 10 190 90] /BE 7",
        "/Subtype /FreeText /Rect [10 10 190 90] /DA (/F x Tf 1 rg rg) /Contents (x)",
        "/Subtype /FreeText /Rect [10 10 190 90] /DA (/Helv 9 Tf) /RD [100 0 100 0] /Contents (x)",
        f"/Subtype /FreeText /Rect [10 10 190 90] /DA (/Helv 9 Tf) /Contents ({'x' * 6000})",
    ],
)
def test_markup_that_is_nonsense_is_noted(tmp_path: Path, body: str) -> None:
    """The page is drawn with its other markups."""
    picture, notes = drawn(written(tmp_path, make_pdfs.markups(body, LINE)), times=2)
    assert picture.colours((0, 0, 200, 100))["red"]
    assert [note.type for note in notes] == (["AnnotationNotDrawn"] if "/BE 7" not in body else [])


def test_markups_of_a_file_that_pikepdf_refuses_are_noted(tmp_path: Path) -> None:
    """The page itself is drawn."""
    path = written(
        tmp_path, make_pdfs.markups(LINE, "/Subtype /Square /Rect [10 10 190 90] /C [1 0 0]").replace(b"startxref\n", b"startxref\n9")
    )
    picture, notes = drawn(path, times=2)
    assert picture.colours((0, 0, 200, 100))["red"]
    assert notes == (Note("AnnotationNotDrawn", "1 markup has no appearance in the PDF. Missing or incomplete: 1 Line."),)


def test_appearance_that_draws_nothing_is_no_note(tmp_path: Path) -> None:
    """Its author wanted nothing to show."""
    writer = make_pdfs.Writer()
    blank = writer.stream(b"", "/Type /XObject /Subtype /Form /BBox [0 0 50 50]")
    annotation = writer.add(f"<< /Type /Annot {LINE} /AP << /N {blank} 0 R >> >>")
    picture, notes = drawn(written(tmp_path, writer.finish([writer.page(b"", f"/MediaBox [0 0 200 100] /Annots [{annotation} 0 R]")])))
    assert not picture.colours((0, 0, 200, 100))
    assert notes == ()


def test_work_on_a_page_of_many_annotations_is_bounded(tmp_path: Path) -> None:
    """One annotation that the page names very often: the page is drawn, and notes say how many were not looked at."""
    writer = make_pdfs.Writer()
    line = writer.add(f"<< /Type /Annot {LINE} >>")
    page = writer.page(b"", f"/MediaBox [0 0 200 100] /Annots [{f'{line} 0 R ' * (MOST_ANNOTATIONS + 1)}]")
    picture, notes = drawn(written(tmp_path, writer.finish([page])))
    assert picture.colours((0, 0, 200, 100))["red"]
    left = MOST_ANNOTATIONS - MOST_MARKUPS
    assert [note.message for note in notes] == [
        f"Not checked for missing glyphs: {MOST_ANNOTATIONS - MOST_APPEARANCES:,} annotations.",
        f"{left:,} markups have no appearance in the PDF. Missing or incomplete: {left:,} Line.",
        f"Only {MOST_ANNOTATIONS:,} of {MOST_ANNOTATIONS + 1:,} annotations were looked at.",
    ]


def test_operators_of_a_page_are_bounded(tmp_path: Path) -> None:
    """A page names a cloud of very many bumps very often: some are drawn, the others are noted."""
    writer = make_pdfs.Writer()
    corners = "5 5 15000 5 15000 95 5 95"
    cloud = writer.add(f"<< /Type /Annot /Subtype /Polygon /Rect [5 5 195 95] /Vertices [{corners}] /C [1 0 0] /BE << /S /C >> >>")
    page = writer.page(b"", f"/MediaBox [0 0 200 100] /Annots [{f'{cloud} 0 R ' * 200}]")
    picture, notes = drawn(written(tmp_path, writer.finish([page])))
    assert picture.colours((0, 0, 200, 100))["red"]
    (note,) = notes
    missing = re.search(r"([0-9]+) Polygon", note.message)
    assert missing is not None
    assert 100 < int(missing[1]) < 200


MARKED = {
    **dict.fromkeys(
        ("FreeText", "Line", "Square", "Circle", "Polygon", "PolyLine", "Highlight", "Underline", "Squiggly", "StrikeOut"), True
    ),
    **dict.fromkeys(("Stamp", "Caret", "Ink", "Text", "FileAttachment", "Sound", "Redact"), True),
    **dict.fromkeys(("Link", "Watermark", "PrinterMark", "TrapNet", "Screen", "Movie", "3D", "RichMedia"), False),
}
"""Kinds of annotations, and whether reviewers add them."""


@pytest.mark.parametrize(("kind", "is_left_out"), MARKED.items())
def test_review_markups_are_left_out(tmp_path: Path, kind: str, is_left_out: bool) -> None:
    """With the option ``markups``, those with and those without an appearance. Everything else stays."""
    writer = make_pdfs.Writer()
    red = writer.stream(b"1 0 0 rg 0 0 50 50 re f", "/Type /XObject /Subtype /Form /BBox [0 0 50 50]")
    body = f"/Type /Annot /Subtype /{kind} /F 4 /C [1 0 0]"
    shown = writer.add(f"<< {body} /Rect [0 0 50 50] /AP << /N {red} 0 R >> >>")
    bare = writer.add(
        f"<< {body} /Rect [100 0 150 50] /L [100 0 150 50] /Vertices [100 0 150 50 150 0] /Contents (x) /DA (/F 9 Tf 1 0 0 rg) >>"
    )
    popup = writer.add(f"<< /Type /Annot /Subtype /Popup /Rect [60 0 90 50] /Open true /Parent {shown} 0 R >>")
    page = writer.page(b"", f"/MediaBox [0 0 200 100] /Annots [{shown} 0 R {bare} 0 R {popup} 0 R]")
    path = written(tmp_path, writer.finish([page]))
    assert drawn(path)[0].strongest((0, 50, 50, 100)) == "red"
    picture, notes = drawn(path, times=2, options=UploadOptions(markups=False))
    assert (picture.strongest((0, 50, 50, 100)) == "") is is_left_out
    assert not picture.colours((50, 0, 100, 100))
    if is_left_out:
        assert not picture.colours((0, 0, 200, 100))
        assert notes == ()


@pytest.mark.parametrize("acro_form", [True, False])
def test_form_fields_stay_when_review_markups_are_left_out(tmp_path: Path, acro_form: bool) -> None:
    """Also those that PDFium does not take for fields, and each time the page is drawn."""
    path = written(tmp_path, make_pdfs.form(acro_form))
    with_markups, without = (drawn(path, 400, FORM_HEIGHT, 2, UploadOptions(markups=markups))[0] for markups in (True, False))
    assert with_markups.pixels == without.pixels


async def test_notes_come_from_a_child(tmp_path: Path) -> None:
    """The answer of a render child has the notes."""
    path = written(tmp_path, make_pdfs.markups("/Subtype /Stamp /Rect [10 10 60 60]"))
    target = tmp_path / "tiles"
    target.mkdir()
    pool = ChildPool(1)
    try:
        rendered = await pool.tile_page("a", path, TilePage("o/p/q/u", 1, 200, 100, UploadOptions(dpi=72)), target, lambda: None)
    finally:
        await pool.close()
    assert [note.type for note in rendered.notes] == ["AnnotationNotDrawn"]
