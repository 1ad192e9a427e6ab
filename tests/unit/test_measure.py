"""The sizes, titles and notes of a document's pages, and the documents that are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from activities.bucket.records import Note, UploadOptions
from activities.errors import PdfPortfolio, TooManyPages
from activities.interface import Page
from activities.render.measure import measure
from activities.render.structure import read_structure
from activities.render.titles import clean_title
from tests.resources import make_pdfs
from tests.unit.documents import opened

DPI_72 = UploadOptions(dpi=72)


def pages_of(directory: Path, data: bytes, options: UploadOptions = DPI_72) -> tuple[Page, ...]:
    """The pages of a document, measured."""
    with opened(directory, data) as pdf:
        return measure(pdf, options, 2000).pages


def test_measure_applies_rotation_and_crop_box(tmp_path: Path) -> None:
    """The size is the size of the visible part, turned."""
    assert [(page.width, page.height) for page in pages_of(tmp_path, make_pdfs.rotated_90())] == [(100, 200)]
    assert [(page.width, page.height) for page in pages_of(tmp_path, make_pdfs.crop_box_smaller())] == [(100, 50)]


def test_measure_takes_no_nonsense_for_user_unit(tmp_path: Path) -> None:
    """A number that is not positive or not finite counts as 1; where the entry is not a number at all, a note says so."""
    pages = pages_of(tmp_path, make_pdfs.user_unit_nonsense())
    assert {(page.width, page.height) for page in pages} == {(200, 100)}
    assert [bool(page.notes) for page in pages] == [True, False, False, False, True, True]


def test_measure_finds_a_user_unit_whose_place_in_the_table_is_wrong(tmp_path: Path) -> None:
    """The UserUnit is an object of its own, and the cross-reference table gives it a wrong offset: the object is searched for."""
    writer = make_pdfs.Writer()
    unit = writer.add("10")
    data = writer.finish([writer.page(entries=f"/MediaBox [0 0 20 10] /UserUnit {unit} 0 R")])
    entry = data.index(b"xref\n") + len(b"xref\n0 0\n") + 20 * unit
    damaged = data[:entry] + b"%010d" % (int(data[entry : entry + 10]) + 3) + data[entry + 10 :]
    assert damaged != data
    (page,) = pages_of(tmp_path, damaged)
    assert (page.width, page.height, page.notes) == (200, 100, ())


DAMAGED_ENDS = {
    "table in a wrong place": lambda data: data.replace(b"startxref\n", b"startxref\n9"),
    "junk behind the end": make_pdfs.junk_behind_the_end,
    "no table": lambda data: data.replace(b"xref\n0", b"0000\n0"),
}


@pytest.mark.parametrize("damage", DAMAGED_ENDS.values(), ids=DAMAGED_ENDS)
def test_measure_keeps_the_size_in_inches_when_the_end_is_damaged(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """A damaged file that PDFium rebuilds is as large as the sound file, its UserUnit included."""
    (page,) = pages_of(tmp_path, damage(make_pdfs.user_unit_10()))
    assert page.reason is None
    assert (page.width, page.height) == (200, 100)
    assert page.notes == ()


def test_measure_says_when_a_user_unit_cannot_be_known(tmp_path: Path) -> None:
    """The attachments have a password, so pikepdf cannot read the file, and the file's bytes name a UserUnit."""
    (page,) = pages_of(tmp_path, make_pdfs.attachments_encrypted(make_pdfs.user_unit_10()))
    assert (page.width, page.height, page.reason) == (20, 10, None)
    assert [note.type for note in page.notes] == ["UserUnitUncertain"]


def test_measure_asks_for_no_password_that_only_attachments_need(tmp_path: Path) -> None:
    """The file has no UserUnit anywhere: nothing is uncertain."""
    (page,) = pages_of(tmp_path, make_pdfs.attachments_encrypted(make_pdfs.one_page()))
    assert (page.width, page.height, page.reason, page.notes) == (200, 100, None, ())


def test_structure_of_another_document_is_not_believed(tmp_path: Path) -> None:
    """Where pikepdf finds other sizes or another number of pages than PDFium, it has read something else: its UserUnits are not used."""
    path = tmp_path / "source.pdf"
    path.write_bytes(make_pdfs.user_unit_10())
    assert read_structure(path, [(20, 10)]).user_units == [10]
    assert read_structure(path, [(10, 20)]).user_units == [10]  # turned
    assert read_structure(path, [(30, 10)]).user_units == [None]
    assert read_structure(path, [(20, 10), (20, 10)]).user_units == [None, None]


def test_measure_refuses_a_portfolio_and_names_its_drawings(tmp_path: Path) -> None:
    """Its cover page is no drawing; the message names the PDFs inside, ten of them at most, and says what to do."""
    data = make_pdfs.portfolio("A-101.pdf", "notes.txt", "A-201.PDF")
    with pytest.raises(PdfPortfolio, match=r"a portfolio with 2 PDFs inside: A-101\.pdf, A-201\.PDF; upload each of them by itself$"):
        pages_of(tmp_path, data)
    with pytest.raises(PdfPortfolio, match=r"with 1 PDF inside: A-1\.pdf;"):
        pages_of(tmp_path, make_pdfs.junk_behind_the_end(make_pdfs.portfolio("A-1.pdf")))
    with pytest.raises(PdfPortfolio, match=r"with 12 PDFs inside: A-0\.pdf, .*, A-9\.pdf and 2 more;"):
        pages_of(tmp_path, make_pdfs.attachments_encrypted(make_pdfs.portfolio(*(f"A-{number}.pdf" for number in range(12)))))


def test_measure_looks_at_some_of_very_many_attachments(tmp_path: Path) -> None:
    """PDFium takes longer for each attachment, the more there are. The messages say that there are at least so many."""
    names = [f"A-{number}.pdf" for number in range(1_200)]
    with pytest.raises(PdfPortfolio, match=r"with at least 1,000 PDFs inside: A-0\.pdf, .* and at least 990 more;"):
        pages_of(tmp_path, make_pdfs.portfolio(*names))
    (page,) = pages_of(tmp_path, make_pdfs.portfolio(*(name.replace("pdf", "dwg") for name in names)))
    assert page.notes[0].message.endswith(", A-9.dwg and at least 990 more.")


def test_measure_takes_a_portfolio_without_drawings_inside(tmp_path: Path) -> None:
    """The portfolio's own pages are drawn; a note of the first sheet names the files that are not."""
    (page,) = pages_of(tmp_path, make_pdfs.portfolio("model.dwg"))
    assert [note.type for note in page.notes] == ["AttachmentsNotDrawn"]
    assert "model.dwg" in page.notes[0].message
    (page,) = pages_of(tmp_path, make_pdfs.portfolio())
    assert page.notes == ()


def test_measure_names_pages_by_bookmark_then_label(tmp_path: Path) -> None:
    """The first bookmark of a page wins, nested or not; a remote go-to is no bookmark; a page without bookmark has its label."""
    titles = [page.title for page in pages_of(tmp_path, make_pdfs.titles())]
    assert titles[:3] == ["A-101 - First Floor Plan", "A-102 - Roof Plan", "M-7"]
    assert titles[3] is not None
    assert titles[3].startswith("A-104 ")
    assert len(titles[3]) == 120
    assert titles[3].isprintable()
    assert titles[4:] == ["E-5", "\u00c4-6 \u0393"]


def test_measure_survives_an_outline_that_loops(tmp_path: Path) -> None:
    """Every outline item is visited once."""
    assert [page.title for page in pages_of(tmp_path, make_pdfs.outline_loop())] == ["one", "two"]


def test_measure_knows_no_title_where_there_is_none(tmp_path: Path) -> None:
    """No bookmark, no label: None, not an empty string."""
    assert [page.title for page in pages_of(tmp_path, make_pdfs.one_page())] == [None]


def test_measure_marks_bad_pages_and_goes_on(tmp_path: Path) -> None:
    """A page without area, one that cannot be loaded, one that is too large: each says why, the others are measured."""
    pages = pages_of(tmp_path, make_pdfs.bad_pages_among_good())
    assert [page.reason for page in pages] == [None, "PageUnreadable", "PageUnreadable", "PageTooLarge", None]
    assert [page.number for page in pages] == [1, 2, 3, 4, 5]
    assert [page.detail for page in pages][1:4] == [
        "page 2 has no area: 0 x 0 pt",
        "page 3 cannot be loaded",
        "page 4 is 13,888.9 x 13,888.9 in: over 1,073,741,824 bytes of pixels even at 30 dpi",
    ]
    assert {(page.width, page.height, page.dpi) for page in pages[1:4]} == {(0, 0, 0)}


def test_measure_does_not_believe_the_count(tmp_path: Path) -> None:
    """A /Count of a thousand million over one page is one page."""
    assert len(pages_of(tmp_path, make_pdfs.count_lies())) == 1


def test_measure_refuses_too_many_pages(tmp_path: Path) -> None:
    """The message gives the number and the limit."""
    with pytest.raises(TooManyPages, match=r"^2,431 pages, limit 2,000$"):
        pages_of(tmp_path, make_pdfs.many_pages(2431))


def test_page_over_its_budget_says_that_it_is_scaled(tmp_path: Path) -> None:
    """The note gives both resolutions and the budget; a page within its budget has no note."""
    (page,) = pages_of(tmp_path, make_pdfs.one_page(entries="/MediaBox [0 0 720 720]"), UploadOptions(dpi=300, budget_bytes=1 << 20))
    assert (page.dpi, page.scaled) == (59, True)
    message = "The sheet is drawn at 59 dpi instead of 300: at 300 its pixels would take more than 1,048,576 bytes."
    assert page.notes == (Note("Scaled", message),)
    (page,) = pages_of(tmp_path, make_pdfs.one_page())
    assert (page.scaled, page.notes) == (False, ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("\x00\x07 \t", None),
        (" A\r\n B ", "A B"),
        ("A\u202eB\u200b\ud800", "AB"),
        ("x" * 119 + " y", "x" * 119),
        ("Grundri\u00df 2", "Grundri\u00df 2"),
    ],
)
def test_clean_title_is_fit_to_show(text: str, expected: str | None) -> None:
    """One line without control characters, or None."""
    assert clean_title(text) == expected
