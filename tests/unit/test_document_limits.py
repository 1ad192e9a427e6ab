"""The limits of a document: what is over one is refused by name before any tile is made, and nothing holds the tiles of such a sheet."""

import gzip
import hashlib
import json
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.bucket.dzi import LARGEST_SIDE_PX, MOST_TILES, Pyramid, tile_count
from activities.bucket.location import BucketSettings
from activities.bucket.pmtiles import Index
from activities.bucket.records import Layout, UploadOptions, UploadRecord, to_json
from activities.bucket.report import SheetReport, UploadReport
from activities.bucket.storage import Bucket
from activities.bucket.verify import verify_upload
from activities.host import Host
from activities.interface import CheckSheets, CountPages, Document, Page, TilePage
from activities.layouts import SheetConversion
from activities.limits import DocumentLimits
from activities.render.child import ChildPool
from activities.scratch import Scratch
from activities.threads import FairThreads
from tests.resources.make_pdfs import strips
from tests.unit.sheets import REF, put_upload
from worker.app import Activities
from worker.settings import WorkerSettings

OPTIONS = UploadOptions()
STRIP = (0.24, 84_900_000)
"""In points, a page of 1 x 354 million px at 300 dpi: within the pixel budget, and 2.8 million tiles."""


def own_activities(bucket: Bucket) -> Activities:
    """The activities of a host that has nothing but a bucket."""
    return Activities(
        Host(bucket=bucket, scratch=cast("Scratch", None), children=ChildPool(1), threads=FairThreads(2, "t"), uploads=FairThreads(1, "u"))
    )


async def count(directory: Path, body: bytes, limits: DocumentLimits, options: UploadOptions = OPTIONS) -> Document:
    """The result of ``count_pages`` for a real document."""
    bucket = Bucket(BucketSettings((directory / "bucket").as_uri()))
    bucket.put(REF.source, body)
    bucket.put(REF.record, to_json(UploadRecord("a.pdf", len(body), hashlib.sha256(body).hexdigest(), options, "2026-01-31T09:30:00.250Z")))
    children = ChildPool(1)
    with FairThreads(2, "test") as threads, closing(Scratch(directory / "scratch", 1 << 30)) as scratch:
        host = Host(bucket=bucket, scratch=scratch, children=children, threads=threads, uploads=threads, limits=limits)
        try:
            return await ActivityEnvironment().run(Activities(host).count_pages, CountPages(str(REF)))
        finally:
            await children.close()


async def test_document_of_long_strips_costs_nothing(tmp_path: Path) -> None:
    """19 kB with 2,000 pages of 1 x 354 million px would make 5.5 billion objects. Every page is refused, and the forecast counts none."""
    body = strips(2000, *STRIP)
    assert len(body) < 20_000
    document = await count(tmp_path, body, DocumentLimits())
    assert {page.reason for page in document.pages} == {"PageTooLarge"}
    assert document.pages[9].detail == "page 10 is 353,750,000 px long at 300 dpi, limit 100,000"
    assert {(page.width, page.height, page.dpi) for page in document.pages} == {(0, 0, 0)}
    assert document.forecast is not None
    assert document.forecast.tiles == 0
    assert document.forecast.puts == 2


async def test_sheet_over_its_tiles_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    """The sentence gives the number and the limit. A page at the limit is not over it."""
    tiles = tile_count(2000, 1000, 128)
    options = UploadOptions(dpi=72, tile_size=128)
    body = strips(2, 2000, 1000)
    document = await count(tmp_path, body, DocumentLimits(sheet_tiles=tiles - 1), options)
    assert [(page.reason, page.detail) for page in document.pages] == [
        ("TooManyTiles", f"page {number} makes {tiles:,} tiles, limit {tiles - 1:,}") for number in (1, 2)
    ]
    document = await count(tmp_path, body, DocumentLimits(sheet_tiles=tiles, side_px=2000, upload_tiles=2 * tiles), options)
    assert [page.reason for page in document.pages] == [None, None]
    assert document.forecast is not None
    assert document.forecast.tiles == 2 * tiles


async def test_upload_over_its_tiles_is_refused(tmp_path: Path) -> None:
    """The document fails for good, by name. What a page over its own limit would make does not count."""
    tiles = tile_count(2000, 1000, 128)
    options = UploadOptions(dpi=72, tile_size=128)
    with pytest.raises(ApplicationError) as caught:
        await count(tmp_path, strips(2, 2000, 1000), DocumentLimits(upload_tiles=2 * tiles - 1), options)
    assert (caught.value.type, caught.value.non_retryable) == ("TooManyTiles", True)
    assert caught.value.message == f"all pages together make {2 * tiles:,} tiles, limit {2 * tiles - 1:,}"
    limits = DocumentLimits(side_px=1000, upload_tiles=1)
    assert [page.reason for page in limits.check_pages([Page(1, "A-1", 1001, 9, 72)], options)] == ["PageTooLarge"]


def test_refused_page_keeps_its_title() -> None:
    """The page stays in the list of sheets, as one that cannot be drawn."""
    page = DocumentLimits().check_page(Page(3, "Profile", 100_001, 9, 300, scaled=True), OPTIONS)
    assert page == Page(3, "Profile", reason="PageTooLarge", detail="page 3 is 100,001 px long at 300 dpi, limit 100,000")


def test_no_ordinary_sheet_is_over_a_limit() -> None:
    """The largest budget with the smallest tiles is within a sheet's limit, and 2,000 sheets of 42 x 30 in within that of an upload."""
    limits = DocumentLimits()
    side = int(((4 << 30) / 3) ** 0.5)
    assert tile_count(side, side, 128) < limits.sheet_tiles
    assert 2000 * tile_count(12_600, 9_000, 256) < limits.upload_tiles


def test_limits_are_settings() -> None:
    """A host cannot be set to make a sheet that no other process could read."""
    settings = WorkerSettings.from_env({})
    assert settings.limits == DocumentLimits(2000, 100_000, 200_000, 10_000_000)
    names = ("SITELINK_MAX_PAGES", "SITELINK_MAX_SIDE_PX", "SITELINK_MAX_SHEET_TILES", "SITELINK_MAX_UPLOAD_TILES")
    assert WorkerSettings.from_env({name: str(7 + at) for at, name in enumerate(names)}).limits == DocumentLimits(7, 8, 9, 10)
    for name, most in (("SITELINK_MAX_SIDE_PX", LARGEST_SIDE_PX), ("SITELINK_MAX_SHEET_TILES", MOST_TILES)):
        with pytest.raises(ValueError, match=f"{name} is '{most + 1}'; a whole number from 1 to {most:,} is wanted"):
            WorkerSettings.from_env({name: str(most + 1)})


@pytest.mark.parametrize(
    "size", [(1, LARGEST_SIDE_PX + 1), (10**9, 10**9), (10**4000, 1), (300_000, 300_000)], ids=["long", "9", "4000", "area"]
)
def test_sheet_of_a_hostile_size_is_refused_in_no_memory(size: tuple[int, int]) -> None:
    """Whoever wrote its record: the tiles are counted, not listed."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"no pyramid|integer string conversion"):
            Pyramid(*size)
        assert tile_count(*size, 256) > MOST_TILES or size[1] > LARGEST_SIDE_PX
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


async def test_page_that_an_earlier_release_let_pass_is_refused_by_name(tmp_path: Path) -> None:
    """Its size is in the run's history. No child draws it."""
    activities = own_activities(Bucket(BucketSettings((tmp_path / "bucket").as_uri())))
    with pytest.raises(ApplicationError) as caught:
        await ActivityEnvironment().run(activities.tile_page, TilePage(str(REF), 1, 1, 354_000_000, OPTIONS))
    assert (caught.value.type, caught.value.non_retryable) == ("PageTooLarge", True)


# ---------------------------------------------------------------------- what others wrote into the bucket


@contextmanager
def little_memory(most_bytes: int = 32 << 20) -> Iterator[None]:
    """Fails if the block holds more memory at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()


def rewrite(bucket: Bucket, key: str, **fields: object) -> None:
    """Changes fields of a record."""
    bucket.put(key, json.dumps({**json.loads(bucket.get(key).body), **fields}).encode())


@pytest.mark.parametrize("size", [(10**9, 10**9), (1, 10**8), (300_000, 300_000)], ids=["huge", "long", "area"])
@pytest.mark.parametrize("layout", list(Layout))
async def test_record_of_a_hostile_size_is_a_finding(tmp_path: Path, layout: Layout, size: tuple[int, int]) -> None:
    """Whoever wrote it: verify names it, also deep and without a manifest; a reconcile takes the sheet for broken; none takes memory."""
    bucket = Bucket(BucketSettings((tmp_path / "bucket").as_uri()))
    state = put_upload(bucket, 1, layout=layout).sheets[0]
    rewrite(bucket, REF.sheet_record(1), width=size[0], height=size[1], tiles=10**12)
    activities = own_activities(bucket)
    with little_memory():
        for deep in (False, True):
            report, total = verify_upload(bucket, REF, deep=deep)
            assert isinstance(report, SheetReport)
            assert any(problem.startswith("sheet.json: no pyramid of") for problem in report.problems), report.problems
            assert not total.verified
        checked = await ActivityEnvironment().run(activities.check_sheets, CheckSheets(str(REF), (state,), repair=False))
        assert [sheet.number for sheet in checked.broken] == [1]
        with FairThreads(2, "t") as threads:
            other = Layout.PACKED if layout is Layout.EXPLODED else Layout.EXPLODED
            converted = SheetConversion(bucket, threads, REF, 1, other, tmp_path).write(threading.Event())
        assert (converted.converted, converted.reason) == (False, "DamagedRecord")
        hostile = replace(state, width=size[0], height=size[1])  # as a manifest may say
        checked = await ActivityEnvironment().run(activities.check_sheets, CheckSheets(str(REF), (hostile,)))
        assert [sheet.number for sheet in checked.broken] == [1]
    assert not any(bucket.has(marker) for marker in (REF.descriptor(1), REF.archive(1)))


async def test_manifest_of_a_hostile_size_is_a_finding(tmp_path: Path) -> None:
    """Without its ``sheet.json``, only the progress tells the size of a sheet."""
    bucket = Bucket(BucketSettings((tmp_path / "bucket").as_uri()))
    manifest = put_upload(bucket, 1)
    bucket.put(REF.manifest, to_json(replace(manifest, sheets=(replace(manifest.sheets[0], width=10**9, height=10**9),))))
    bucket.delete([REF.sheet_record(1)])
    with little_memory():
        report, _ = verify_upload(bucket, REF)
    assert isinstance(report, SheetReport)
    assert "the progress: no pyramid of 1000000000 x 1000000000 px, at most 10,000,000 px a side" in report.problems


@pytest.mark.parametrize("name", ["sheet.json", "manifest.json", "sheet-1.dzi"])
def test_object_that_is_too_large_for_what_it_is_is_a_finding(tmp_path: Path, name: str) -> None:
    """It is not read into memory."""
    bucket = Bucket(BucketSettings((tmp_path / "bucket").as_uri()))
    put_upload(bucket, 1)
    key = {"sheet.json": REF.sheet_record(1), "manifest.json": REF.manifest, "sheet-1.dzi": REF.descriptor(1)}[name]
    with (tmp_path / "bucket" / key).open("r+b") as file:
        file.truncate(1 << 40)
    with little_memory():
        report, total = verify_upload(bucket, REF)
    assert isinstance(report, SheetReport)
    assert isinstance(total, UploadReport)
    assert not total.verified
    words = (
        "the .dzi does not describe"
        if name.endswith(".dzi")
        else f"{name} cannot be read: it has 1,099,511,627,776 bytes, limit 67,108,864"
    )
    assert any(problem.startswith(words) for problem in (*report.problems, *total.problems)), (report, total)


def directory(*values: int, zeros: int = 0) -> bytes:
    """A directory of a PMTiles archive: these numbers and so many zeros, as varints in a gzip."""
    body = bytearray()
    for number in values:
        value = number
        while value > 0x7F:
            body.append(value & 0x7F | 0x80)
            value >>= 7
        body.append(value)
    return gzip.compress(bytes(body) + bytes(zeros), 1)


def archive(root: bytes, leaves: bytes) -> bytes:
    """The index of an archive with these directories."""
    metadata = gzip.compress(b"{}")
    ends = [127, len(root), 127 + len(root), len(metadata), 127 + len(root) + len(metadata), len(leaves)]
    header = struct.pack("<7sB11Q6B4iB2i", b"PMTiles", 3, *ends, ends[4] + ends[5], 0, 0, 0, 0, 1, 2, 1, 3, 0, 9, 0, 0, 0, 0, 0, 0, 0)
    return header + root + metadata + leaves


MANY = directory(9_000, *[0] * 18_000, *[60_000] * 9_000, *[1] * 9_000)
"""A root directory that names one leaf 9,000 times."""


@pytest.mark.parametrize(
    ("root", "leaf"),
    [
        (directory(1, 0, 0, 100_000, 1), directory(15_000_000, zeros=60_000_000)),
        (MANY, directory(0)),
        (directory(1 << 62), directory(0)),
    ],
    ids=["one large leaf", "an empty leaf many times", "count"],
)
def test_index_that_inflates_is_refused_in_bounded_memory(root: bytes, leaf: bytes) -> None:
    """A small object whose directories inflate to many entries, or are named many times."""
    body = archive(root, leaf.ljust(100_000, b"\0"))
    assert len(body) < 300_000
    with little_memory(160 << 20), pytest.raises(ValueError, match=r"^(its|a directory of it)"):
        Index(body)
