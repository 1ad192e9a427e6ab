"""``halve_page`` over a real directory and a real document."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.bucket.dzi import sheet_size
from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import UploadOptions, UploadRecord, to_json
from activities.bucket.storage import Bucket
from activities.host import Host
from activities.interface import CountPages, HalvePage, Page
from activities.render.child import ChildPool
from activities.scratch import Scratch
from activities.threads import FairThreads
from tests.resources import make_pdfs
from tests.unit.test_hostile_child import PATIENT, HostilePool
from worker.app import Activities

REF = UploadRef("acme", "tower", "a1", "u1")
BOXES = ["0 0 611.9 792.7", "0 0 20.3 10.7", "3 5 903.31 77.7", "0 0 200 100"]
"""The MediaBoxes of pages with UserUnit 3 that are rotated by 90 degrees. Their halved sizes do not follow from their sizes in pixels."""


def boxes() -> bytes:
    """A document of four pages with the sizes in ``BOXES``."""
    writer = make_pdfs.Writer()
    return writer.finish([writer.page(entries=f"/MediaBox [{box}] /UserUnit 3 /Rotate 90") for box in BOXES])


@asynccontextmanager
async def activities(
    directory: Path, options: UploadOptions, body: bytes | None = None, children: ChildPool | None = None
) -> AsyncIterator[Activities]:
    """The activities of a host whose bucket has an accepted upload of four pages, or of this document."""
    body = body or boxes()
    bucket = Bucket(BucketSettings((directory / "bucket").as_uri()))
    bucket.put(REF.source, body)
    record = UploadRecord("plan.pdf", len(body), hashlib.sha256(body).hexdigest(), options, "2026-01-31T09:30:00.250Z")
    bucket.put(REF.record, to_json(record))
    with FairThreads(2, "test") as threads, closing(Scratch(directory / "scratch", 1 << 30)) as scratch:
        children = children or ChildPool(1)
        yield Activities(Host(bucket=bucket, scratch=scratch, children=children, threads=threads, uploads=threads))
        await children.close()


async def halved(activities: Activities, number: int, dpi: int) -> Page | None:
    """The result of ``halve_page``."""
    return await ActivityEnvironment().run(activities.halve_page, HalvePage(str(REF), number, dpi))


async def test_halved_page_is_what_a_count_at_that_resolution_gives(tmp_path: Path) -> None:
    """The size is equal to the pixel, with UserUnit and rotation, and so is the title. The page is scaled, with a note that says why."""
    async with activities(tmp_path, UploadOptions(dpi=301)) as ours:
        counted = (await ActivityEnvironment().run(ours.count_pages, CountPages(str(REF)))).pages
        for page, box in zip(counted, BOXES, strict=True):
            left, bottom, right, top = map(float, box.split())
            expected = sheet_size(top - bottom, right - left, 3, 150, 1 << 30)
            half = await halved(ours, page.number, page.dpi)
            assert half is not None
            assert expected is not None
            assert (half.number, half.title, half.width, half.height) == (page.number, page.title, expected.width, expected.height)
            assert (half.dpi, half.scaled) == (150, True)
            (note,) = half.notes
            assert note.type == "Scaled"
            assert note.message == "The sheet is drawn at 150 dpi instead of 301: the page needs more memory than one page may take."


@pytest.mark.parametrize(("dpi", "at"), [(300, 150), (300, 75), (59, 59)], ids=["halved already", "less", "below the minimum"])
async def test_page_is_not_halved_twice_nor_below_the_minimum(tmp_path: Path, dpi: int, at: int) -> None:
    """Half is computed from the counted resolution, so that a halved page is not halved again. Below 30 dpi no plan can be read."""
    async with activities(tmp_path, UploadOptions(dpi=dpi)) as ours:
        assert await halved(ours, 1, at) is None


async def test_page_over_its_budget_is_halved_from_what_it_was_counted_as(tmp_path: Path) -> None:
    """The half is not that of the upload's option. The page has one note, not two."""
    async with activities(tmp_path, UploadOptions(dpi=300, budget_bytes=64 << 20)) as ours:
        page = (await ActivityEnvironment().run(ours.count_pages, CountPages(str(REF)))).pages[0]
        assert page.scaled
        half = await halved(ours, 1, page.dpi)
    assert half is not None
    assert half.dpi == page.dpi // 2
    assert [note.type for note in page.notes] == [note.type for note in half.notes] == ["Scaled"]


ASKED = HalvePage(str(REF), 1, 300, "", 300, 200)


@pytest.mark.parametrize(
    "half", ["width=301, height=2, dpi=150", "width=3, height=201, dpi=150", "width=0, height=0, dpi=0, reason='PageTooLarge', detail='x'"]
)
async def test_half_is_no_larger_than_the_page_was(tmp_path: Path, half: str) -> None:
    """The limits of sides and tiles are checked when the page is counted. A child that was taken over cannot pass them by later."""
    code = f"if request['options']['dpi'] < 300: answer = page({half})".encode()
    async with activities(tmp_path, UploadOptions(dpi=300), code, HostilePool(1, PATIENT)) as ours:
        with pytest.raises(ApplicationError, match="another page 1 at half its resolution") as error:
            await ActivityEnvironment().run(ours.halve_page, ASKED)
    assert error.value.type == "RenderCrashed"


async def test_run_of_an_earlier_release_gives_no_size(tmp_path: Path) -> None:
    """Its page is halved as before."""
    code = b"if request['options']['dpi'] < 300: answer = page(dpi=150)"
    async with activities(tmp_path, UploadOptions(dpi=300), code, HostilePool(1, PATIENT)) as ours:
        half = await halved(ours, 1, 300)
    assert half is not None
    assert half.dpi == 150
