"""The archive of a sheet, judged by two readers that are not ours: PyPI's ``pmtiles`` and npm's ``pmtiles``."""

import hashlib
import json
import random
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pmtiles.reader import Reader, all_tiles
from pmtiles.tile import Compression, TileType, tileid_to_zxy, zxy_to_tileid

from activities.bucket.dzi import Pyramid, tile_name
from activities.bucket.pmtiles import FIRST_BYTES, Index, index_bytes, plan_archive, sheet_metadata, tile_id
from activities.bucket.records import SheetRecord, UploadOptions
from activities.errors import TilesMissing
from activities.render.cutter import Cutter
from activities.render.pack import PackedSheet, tile_lines
from activities.render.pyramid import write_sheet
from activities.render.tilefile import TILES, TileFile, new_files, write_tile_file
from tests.resources.jpeg import outline
from tests.servers.npm_packages import NoPackages, installed_packages

NPM = Path(__file__).parents[1] / "servers" / "npm-pmtiles"

READ_BY_NPM = """
import { createHash } from "node:crypto";
import { open } from "node:fs/promises";
import { PMTiles } from "pmtiles";

const file = await open(process.argv[1]);
const source = {
  getKey: () => process.argv[1],
  getBytes: async (offset, length) => {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, offset);
    return { data: buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + bytesRead) };
  },
};
const archive = new PMTiles(source);
const tiles = {};
for (const [z, x, y] of JSON.parse(process.argv[2])) {
  const tile = await archive.getZxy(z, x, y);
  tiles[`${z}/${x}_${y}.jpeg`] = tile && createHash("md5").update(Buffer.from(tile.data)).digest("hex");
}
const header = await archive.getHeader();
console.log(JSON.stringify({ tiles, metadata: await archive.getMetadata(), maxZoom: header.maxZoom, tileType: header.tileType }));
"""


def record(pyramid: Pyramid, title: str | None = "A-101") -> SheetRecord:
    """The record of a sheet that is not written yet."""
    return SheetRecord(
        number=7,
        width=pyramid.width,
        height=pyramid.height,
        dpi=300,
        scaled=False,
        title=title,
        tile_size=pyramid.tile_size,
        overlap=pyramid.overlap,
        quality=85,
        tiles=0,
        bytes=0,
        digest="",
        engines={},
        transform=(4.5, 0.0, 0.0, -4.5, 0.0, 900.0),
    )


def drawn(directory: Path, pyramid: Pyramid, cutter: Cutter | None) -> Path:
    """Draws a sheet whose right half is white, and tiles it."""
    image = Image.new("RGB", (pyramid.width, pyramid.height), "white")
    draw = ImageDraw.Draw(image)
    chance = random.Random(7)  # noqa: S311 (shapes, no secrets)
    for _ in range(40):
        x, y = chance.randrange(-5, max(1, pyramid.width // 2)), chance.randrange(-5, pyramid.height)
        draw.rectangle((x, y, x + 30, y + 30), fill=tuple(chance.randrange(256) for _ in range(3)))
    pixels = bytearray(image.tobytes("raw", "BGR" if cutter else "RGB"))
    options = UploadOptions(tile_size=pyramid.tile_size, overlap=pyramid.overlap)
    with new_files(directory) as files:
        write_sheet(memoryview(pixels), *image.size, options, *files, cutter)
    return directory


def made_up(directory: Path, pyramid: Pyramid, content: Callable[[int], bytes]) -> Path:
    """Writes a tile file in which the tile with the number n has ``content(n)``."""
    with (directory / TILES).open("wb") as file:
        sizes = ((tile, pyramid.tile_rectangle(*tile)[2:]) for tile in pyramid.tiles())
        write_tile_file(file, ((tile, outline(*size, content(number))) for number, (tile, size) in enumerate(sizes)), ())
    return directory


def packed(directory: Path, pyramid: Pyramid) -> tuple[bytes, dict[str, bytes]]:
    """The archive of a tile file, and the tiles as they would be exploded."""
    with TileFile(directory, pyramid) as tiles:
        lines = tile_lines(tiles, pyramid)
        archive = PackedSheet(tiles, pyramid, lines, sheet_metadata(record(pyramid)))
        body = b"".join(archive.chunks())
        assert len(body) == archive.size_bytes
        exploded = dict(tiles.tile(*tile) for tile in pyramid.tiles())
    assert lines == [(name, len(jpeg), hashlib.md5(jpeg).hexdigest()) for name, jpeg in exploded.items()]  # noqa: S324
    return body, exploded


def check_by_python(body: bytes, pyramid: Pyramid, exploded: dict[str, bytes]) -> None:
    """PyPI's reader finds exactly these tiles, header and metadata."""

    def source(offset: int, length: int) -> bytes:
        return body[offset : offset + length]

    assert {tile_name(*place): jpeg for place, jpeg in all_tiles(source)} == exploded
    reader = Reader(source)
    for tile in random.Random(1).sample(list(pyramid.tiles()), min(20, pyramid.tile_count)):  # noqa: S311
        assert reader.get(*tile) == exploded[tile_name(*tile)]
    assert reader.get(pyramid.max_level, pyramid.grid(pyramid.max_level)[0], 0) is None if pyramid.max_level else True
    header = reader.header()
    assert (header["internal_compression"], header["tile_compression"]) == (Compression.GZIP, Compression.NONE)
    assert (header["tile_type"], header["clustered"]) == (TileType.JPEG, True)
    assert (header["min_zoom"], header["max_zoom"]) == (0, pyramid.max_level)
    assert header["addressed_tiles_count"] == pyramid.tile_count
    assert header["tile_contents_count"] == len(set(exploded.values()))
    assert header["tile_data_length"] == sum(map(len, set(exploded.values())))
    assert header["root_offset"] + header["root_length"] <= FIRST_BYTES
    assert header["tile_data_offset"] + header["tile_data_length"] == len(body)
    metadata = reader.metadata()
    assert (metadata["schema"], metadata["sheet"], metadata["title"], metadata["format"]) == (1, 7, "A-101", "jpeg")
    assert [metadata[name] for name in ("width", "height", "tileSize", "overlap")] == [
        pyramid.width,
        pyramid.height,
        pyramid.tile_size,
        pyramid.overlap,
    ]
    assert metadata["transform"] == [4.5, 0.0, 0.0, -4.5, 0.0, 900.0]


def check_by_us(body: bytes, pyramid: Pyramid, exploded: dict[str, bytes]) -> None:
    """Our own reader finds the same."""
    index = Index(body[: index_bytes(body)])
    assert index.pyramid == pyramid
    assert (index.tile_count, index.size_bytes) == (pyramid.tile_count, len(body))
    for tile in pyramid.tiles():
        place = index.place(*tile)
        assert place is not None
        assert body[place[0] : sum(place)] == exploded[tile_name(*tile)]
    columns, rows = pyramid.grid(pyramid.max_level)
    for outside in ((pyramid.max_level, columns, 0), (pyramid.max_level, 0, rows), (pyramid.max_level + 1, 0, 0), (0, 1, 0), (-1, 0, 0)):
        assert index.place(*outside) is None


@pytest.fixture(scope="module")
def npm_packages() -> Path:
    """The directory with npm's reader."""
    try:
        return installed_packages(NPM, "pmtiles")
    except NoPackages as missing:
        pytest.skip(str(missing))


def check_by_npm(packages: Path, path: Path, pyramid: Pyramid, exploded: dict[str, bytes]) -> None:
    """The reader of npm finds the same."""
    command = [str(shutil.which("node")), "--input-type=module", "-e", READ_BY_NPM, str(path), json.dumps(list(pyramid.tiles()))]
    result = subprocess.run(command, cwd=packages, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["tiles"] == {name: hashlib.md5(jpeg).hexdigest() for name, jpeg in exploded.items()}  # noqa: S324
    assert (found["maxZoom"], found["tileType"]) == (pyramid.max_level, TileType.JPEG.value)
    assert (found["metadata"]["sheet"], found["metadata"]["width"]) == (7, pyramid.width)


PYRAMIDS = [
    Pyramid(1, 1),
    Pyramid(1, 300, overlap=0),
    Pyramid(257, 255, overlap=2),
    Pyramid(1537, 1101),
    Pyramid(2041, 1023, 510, 1),
    Pyramid(999, 1000, 128, 2),
    Pyramid(1023, 1025, 510, 0),
]


@pytest.fixture(params=["cutter", "dzsave"])
def cutter(request: pytest.FixtureRequest) -> Cutter | None:
    """The cutter that a test uses; None stands for libvips."""
    if request.param == "dzsave":
        return None
    compiled = Cutter.find()
    if not compiled:
        pytest.skip("the cutter is not compiled here")
    return compiled


@pytest.mark.parametrize("pyramid", PYRAMIDS, ids=lambda pyramid: f"{pyramid.width}x{pyramid.height}")
def test_other_readers_find_every_tile_of_a_drawn_sheet(
    tmp_path: Path, npm_packages: Path, cutter: Cutter | None, pyramid: Pyramid
) -> None:
    """Each tile has the bytes of the exploded one, whoever reads the archive and whatever cut the tiles."""
    suits = cutter is not None and Cutter.suits(UploadOptions(tile_size=pyramid.tile_size, overlap=pyramid.overlap))
    body, exploded = packed(drawn(tmp_path, pyramid, cutter if suits else None), pyramid)
    check_by_us(body, pyramid, exploded)
    check_by_python(body, pyramid, exploded)
    path = tmp_path / "sheet-7.pmtiles"
    path.write_bytes(body)
    check_by_npm(npm_packages, path, pyramid, exploded)


def test_large_sheet_has_leaf_directories(tmp_path: Path, npm_packages: Path) -> None:
    """The root directory stays within the first 16 KiB, however many tiles there are and however few are equal."""
    pyramid = Pyramid(20_000, 10_000, 128, 0)
    path = made_up(tmp_path, pyramid, lambda number: b"%d" % (number * number))
    body, exploded = packed(path, pyramid)
    leaf_bytes = int.from_bytes(body[48:56], "little")
    assert leaf_bytes > 4 * FIRST_BYTES
    check_by_us(body, pyramid, exploded)
    check_by_python(body, pyramid, exploded)
    (tmp_path / "sheet.pmtiles").write_bytes(body)
    few = {tile_name(*tile): exploded[tile_name(*tile)] for tile in random.Random(1).sample(list(pyramid.tiles()), 200)}  # noqa: S311

    class Few(Pyramid):
        def tiles(self) -> Iterator[tuple[int, int, int]]:
            return (tile for tile in super().tiles() if tile_name(*tile) in few)

    check_by_npm(npm_packages, tmp_path / "sheet.pmtiles", Few(20_000, 10_000, 128, 0), few)


def test_leaf_directories_grow_where_the_root_would_not_hold_them() -> None:
    """With leaves of a few entries the root would be too long, so they become longer."""
    pyramid = Pyramid(20_000, 10_000, 128, 0)
    archive = plan_archive([(tile, number, 3) for number, tile in enumerate(pyramid.tiles())], b"{}", leaf_entries=1)
    assert int.from_bytes(archive.index[16:24], "little") <= FIRST_BYTES - 127
    index = Index(archive.index)
    assert all(index.place(*tile) for tile in pyramid.tiles())


def test_equal_tiles_are_stored_once_and_runs_of_them_have_one_entry(tmp_path: Path) -> None:
    """Also where the tile file, as made by dzsave, repeats them."""
    pyramid = Pyramid(3200, 3200, 100, 0)
    body, exploded = packed(made_up(tmp_path, pyramid, lambda number: b"white" if number % 50 else b"black"), pyramid)
    check_by_python(body, pyramid, exploded)
    entries = int.from_bytes(body[80:88], "little")
    assert len(body) - index_bytes(body) == sum(map(len, set(exploded.values())))
    assert entries < pyramid.tile_count / 2


def test_same_sheet_makes_the_same_archive(tmp_path: Path, cutter: Cutter | None) -> None:
    """The order in the tile file does not count."""
    pyramid = Pyramid(1537, 1101)
    bodies = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        bodies.append(packed(drawn(tmp_path / name, pyramid, cutter), pyramid)[0])
    tiles = list(pyramid.tiles())
    (tmp_path / "c").mkdir()
    exploded = packed(tmp_path / "a", pyramid)[1]
    with (tmp_path / "c" / TILES).open("wb") as file:
        write_tile_file(file, ((tile, exploded[tile_name(*tile)]) for tile in reversed(tiles)), ())
    bodies.append(packed(tmp_path / "c", pyramid)[0])
    assert bodies[0] == bodies[1] == bodies[2]


def test_archive_is_made_without_its_tiles_in_memory(tmp_path: Path) -> None:
    """Only the index and a chunk of tiles are in memory."""
    pyramid = Pyramid(2000, 2000, 128, 0)
    chance = random.Random(3)  # noqa: S311
    path = made_up(tmp_path, pyramid, lambda _: chance.randbytes(100_000))
    tracemalloc.start()
    try:
        with TileFile(path, pyramid) as tiles:
            archive = PackedSheet(tiles, pyramid, tile_lines(tiles, pyramid), b"{}")
            size = sum(map(len, archive.chunks()))
        assert size == archive.size_bytes > 30_000_000
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()


def test_lost_tile_is_tiles_missing(tmp_path: Path) -> None:
    """No archive lacks a tile."""
    pyramid = Pyramid(600, 300)
    with (tmp_path / TILES).open("wb") as file:
        write_tile_file(file, ((tile, outline(*pyramid.tile_rectangle(*tile)[2:])) for tile in pyramid.tiles() if tile != (9, 1, 0)), ())
    with TileFile(tmp_path, pyramid) as tiles, pytest.raises(TilesMissing):
        tile_lines(tiles, pyramid)


@given(st.integers(0, 31).flatmap(lambda zoom: st.tuples(st.just(zoom), *[st.integers(0, (1 << zoom) - 1)] * 2)))
def test_numbers_of_tiles_are_those_of_the_specification(place: tuple[int, int, int]) -> None:
    """PyPI's package computes the same number, and the same place from it."""
    assert tile_id(*place) == zxy_to_tileid(*place)
    assert tileid_to_zxy(tile_id(*place)) == place


def test_metadata_has_no_title_where_the_sheet_has_none() -> None:
    """A name for other programs is there all the same."""
    document = json.loads(sheet_metadata(record(Pyramid(10, 10), title=None)))
    assert "title" not in document
    assert document["name"] == "Sheet 7"


def whole_archive() -> bytes:
    """A small archive."""
    pyramid = Pyramid(600, 300)
    archive = plan_archive([(tile, number, 5) for number, tile in enumerate(pyramid.tiles())], sheet_metadata(record(pyramid)))
    return archive.index + b"12345" * len(archive.contents)


@given(st.data())
def test_damaged_archive_is_a_value_error(data: st.DataObject) -> None:
    """Whatever bytes are wrong, nothing else is raised, and no tile lies outside the archive."""
    body = bytearray(whole_archive())
    end = index_bytes(body)
    for at in data.draw(st.lists(st.integers(0, end - 1), min_size=1, max_size=4)):
        body[at] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.sampled_from([len(body), end, end - 1, 200, 126, 0]))]
    try:
        needed = index_bytes(body)
        index = Index(bytes(body))
        pyramid = index.pyramid
    except ValueError:
        return
    assert needed <= len(body)
    assert pyramid.tile_count
    for tile in Pyramid(600, 300).tiles():
        place = index.place(*tile)
        assert place is None or sum(place) <= index.size_bytes
