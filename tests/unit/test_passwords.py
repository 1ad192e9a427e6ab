"""Encrypted PDFs, as a render child opens them."""

from pathlib import Path
from typing import Literal

import pytest

from activities.bucket.records import UploadOptions
from activities.errors import PasswordRequired
from activities.interface import TilePage
from activities.render.measure import measure
from activities.render.passwords import open_with_pikepdf, password_forms
from activities.render.raster import PixelBuffer, draw
from tests.resources import make_pdfs
from tests.unit.documents import opened
from tests.unit.test_child import Sheets, children, render_children, silent

Revision = Literal[2, 3, 4, 5, 6]
REVISIONS: tuple[Revision, ...] = (2, 3, 4, 5, 6)
CORPUS = Path(__file__).parents[3] / "shared" / "corpus" / "hostile"
OF_OTHER_PROGRAMS = {
    "enc_empty_user_pw_nocopy": "",
    "enc_libreoffice_openpassword": "openpassword",
    "enc_user_pw_nonascii_aeoa": "æøå",
    "enc_user_pw_test_user": "test_user",
    "syn_enc_aes128_empty_user_pw": "",
    "syn_enc_aes256_user_pw_secret": "secret",
}
"""Files of the corpus, and their passwords."""
UMLAUT = "Türschloß"
OWNER = "owner"
DECOMPOSED = "Tu\u0308rschloß"
"""The same letters, as some keyboards send them."""


def pixels(directory: Path, data: bytes, password: str) -> bytes:
    """Opens, measures and draws the first page."""
    with opened(directory, data, password) as pdf:
        document = measure(pdf, UploadOptions(dpi=72), 10)
        page = document.pages[0]
        assert page.reason is None
        return bytes(draw(pdf, 1, page.width, page.height, PixelBuffer()).pixels)


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("password", ["secret", UMLAUT, OWNER])
def test_password_opens_and_draws_the_same_page(tmp_path: Path, revision: Revision, password: str) -> None:
    """The user's password, also with letters that ASCII does not have, and the owner's."""
    data = make_pdfs.encrypted(UMLAUT if password == OWNER else password, revision)
    assert pixels(tmp_path, data, password) == pixels(tmp_path, make_pdfs.one_page(), "")


@pytest.mark.parametrize("revision", REVISIONS)
def test_password_opens_however_it_is_typed(tmp_path: Path, revision: Revision) -> None:
    """In PDFium and in pikepdf: a file has an umlaut in one form, by its revision, and keyboards send two."""
    data = make_pdfs.encrypted(UMLAUT, revision)
    for password in (UMLAUT, DECOMPOSED):
        assert pixels(tmp_path, data, password)
        with open_with_pikepdf(tmp_path / "source.pdf", password) as pdf:
            assert len(pdf.pages) == 1


@pytest.mark.skipif(not CORPUS.is_dir(), reason="there is no corpus beside this checkout")
@pytest.mark.parametrize(("name", "password"), OF_OTHER_PROGRAMS.items())
def test_files_of_other_programs_open_with_their_passwords(tmp_path: Path, name: str, password: str) -> None:
    """They are refused without, if they have one."""
    data = (CORPUS / f"{name}.pdf").read_bytes()
    assert pixels(tmp_path, data, password)
    if password:
        with pytest.raises(PasswordRequired):
            pixels(tmp_path, data, "")


@pytest.mark.parametrize("revision", REVISIONS)
def test_password_missing_or_wrong_is_told(tmp_path: Path, revision: Revision) -> None:
    """No message shows a password."""
    data = make_pdfs.encrypted("secret", revision)
    with pytest.raises(PasswordRequired, match="has none"):
        pixels(tmp_path, data, "")
    with pytest.raises(PasswordRequired, match="is wrong") as wrong:
        pixels(tmp_path, data, "wrong-guess")
    assert "wrong-guess" not in str(wrong.value)


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("password", ["", "not-needed"])
def test_owner_only_encryption_opens_with_any_password(tmp_path: Path, revision: Revision, password: str) -> None:
    """Also a file that is not encrypted at all."""
    expected = pixels(tmp_path, make_pdfs.one_page(), password)
    assert pixels(tmp_path, make_pdfs.encrypted("", revision), password) == expected


@pytest.mark.parametrize("layers", [{}, {"A": False}, {"A": True}])
def test_layers_of_an_encrypted_page_are_switched(tmp_path: Path, layers: dict[str, bool]) -> None:
    """PDFium then reads a copy with other layers that is made in memory."""
    found = []
    options = UploadOptions(layers=layers)
    data = make_pdfs.layered("/OFF [@A]")
    for each, password in ((data, ""), (make_pdfs.encrypted("secret", data=data), "secret")):
        with opened(tmp_path, each, password, options) as pdf:
            drawn = draw(pdf, 1, 10, 10, PixelBuffer())
            found.append((bytes(drawn.pixels), drawn.layers, drawn.notes))
    assert found[0] == found[1]


def test_user_unit_of_an_encrypted_page_is_read(tmp_path: Path) -> None:
    """PDFium does not tell the UserUnit, so pikepdf opens the file with the same password."""
    with opened(tmp_path, make_pdfs.encrypted("secret", data=make_pdfs.ALL["user_unit_10"]()), "secret") as pdf:
        page = measure(pdf, UploadOptions(), 10).pages[0]
    with opened(tmp_path, make_pdfs.ALL["user_unit_10"]()) as pdf:
        assert page == measure(pdf, UploadOptions(), 10).pages[0]


def test_no_form_of_a_password_is_empty_or_twice() -> None:
    """An empty form would open a file that needs no password."""
    assert password_forms("") == []
    assert password_forms("secret") == [b"secret"]
    assert len(password_forms(DECOMPOSED)) == 3
    assert password_forms("密码") == ["密码".encode()]


async def test_warm_child_opens_nothing_for_who_has_no_password(tmp_path: Path) -> None:
    """A child that has the document open refuses a request without the password, and takes the right one afterwards."""
    sheets = Sheets(tmp_path)
    source = sheets.source(make_pdfs.encrypted("secret"))
    async with children() as pool:
        page = (await pool.count_pages("a", source, UploadOptions(), 10, silent, "secret")).pages[0]
        child = render_children()
        args = TilePage("a", 1, page.width, page.height, UploadOptions())
        for wrong in ("", "wrong"):
            with pytest.raises(PasswordRequired):
                await pool.tile_page("a", source, args, tmp_path, silent, wrong)
        await pool.tile_page("a", source, args, tmp_path, silent, "secret")
        assert render_children() == child
        await pool.retire("a")
        assert render_children() == set()


def test_fonts_of_an_encrypted_page_are_checked(tmp_path: Path) -> None:
    """For text in an annotation, PDFium opens the file a second time."""
    body = "/Subtype /Stamp /Rect [10 10 190 90] /AP << /N {} 0 R >>"
    found = []
    writer = make_pdfs.Writer()
    form = writer.stream(
        b"BT /F 20 Tf 10 10 Td (text) Tj ET",
        "/Type /XObject /Subtype /Form /BBox [0 0 180 80] "
        "/Resources << /Font << /F << /Type /Font /Subtype /Type1 /BaseFont /Nowhere >> >> >>",
    )
    annotation = writer.add(f"<< /Type /Annot {body.format(form)} >>")
    data = writer.finish([writer.page(b"", f"/MediaBox [0 0 200 100] /Annots [{annotation} 0 R]")])
    for each, password in ((data, ""), (make_pdfs.encrypted("secret", data=data), "secret")):
        with opened(tmp_path, each, password) as pdf:
            found.append(draw(pdf, 1, 200, 100, PixelBuffer()).notes)
    assert found[0] == found[1]
    assert [note.type for note in found[0]] == ["FontSubstituted"]
