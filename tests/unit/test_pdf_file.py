"""Opening a PDF: the files that are refused, by name."""

from pathlib import Path

import pytest

from activities.errors import NoPages, NotAPdf, PasswordRequired, SiteLinkError, UnreadablePdf
from tests.resources import make_pdfs
from tests.unit.documents import opened


def open_and_close(directory: Path, data: bytes) -> int:
    """Opens a PDF; returns how many pages it has."""
    with opened(directory, data) as pdf:
        return pdf.page_count


@pytest.mark.parametrize(
    ("name", "error"),
    [("html_error_page", NotAPdf), ("cut_off", UnreadablePdf), ("password_needed", PasswordRequired), ("no_pages", NoPages)],
)
def test_open_refuses_by_name(tmp_path: Path, name: str, error: type[SiteLinkError]) -> None:
    """The name of the error is the reason."""
    with pytest.raises(error):
        open_and_close(tmp_path, make_pdfs.ALL[name]())


def test_open_takes_a_header_after_junk(tmp_path: Path) -> None:
    """``%PDF-`` may stand anywhere in the first 1,024 bytes, and not later."""
    assert open_and_close(tmp_path, make_pdfs.header_after_junk()) == 1
    with pytest.raises(NotAPdf):
        open_and_close(tmp_path, b" " * 1024 + make_pdfs.one_page())
