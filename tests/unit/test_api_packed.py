"""The API over packed sheets: the same answers as over exploded ones, and ranges of the ``.pmtiles``."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from activities.bucket.dzi import Pyramid
from activities.bucket.location import BucketSettings
from activities.bucket.pmtiles import plan_archive
from activities.bucket.records import Layout
from activities.bucket.storage import Bucket, Stream
from activities.errors import DamagedRecord, ObjectMissing
from api.packed import PackedSheets
from tests.unit.api_fakes import PATH, FakeTemporal, client_of, make_app
from tests.unit.sheets import NAMES, PYRAMID, REF, accept, put_sheet

SHEETS = f"{PATH}/sheets"
ARCHIVE = f"{SHEETS}/sheet-1/tiles/sheet-1.pmtiles"
TILE = f"{SHEETS}/sheet-1/tiles/sheet-1_files/{NAMES[-1]}"
DZI = f"{SHEETS}/sheet-1/tiles/sheet-1.dzi"


@pytest.fixture(params=["directory", "s3"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> "Counted":
    """A bucket of each kind with an accepted upload."""
    settings = (
        request.getfixturevalue("s3_server").new_bucket() if request.param == "s3" else BucketSettings((tmp_path / "bucket").as_uri())
    )
    bucket = Counted(settings)
    accept(bucket)
    return bucket


class Counted(Bucket):
    """A real bucket that counts reads."""

    reads = 0
    gate: asyncio.Event | None = None

    async def stream_async(self, key: str, start: int = 0, end: int | None = None, etag: str | None = None) -> Stream:
        """Counts, and waits at the gate if there is one."""
        self.reads += 1
        if self.gate:
            await self.gate.wait()
        return await super().stream_async(key, start, end, etag)


@pytest.fixture
async def client(bucket: Counted) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the API."""
    async with client_of(make_app(bucket, FakeTemporal())) as client:
        yield client


async def test_packed_sheet_is_served_like_an_exploded_one(bucket: Counted, client: httpx2.AsyncClient) -> None:
    """The ``.dzi``, every tile and the thumbnail have the same bytes, types and ``Cache-Control``."""
    answers: list[dict[str, Any]] = []
    for layout in (Layout.EXPLODED, Layout.BOTH, Layout.PACKED):
        bucket.delete([info.key for info in list(bucket.objects(REF.sheets_prefix))])
        put_sheet(bucket, 1, layout=layout)
        found = {}
        for path in ("thumbnail.jpeg", "tiles/sheet-1.dzi", *(f"tiles/sheet-1_files/{name}" for name in NAMES)):
            answer = await client.get(f"{SHEETS}/sheet-1/{path}")
            assert answer.status_code == 200, path
            again = await client.get(f"{SHEETS}/sheet-1/{path}", headers={"If-None-Match": answer.headers["etag"]})
            assert again.status_code == 304
            found[path] = (answer.content, answer.headers["content-type"], answer.headers["cache-control"])
        answers.append(found)
    assert answers[0] == answers[1] == answers[2]
    assert answers[2]["tiles/sheet-1.dzi"][0] == PYRAMID.descriptor().encode()


@pytest.mark.parametrize("layout", list(Layout))
async def test_tile_outside_the_sheet_is_not_found(bucket: Counted, client: httpx2.AsyncClient, layout: Layout) -> None:
    """The same 404, whether or not the index is known."""
    put_sheet(bucket, 1, layout=layout)
    for path in (f"{SHEETS}/sheet-1/tiles/sheet-1_files/9/7_0.jpeg", f"{SHEETS}/sheet-2/tiles/sheet-2.dzi"):
        for _ in range(2):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["type"]) == (404, "ObjectMissing")
        await client.get(TILE)
    assert (await client.get(f"{SHEETS}/sheet-1/tiles/sheet-1.pmtiles")).status_code == (200 if layout.has_archive else 404)


async def test_known_sheet_takes_one_read_a_tile(bucket: Counted, client: httpx2.AsyncClient) -> None:
    """After the first tile, whose index is read by one request."""
    put_sheet(bucket, 1, layout=Layout.PACKED)
    await client.get(TILE)
    before = bucket.reads
    for name in NAMES:
        assert (await client.get(f"{SHEETS}/sheet-1/tiles/sheet-1_files/{name}")).status_code == 200
    assert bucket.reads - before == len(NAMES)
    assert before == 2


async def test_sheet_that_was_replaced_is_not_read_by_its_old_index(bucket: Counted, client: httpx2.AsyncClient) -> None:
    """Also when it became exploded, or packed again."""
    put_sheet(bucket, 1, layout=Layout.PACKED)
    first = (await client.get(TILE)).content
    put_sheet(bucket, 2, layout=Layout.PACKED)
    bucket.put(REF.archive(1), bucket.get(REF.archive(2)).body)
    second = (await client.get(TILE)).content
    assert second == (await client.get(TILE.replace("sheet-1", "sheet-2"))).content != first
    bucket.delete([REF.archive(1)])
    assert (await client.get(TILE)).status_code == (await client.get(DZI)).status_code == 404
    put_sheet(bucket, 1)
    assert (await client.get(TILE)).content == first
    bucket.delete([info.key for info in list(bucket.objects(REF.sheet_prefix(1)))])
    put_sheet(bucket, 1, layout=Layout.PACKED)
    assert (await client.get(TILE)).content == first
    assert (await client.get(DZI)).content == PYRAMID.descriptor().encode()


async def test_damaged_object_is_a_named_error(bucket: Counted, client: httpx2.AsyncClient) -> None:
    """Tiles and ``.dzi`` are refused; the object itself is still sent."""
    bucket.put(REF.archive(1), b"no archive")
    for path in (TILE, DZI):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["type"]) == (409, "DamagedRecord")
    assert (await client.get(ARCHIVE)).content == b"no archive"


async def test_requests_at_once_share_one_read_of_the_index(bucket: Counted) -> None:
    """A request that is given up leaves the others their index."""
    put_sheet(bucket, 1, layout=Layout.PACKED)
    sheets = PackedSheets(bucket)
    bucket.gate = asyncio.Event()
    requests = [asyncio.create_task(sheets.tile(REF.archive(1), tile)) for tile in PYRAMID.tiles()]
    await asyncio.sleep(0)
    requests[0].cancel()
    await asyncio.sleep(0)
    bucket.gate.set()
    results = await asyncio.gather(*requests, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(isinstance(result, bytes) for result in results[1:])
    assert bucket.reads == 1 + len(NAMES) - 1


async def test_failed_read_of_an_index_is_every_waiters_error_and_is_not_kept(bucket: Counted) -> None:
    """The next request reads again."""
    bucket.put(REF.archive(1), b"no archive")
    sheets = PackedSheets(bucket)
    results = await asyncio.gather(*(sheets.descriptor(REF.archive(1)) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [DamagedRecord] * 3
    put_sheet(bucket, 1, layout=Layout.PACKED)
    assert await sheets.descriptor(REF.archive(1)) == PYRAMID.descriptor().encode()


async def test_indexes_take_bounded_memory(bucket: Counted) -> None:
    """The index that was not used for longest is forgotten."""
    for number in (1, 2, 3):
        put_sheet(bucket, number, layout=Layout.PACKED)
    sheets = PackedSheets(bucket, memory_bytes=10_000)
    for number in (1, 2, 1, 3):
        await sheets.tile(REF.archive(number), (0, 0, 0))
    assert [sheets.knows(REF.archive(number)) for number in (1, 2, 3)] == [True, False, True]
    with pytest.raises(ObjectMissing):
        await sheets.tile(REF.archive(4), (0, 0, 0))


RANGES = [
    ("bytes=0-9", 0, 10),
    ("bytes=5-5", 5, 6),
    ("bytes=100-", 100, None),
    ("bytes=-7", -7, None),
    ("bytes=-99999999", 0, None),
    ("Bytes = 10-99999999", 10, None),
]


@pytest.mark.parametrize(("header", "start", "end"), RANGES)
async def test_range_of_the_object(bucket: Counted, client: httpx2.AsyncClient, header: str, start: int, end: int | None) -> None:
    """``206`` with the bytes and their place."""
    put_sheet(bucket, 1, layout=Layout.PACKED)
    body = bucket.get(REF.archive(1)).body
    answer = await client.get(ARCHIVE, headers={"Range": header})
    begin, stop, _ = slice(start, end).indices(len(body))
    assert (answer.status_code, answer.content) == (206, body[begin:stop])
    assert answer.headers["content-range"] == f"bytes {begin}-{stop - 1}/{len(body)}"
    assert answer.headers["content-length"] == str(stop - begin)
    assert answer.headers["etag"] == bucket.head(REF.archive(1)).etag
    assert answer.headers["content-type"] == "application/vnd.pmtiles"


@pytest.mark.parametrize("header", ["bytes=5-2", "bytes=-", "bytes=a-b", "pages=1-2", "bytes=0-1,5-6", "bytes=1", "bytes=0-1 2", ""])
async def test_other_ranges_are_ignored(bucket: Counted, client: httpx2.AsyncClient, header: str) -> None:
    """The answer is the whole object."""
    put_sheet(bucket, 1, layout=Layout.PACKED)
    answer = await client.get(ARCHIVE, headers={"Range": header})
    assert (answer.status_code, answer.content) == (200, bucket.get(REF.archive(1)).body)
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-disposition"] == 'attachment; filename="sheet-1.pmtiles"'
    assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("header", ["bytes=99999999-", "bytes=99999999-100000000", "bytes=-0"])
async def test_range_behind_the_end_is_refused(bucket: Counted, client: httpx2.AsyncClient, header: str) -> None:
    """``416`` with the size."""
    put_sheet(bucket, 1, layout=Layout.PACKED)
    answer = await client.get(ARCHIVE, headers={"Range": header})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{bucket.head(REF.archive(1)).size}"
    assert answer.headers["content-type"] == "application/problem+json"


async def test_range_of_an_empty_object_is_refused(bucket: Counted, client: httpx2.AsyncClient) -> None:
    """No byte of it can be sent."""
    bucket.put(REF.archive(1), b"")
    for header in ("bytes=0-", "bytes=-5"):
        assert (await client.get(ARCHIVE, headers={"Range": header})).status_code == 416
    assert (await client.get(ARCHIVE)).content == b""


async def test_if_range_keeps_two_objects_apart(bucket: Counted, client: httpx2.AsyncClient) -> None:
    """Only with the current ETag the range is sent; else the whole object is."""
    put_sheet(bucket, 1, layout=Layout.PACKED)
    first = await client.get(ARCHIVE, headers={"Range": "bytes=0-99"})
    rest = await client.get(ARCHIVE, headers={"Range": "bytes=100-", "If-Range": first.headers["etag"]})
    assert rest.status_code == 206
    assert first.content + rest.content == bucket.get(REF.archive(1)).body
    for etag_of_another in (
        '"other"',
        f'"other", {first.headers["etag"]}',
        '"gr\xfcn"',
        "*",
        '"',
        "W/" + first.headers["etag"],
        "Sat, 31 Jan 2026 09:30:00 GMT",
    ):
        whole = await client.get(ARCHIVE, headers={b"Range": b"bytes=100-", b"If-Range": etag_of_another.encode("latin-1")})
        assert (whole.status_code, whole.content) == (200, bucket.get(REF.archive(1)).body)


async def test_current_object_is_not_sent_again(bucket: Counted, client: httpx2.AsyncClient) -> None:
    """A HEAD tells size and ETag; ``If-None-Match`` gives 304, also beside a range."""
    put_sheet(bucket, 1, layout=Layout.PACKED)
    head = await client.head(ARCHIVE)
    info = bucket.head(REF.archive(1))
    assert (head.status_code, head.headers["content-length"], head.headers["etag"], head.content) == (200, str(info.size), info.etag, b"")
    condition = {"If-None-Match": str(info.etag)}
    assert (await client.head(ARCHIVE, headers=condition)).status_code == 304
    assert (await client.get(ARCHIVE, headers=condition)).status_code == 304
    assert (await client.get(ARCHIVE, headers={**condition, "Range": "bytes=0-9"})).status_code == 304


async def test_object_of_a_deleted_upload_is_gone(bucket: Counted, client: httpx2.AsyncClient) -> None:
    """At once."""
    put_sheet(bucket, 1, layout=Layout.PACKED)
    accept(bucket, deleted_at="2026-01-31T09:31:00.000Z")
    for path in (ARCHIVE, TILE, DZI):
        assert (await client.get(path)).json()["type"] == "UploadNotFound"


async def test_index_that_is_longer_than_the_first_read_is_read_whole(bucket: Counted) -> None:
    """A sheet of ten thousand tiles takes two requests."""
    pyramid = Pyramid(13_000, 9_000, 128, 0)
    plan = plan_archive(
        [(tile, number, 1 + number % 300) for number, tile in enumerate(pyramid.tiles())],
        b'{"width":13000,"height":9000,"tileSize":128,"overlap":0}',
    )
    body = plan.index + b"".join(bytes([number % 256]) * (1 + number % 300) for number in plan.contents)
    bucket.put(REF.archive(1), body)
    sheets = PackedSheets(bucket)
    tiles = list(pyramid.tiles())
    for number in (0, 5000, len(tiles) - 1):
        assert await sheets.tile(REF.archive(1), tiles[number]) == bytes([number % 256]) * (1 + number % 300)
    assert bucket.reads == 2 + 3
