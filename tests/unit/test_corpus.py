"""Real plans and hostile files, where a checkout has a corpus beside it, through render children with the limits that a worker has."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from activities.bucket.dzi import Pyramid
from activities.bucket.records import UploadOptions
from activities.errors import SiteLinkError
from activities.interface import TilePage
from activities.render.child import ChildLimits, ChildPool
from tests.unit.test_child import check_complete, fork_servers, silent

pytestmark = pytest.mark.asyncio(loop_scope="module")

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
OPTIONS = UploadOptions()
MAX_PAGES = 2000
LIMITS = ChildLimits(cpu_s=60, wall_s=100)
"""A file gets half of what it would get from a worker."""
REFUSED = {
    "brotli_filter_prototype": "UnreadablePdf",
    "corrupted_artur": "UnreadablePdf",
    "cropbox_no_overlap_pdfium": "PageUnreadable",
    "enc_libreoffice_openpassword": "PasswordRequired",
    "enc_user_pw_nonascii_aeoa": "PasswordRequired",
    "enc_user_pw_test_user": "PasswordRequired",
    "fuzz_poppler_395": "UnreadablePdf",
    "fuzz_poppler_85140_page_height_2e31": "PageTooLarge",
    "page_tree_recursive_kids": "PageUnreadable",
    "polyglot_pe_zip_pdf": "UnreadablePdf",
    "syn_enc_aes256_user_pw_secret": "PasswordRequired",
    "syn_html_error_page": "NotAPdf",
    "syn_mediabox_1e6pt": "PageTooLarge",
    "syn_page_tree_5000_deep": "PageUnreadable",
    "syn_same_page_100000x": "TooManyPages",
    "syn_truncated_last_1k": "UnreadablePdf",
    "syn_zero_bytes": "NotAPdf",
    "syn_zero_pages": "NoPages",
}
"""How a hostile file is refused; the first page of every other one is measured."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[ChildPool]:
    """One for all files: each is an upload of its own, and so gets a child of its own."""
    pool = ChildPool(1, LIMITS)
    yield pool
    await pool.close()
    assert fork_servers() == set()


@pytest.mark.parametrize("path", sorted(CORPUS.glob("hostile/*.pdf")), ids=lambda path: path.stem)
async def test_hostile_file_is_measured_or_refused_by_name(pool: ChildPool, path: Path) -> None:
    """No file of the corpus ends in anything but a document or the right name."""
    try:
        document = await pool.count_pages(path.stem, path, OPTIONS, MAX_PAGES, silent)
    except SiteLinkError as error:
        assert error.type == REFUSED.get(path.stem)  # noqa: PT017 (a page's refusal is no exception)
    else:
        assert document.pages[0].reason == REFUSED.get(path.stem)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("plans/*.pdf")), ids=lambda path: path.stem)
async def test_first_page_of_a_plan_is_tiled(pool: ChildPool, tmp_path: Path, path: Path) -> None:
    """Real plan sets: every page measured, the first one tiled whole."""
    document = await pool.count_pages(path.stem, path, OPTIONS, MAX_PAGES, silent)
    assert all(page.reason is None and not page.scaled for page in document.pages)
    page = document.pages[0]
    await pool.tile_page(path.stem, path, TilePage("o/p/q/u", 1, page.width, page.height, OPTIONS), tmp_path, silent)
    check_complete(tmp_path, Pyramid(page.width, page.height))
