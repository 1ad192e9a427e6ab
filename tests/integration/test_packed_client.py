"""``packed.js`` in Node.js: packed sheets in files and on a real S3 server, in front of which a recorder cuts, holds and refuses."""

import json
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from activities.bucket import pmtiles
from activities.bucket.dzi import Pyramid
from activities.bucket.location import BucketSettings
from activities.bucket.pmtiles import plan_archive
from activities.bucket.storage import Bucket
from api.app import CLIENT
from tests.integration.test_client_module import node_path, said_by
from tests.resources.packed_file import packed_file
from tests.servers.npm_packages import NoPackages, installed_packages
from tests.servers.recorder import Answer, Recorder, Request, passed_on, recording
from tests.servers.s3 import TestServer, presigned
from tests.waiting import DEADLINE_S

ROOT = Path(__file__).parents[2]
SHEET = Pyramid(1000, 700, 254, 1)
LARGE = Pyramid(20_000, 14_000, 128, 0)
"""The index of this one has leaf directories."""
KEY = "sheet-1.pmtiles"

PRELUDE = f"""
import {{ openAsBlob, readFileSync }} from "node:fs";
import {{ packedTileSource }} from {json.dumps((CLIENT / "packed.js").as_uri())};
const load = (source, place, started = () => {{}}) => new Promise((finish, fail) => {{
  const job = {{ src: source.getTileUrl(...place), finish, fail: (message) => fail(new Error(message)) }};
  source.downloadTileStart(job);
  started(() => source.downloadTileAbort(job));
}});
const text = async (source, place) => (await load(source, place)).text();
const problem = ({{ type, message, status }}) => [type, message, status];
"""


def tile(level: int, column: int, row: int) -> bytes:
    """A third of the tiles are equal."""
    return b"white" if (column + row) % 3 == 0 else f"{level}/{column}_{row}".encode()


def own_file(pyramid: Pyramid, tile: Callable[[int, int, int], bytes], **metadata: object) -> bytes:
    """A packed sheet as SiteLink writes it."""
    size = {"width": pyramid.width, "height": pyramid.height, "tileSize": pyramid.tile_size, "overlap": pyramid.overlap}
    tiles = [(place, tile(*place)) for place in pyramid.tiles()]
    plan = plan_archive(((place, body, len(body)) for place, body in tiles), json.dumps({"schema": 1, **size, **metadata}).encode())
    return plan.index + b"".join(plan.contents)


def plain_file(pyramid: Pyramid, tile: Callable[[int, int, int], bytes], **metadata: object) -> bytes:
    """The same with an index that is no gzip, as the format allows it."""
    with patch.object(pmtiles, "_stored", bytes):
        body = own_file(pyramid, tile, **metadata)
    return body[:97] + b"\x01" + body[98:]


FILE = packed_file(SHEET, tile, sheet=1)


@pytest.fixture
def recorder(s3_server: TestServer) -> Iterator[Recorder]:
    """Stands in front of the real server."""
    with recording(s3_server.endpoint) as recorder:
        yield recorder


@pytest.fixture
def settings(s3_server: TestServer) -> BucketSettings:
    """A bucket with a packed sheet."""
    settings = s3_server.new_bucket()
    Bucket(settings).put(KEY, FILE)
    return settings


def signed(settings: BucketSettings, recorder: Recorder, key: str = KEY, expires_s: int = 600) -> str:
    """A presigned URL, at the recorder's address."""
    return presigned(replace(settings, endpoint=recorder.url), key, expires_s)


async def said(script: str, *arguments: str) -> list[Any]:
    """The lines of a script."""
    return await said_by(PRELUDE + script, "", *arguments)


@pytest.fixture(scope="module")
def judge() -> Path:
    """The reader of the format that npm has."""
    node_path()
    try:
        return installed_packages(ROOT / "tests" / "servers" / "npm-pmtiles", "pmtiles") / "node_modules/pmtiles/dist/esm/index.js"
    except NoPackages as error:
        pytest.fail(str(error))


ALL_TILES = """
const blob = await openAsBlob(rest[0]);
const source = await packedTileSource(blob);
const { getTileUrl, downloadTileStart, downloadTileAbort, ...facts } = source;
say(facts);
const { PMTiles } = await import(rest[1]);
const judge = new PMTiles({ getKey: () => "", getBytes: async (at, size) => ({ data: await blob.slice(at, at + size).arrayBuffer() }) });
const wrong = [];
for (let level = source.minLevel; level <= source.maxLevel; level++) {
  const size = (full) => Math.ceil(Math.ceil(full / 2 ** (source.maxLevel - level)) / source.tileSize);
  const step = Math.ceil(size(source.width) / 40);
  for (let column = 0; column < size(source.width); column += step) {
    for (let row = 0; row < size(source.height); row++) {
      const expected = (column + row) % 3 ? `${level}/${column}_${row}` : "white";
      const judged = Buffer.from((await judge.getZxy(level, column, row)).data).toString();
      if ((await text(source, [level, column, row])) !== expected || judged !== expected) wrong.push([level, column, row]);
    }
  }
}
say(wrong);
"""


@pytest.mark.parametrize("writer", [packed_file, own_file, plain_file])
@pytest.mark.parametrize("pyramid", [SHEET, LARGE], ids=["root", "leaves"])
async def test_every_tile_of_a_file_is_read(judge: Path, tmp_path: Path, writer: Callable[..., bytes], pyramid: Pyramid) -> None:
    """As npm's reader reads it: with and without leaf directories, compressed by PyPI's writer, stored by SiteLink's, or plain."""
    body = writer(pyramid, tile, sheet=1)
    assert (struct.unpack_from("<Q", body, 48)[0] > 0) == (pyramid is LARGE)
    path = tmp_path / KEY
    path.write_bytes(body)
    facts, wrong = await said(ALL_TILES, str(path), judge.as_uri())
    assert facts.pop("metadata")["sheet"] == 1
    assert facts == {
        "width": pyramid.width,
        "height": pyramid.height,
        "tileSize": pyramid.tile_size,
        "tileOverlap": pyramid.overlap,
        "minLevel": 0,
        "maxLevel": pyramid.max_level,
    }
    assert wrong == []


async def test_few_ranges_are_asked_for(settings: BucketSettings, recorder: Recorder) -> None:
    """The index is one request, equal tiles are one, and what was read is not asked for again."""
    script = """
    const source = await packedTileSource(rest[0]);
    const places = JSON.parse(rest[1]);
    for (let time = 0; time < 2; time++) say((await Promise.all(places.map((place) => text(source, place)))).join());
    """
    places = [place for place in SHEET.tiles() if place[0] == SHEET.max_level]
    lines = await said(script, signed(settings, recorder), json.dumps(places))
    assert lines == [",".join(tile(*place).decode() for place in places)] * 2
    ranges = [request.headers["range"] for request in recorder.requests]
    assert ranges[0] == "bytes=0-32767"
    assert len(ranges) == len(set(ranges)) == 1 + len({tile(*place) for place in places})


async def test_an_abort_ends_a_request_when_nobody_waits_for_it_any_more(settings: BucketSettings, recorder: Recorder) -> None:
    """Of two tiles that are equal, one is aborted: the other is loaded. When all are aborted, the request ends; the next try succeeds."""
    held = threading.Event()
    held.set()

    def answer(request: Request) -> Answer | None:
        if request.path in ("/hold", "/release"):
            (held.clear if request.path == "/hold" else held.set)()
            return Answer(200)
        assert held.wait(DEADLINE_S)
        return None

    recorder.answer = answer
    script = """
    const source = await packedTileSource(rest[0]);
    let abort;
    const aborted = load(source, [10, 0, 0], (stop) => { abort = stop; });
    const equal = text(source, [10, 1, 2]);
    abort();
    say(await equal);
    say(await Promise.race([aborted, new Promise((resolve) => setTimeout(resolve, 0, "nothing"))]));
    const fetching = globalThis.fetch;
    await fetching(`${rest[1]}/hold`);
    const ended = new Promise((resolve) => {
      globalThis.fetch = (...request) => fetching(...request).catch((error) => { resolve(error.name); throw error; });
    });
    load(source, [10, 1, 0], (stop) => setTimeout(stop, 10));
    say(await ended);
    globalThis.fetch = fetching;
    await fetching(`${rest[1]}/release`);
    say(await text(source, [10, 1, 0]));
    const opening = packedTileSource(rest[0], { signal: AbortSignal.abort(new Error("closed")) });
    await opening.catch((error) => say(error.message));
    """
    lines = await said(script, signed(settings, recorder), recorder.url)
    assert lines == ["white", "nothing", "AbortError", "10/1_0", "closed"]


async def test_a_signed_address_is_replaced_when_it_is_refused(settings: BucketSettings, recorder: Recorder) -> None:
    """The function that gives addresses is called again after the server's 403, once for all the tiles that are refused."""
    script = """
    const addresses = JSON.parse(rest[0]);
    let asked = 0;
    const source = await packedTileSource(async () => addresses[asked++]);
    say(asked);
    const places = [[10, 1, 0], [10, 0, 1], [9, 0, 0]];
    say((await Promise.all(places.map((place) => text(source, place)))).join());
    say(asked);
    await packedTileSource(async () => addresses[0]).catch((error) => say(problem(error)));
    """
    refused = signed(replace(settings, secret_access_key="another"), recorder)  # noqa: S106 - of no server
    first, second = (signed(settings, recorder, expires_s=expires_s) for expires_s in (600, 601))

    def answer(request: Request) -> Answer | None:
        has_expired = "X-Amz-Expires=600" in request.target and len(recorder.requests) > 2
        return Answer(403, b"<Error/>") if has_expired else None

    recorder.answer = answer
    lines = await said(script, json.dumps([refused, first, second]))
    assert lines == [2, "10/1_0,10/0_1,white", 3, ["HTTP 403", "The server did not give the packed sheet: HTTP status 403.", 403]]


async def test_headers_are_sent_and_replaced_when_they_are_refused(settings: BucketSettings, recorder: Recorder) -> None:
    """As a ticket: after a 401."""
    script = """
    const keys = ["old", "new"];
    const source = await packedTileSource(rest[0], { headers: () => ({ "X-Key": keys.shift() }) });
    say(await text(source, [10, 1, 0]));
    say(await text(await packedTileSource(rest[0], { headers: { "X-Key": "new" } }), [10, 1, 0]));
    """
    recorder.answer = lambda request: None if request.headers["x-key"] == "new" else Answer(401)
    assert await said(script, signed(settings, recorder)) == ["10/1_0"] * 2


async def test_a_file_that_was_written_again_is_read_anew(settings: BucketSettings, recorder: Recorder) -> None:
    """By its ETag: no bytes of two versions are mixed."""
    script = """
    const source = await packedTileSource(rest[0]);
    say(await text(source, [10, 1, 0]));
    await fetch(rest[1]);
    say(await text(source, [10, 0, 1]));
    say(await text(source, [10, 1, 0]));
    """

    def answer(request: Request) -> Answer | None:
        if request.path != "/write":
            return None
        Bucket(settings).put(KEY, packed_file(SHEET, lambda *place: b"again " + tile(*place)))
        return Answer(200)

    recorder.answer = answer
    lines = await said(script, signed(settings, recorder), f"{recorder.url}/write")
    assert lines == ["10/1_0", "again 10/0_1", "again 10/1_0"]


def with_metadata(**changes: Any) -> bytes:
    """A file with other metadata; a value of None leaves a name out."""
    return packed_file(SHEET, tile, **changes)


CUT = "The packed sheet cannot be read: the file has {} of its {} bytes."
REFUSED = {
    "empty": (b"", "NotAPackedSheet", "The file is not a packed sheet: it does not begin with “PMTiles”."),
    "PDF": (b"%PDF-1.7" + bytes(200), "NotAPackedSheet", "The file is not a packed sheet: it does not begin with “PMTiles”."),
    "header cut": (FILE[:100], "DamagedRecord", "The packed sheet cannot be read: it ends within its header."),
    "index cut": (FILE[:200], "DamagedRecord", CUT.format(200, len(FILE))),
    "tiles cut": (FILE[:-1], "DamagedRecord", CUT.format(len(FILE) - 1, len(FILE))),
    "version": (
        FILE[:7] + b"\x02" + FILE[8:],
        "NotAPackedSheet",
        "The file is not a packed sheet: it has version 2 of the format, and not 3.",
    ),
    "brotli": (FILE[:97] + b"\x03" + FILE[98:], "NotAPackedSheet", "The file is not a packed sheet: its index has compression 3."),
    "PNG": (FILE[:99] + b"\x02" + FILE[100:], "NotAPackedSheet", "The file is not a packed sheet: its tiles are not JPEG."),
    "levels": (FILE[:101] + b"\x05" + FILE[102:], "DamagedRecord", "The packed sheet cannot be read: it has the levels 0 to 5."),
    "no gzip": (FILE[:130] + bytes(9) + FILE[139:], "DamagedRecord", "The packed sheet cannot be read: its index cannot be decompressed."),
    "map": (with_metadata(width=None), "NotAPackedSheet", "The file is not a packed sheet: its metadata lack the sheet's size."),
    "newer": (with_metadata(schema=2), "NewerSchema", "The packed sheet has schema 2, and this client knows 1."),
}


async def test_a_file_that_cannot_be_used_is_refused_by_name(settings: BucketSettings, tmp_path: Path) -> None:
    """From a file and from the server: what is no packed sheet, and what has been cut anywhere."""
    script = """
    for (const [path, url] of JSON.parse(rest[0])) {
      await packedTileSource(await openAsBlob(path)).catch((error) => say(problem(error)));
      await packedTileSource(url).catch((error) => say(problem(error)));
    }
    """
    sources = []
    for name, (body, _, _) in REFUSED.items():
        (tmp_path / name).write_bytes(body)
        Bucket(settings).put(name, body)
        sources.append((str(tmp_path / name), presigned(settings, name)))
    lines = await said(script, json.dumps(sources))
    assert lines == [[type_, message, 200] for _, type_, message in REFUSED.values() for _ in range(2)]


async def test_a_server_that_cannot_be_used_is_named(settings: BucketSettings, recorder: Recorder) -> None:
    """One that sends whole files, has no such file, cuts a tile, or does not answer."""
    script = """
    const tell = (error) => say(problem(error));
    await packedTileSource(rest[0].replace("?", "/whole?")).catch(tell);
    await packedTileSource(rest[1]).catch(tell);
    await packedTileSource("http://127.0.0.1:9/sheet-1.pmtiles").catch(tell);
    await text(await packedTileSource(rest[0]), [10, 1, 0]).catch((error) => say(error.message));
    """

    def answer(request: Request) -> Answer | None:
        if "/whole" in request.path:
            return Answer(200, FILE)
        if request.headers["range"] == "bytes=0-32767":
            return None
        passed = passed_on(request, settings.endpoint)
        return replace(passed, body=passed.body[:-1], length=None)

    recorder.answer = answer
    lines = await said(script, signed(settings, recorder), signed(settings, recorder, "absent"))
    assert [line[0] for line in lines[:3]] == ["RangesNotServed", "HTTP 404", "NoConnection"]
    assert lines[3].startswith("The packed sheet cannot be read: the file ends within the 6 bytes at ")
