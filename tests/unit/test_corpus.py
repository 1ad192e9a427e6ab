"""Real plans and hostile files, where a checkout has a corpus beside it, through render children with the limits that a worker has."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from activities.bucket.dzi import Pyramid
from activities.bucket.records import UploadOptions
from activities.interface import TilePage
from activities.render.child import ChildLimits, ChildPool
from tests.one_upload import one_host
from tests.resources import make_pdfs
from tests.unit.test_child import check_complete, fork_servers, render_children, silent

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
    "syn_mediabox_sliver_200000x1": "PageTooLarge",
    "syn_page_tree_5000_deep": "PageUnreadable",
    "syn_same_page_100000x": "TooManyPages",
    "syn_truncated_last_1k": "UnreadablePdf",
    "syn_zero_bytes": "NotAPdf",
    "syn_zero_pages": "NoPages",
}
"""How a hostile file is refused; the first page of every other one is drawn."""
COSTLY = {"syn_bomb_flate_content_1GiB", "syn_bomb_form_xobject_10e9", "syn_tiling_pattern_tiny_step"}
"""How these end depends on how much a machine does in the CPU time that a page may take."""
SHORT = ChildLimits(cpu_s=20)


@dataclass(frozen=True)
class Neighbour:
    """A plan of one sheet, and the objects of its sheets when nothing else is drawn."""

    path: Path
    objects: dict[str, bytes]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def neighbour(tmp_path_factory: pytest.TempPathFactory) -> Neighbour:
    """One for all files."""
    directory = tmp_path_factory.mktemp("neighbour")
    path = directory / "neighbour.pdf"
    path.write_bytes(make_pdfs.plan_set(1))
    async with one_host(directory) as host:
        await host.run(path)
        return Neighbour(path, host.sheets(path))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[ChildPool]:
    """One for all plans: each is an upload of its own, and so gets a child of its own."""
    pool = ChildPool(1, LIMITS)
    yield pool
    await pool.close()
    assert fork_servers() == set()


@pytest.mark.parametrize("path", sorted(CORPUS.glob("hostile/*.pdf")), ids=lambda path: path.stem)
async def test_hostile_file_ends_by_name_beside_a_plan(neighbour: Neighbour, tmp_path: Path, path: Path) -> None:
    """The first page is drawn or refused by the right name, nothing is left, and a plan on the same host is drawn as if it were alone."""
    async with one_host(tmp_path, 2, SHORT) as host:
        outcome, beside = await asyncio.gather(host.run(path, lambda page: page.number == 1), host.run(neighbour.path))
        assert (host.leftovers(), render_children()) == ([], set())
        assert (beside.sheets, host.sheets(neighbour.path)) == ({1: "ready"}, neighbour.objects)
    end = outcome.refusal[0] if outcome.refusal else outcome.sheets[1]
    if path.stem in COSTLY:
        assert end in {"ready", "RenderTimeout", "RenderOutOfMemory"}
    else:
        assert end == REFUSED.get(path.stem, "ready")


@pytest.mark.parametrize("path", sorted(CORPUS.glob("plans/*.pdf")), ids=lambda path: path.stem)
async def test_first_page_of_a_plan_is_tiled(pool: ChildPool, tmp_path: Path, path: Path) -> None:
    """Real plan sets: every page measured, the first one tiled whole."""
    document = await pool.count_pages(path.stem, path, OPTIONS, MAX_PAGES, silent)
    assert all(page.reason is None and not page.scaled for page in document.pages)
    page = document.pages[0]
    await pool.tile_page(path.stem, path, TilePage("o/p/q/u", 1, page.width, page.height, OPTIONS), tmp_path, silent)
    check_complete(tmp_path, Pyramid(page.width, page.height))
