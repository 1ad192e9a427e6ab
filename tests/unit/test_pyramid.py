"""Pixels to tiles, and how the uploader reads the tiles."""

import io
import random
import resource
import signal
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import pyvips
from PIL import Image, ImageChops, ImageDraw, ImageStat

from activities.bucket.dzi import Pyramid, tile_name
from activities.bucket.records import UploadOptions
from activities.errors import TilesMissing
from activities.render.cutter import Cutter
from activities.render.pyramid import THUMBNAIL_PX, write_sheet
from activities.render.tilefile import THUMBNAIL, TILES, TileFile, new_files, write_tile_file


def drawing(width: int, height: int) -> Image.Image:
    """Coarse shapes on white, with a large white corner: some tiles are full, some partly full, some blank."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    chance = random.Random(width * height)  # noqa: S311 (shapes, no secrets)
    for _ in range(40):
        x, y = chance.randrange(width // 2), chance.randrange(height // 2)
        draw.rectangle((x, y, x + width // 12, y + height // 12), fill=tuple(chance.randrange(256) for _ in range(3)))
    return image


@pytest.fixture(params=["cutter", "dzsave"])
def cutter(request: pytest.FixtureRequest) -> Cutter | None:
    """The cutter that a test uses; None stands for libvips."""
    if request.param == "dzsave":
        return None
    compiled = Cutter.find()
    if not compiled:
        pytest.skip("the cutter is not compiled here")
    return compiled


def write(directory: Path, image: Image.Image, options: UploadOptions, cutter: Cutter | None = None) -> Path:
    """Writes a sheet; returns its ``tiles.flat``."""
    pixels = bytearray(image.tobytes("raw", "BGR" if cutter else "RGB"))
    with new_files(directory) as files:
        write_sheet(memoryview(pixels), *image.size, options, *files, cutter)
    return directory / TILES


@pytest.mark.parametrize(("tile_size", "overlap", "quality"), [(256, 1, 85), (254, 0, 95), (128, 2, 60)])
def test_filled_in_blanks_are_what_libvips_would_have_written(tmp_path: Path, tile_size: int, overlap: int, quality: int) -> None:
    """Every tile has the bytes that dzsave writes when it leaves no tile out."""
    image = drawing(1500, 1100)
    options = UploadOptions(tile_size=tile_size, overlap=overlap, quality=quality)
    pyramid = Pyramid(*image.size, tile_size, overlap)
    whole = tmp_path / "whole.zip"
    pyvips.Image.new_from_memory(image.tobytes(), *image.size, 3, "uchar").dzsave(
        str(whole), tile_size=tile_size, overlap=overlap, Q=quality, keep="none"
    )
    with TileFile(write(tmp_path, image, options)) as tiles, zipfile.ZipFile(whole) as archive:
        assert 0 < len(tiles.names) < pyramid.tile_count, "the drawing has blank tiles and others"
        for each in pyramid.tiles():
            assert tiles.tile(pyramid, *each)[1] == archive.read(f"whole_files/{tile_name(*each)}"), each


def test_blank_sheet_keeps_every_size_of_tile(tmp_path: Path, cutter: Cutter | None) -> None:
    """A page with nothing on it still has all its tiles, all white."""
    image = Image.new("RGB", (700, 300), "white")
    pyramid = Pyramid(700, 300)
    with TileFile(write(tmp_path, image, UploadOptions(), cutter)) as tiles:
        for each in pyramid.tiles():
            decoded = Image.open(io.BytesIO(tiles.tile(pyramid, *each)[1]))
            assert decoded.size == pyramid.tile_rectangle(*each)[2:]
            assert decoded.convert("RGB").getextrema() == ((255, 255),) * 3


def test_one_pale_pixel_keeps_its_tile(tmp_path: Path, cutter: Cutter | None) -> None:
    """Only pure white tiles are left out: a tile with one pixel of almost white is kept."""
    image = Image.new("RGB", (600, 600), "white")
    image.putpixel((300, 300), (255, 254, 255))
    with TileFile(write(tmp_path, image, UploadOptions(), cutter)) as tiles:
        assert "10/1_1.jpeg" in tiles.names
        assert "10/0_0.jpeg" not in tiles.names


@pytest.mark.parametrize(("width", "height", "tile_size", "overlap"), [(1500, 1100, 256, 1), (513, 1025, 128, 0), (999, 7, 256, 2)])
def test_tiles_show_the_page_level_by_level(
    tmp_path: Path, cutter: Cutter | None, width: int, height: int, tile_size: int, overlap: int
) -> None:
    """Each tile is its rectangle of the page, which is half as large on each lower level, except for JPEG's loss."""
    level_image = drawing(width, height)
    pyramid = Pyramid(width, height, tile_size, overlap)
    options = UploadOptions(tile_size=tile_size, overlap=overlap, quality=95)
    with TileFile(write(tmp_path, level_image, options, cutter)) as tiles:
        for level in range(pyramid.max_level, -1, -1):
            assert level_image.size == pyramid.level_size(level)
            columns, rows = pyramid.grid(level)
            for row in range(rows):
                for column in range(columns):
                    left, top, tile_width, tile_height = pyramid.tile_rectangle(level, column, row)
                    expected = level_image.crop((left, top, left + tile_width, top + tile_height))
                    decoded = Image.open(io.BytesIO(tiles.tile(pyramid, level, column, row)[1]))
                    difference = ImageStat.Stat(ImageChops.difference(decoded.convert("RGB"), expected))
                    assert decoded.size == expected.size
                    # On levels of a few pixels every pixel is at an edge, where JPEG loses colour.
                    assert max(difference.mean) < (4 if level > 6 else 24), (level, column, row)
            level_image = _half(level_image)


def _half(image: Image.Image) -> Image.Image:
    """Half the size, rounded up: the mean of 2 x 2 pixels, where an odd last row or column counts twice."""
    width, height = image.size
    even = Image.new("RGB", (width + width % 2, height + height % 2))
    even.paste(image, (width % 2, height % 2))
    even.paste(image, (0, 0))
    if width % 2:
        even.paste(even.crop((width - 1, 0, width, even.height)), (width, 0))
    if height % 2:
        even.paste(even.crop((0, height - 1, even.width, height)), (0, height))
    return even.resize((even.width // 2, even.height // 2), Image.Resampling.BOX)


@pytest.mark.parametrize(("width", "height", "expected"), [(1500, 1000, (512, 341)), (1000, 1500, (341, 512)), (300, 200, (300, 200))])
def test_thumbnail_is_512_px_at_most(tmp_path: Path, cutter: Cutter | None, width: int, height: int, expected: tuple[int, int]) -> None:
    """Its longest side has 512 px, a smaller page is not enlarged, and it looks like the page."""
    image = drawing(width, height)
    write(tmp_path, image, UploadOptions(), cutter)
    thumbnail = Image.open(tmp_path / THUMBNAIL)
    assert thumbnail.size == expected
    assert max(expected) <= THUMBNAIL_PX
    assert max(ImageStat.Stat(ImageChops.difference(thumbnail, image.resize(expected, Image.Resampling.BOX))).mean) < 4


def test_sheet_is_the_same_bytes_every_time(tmp_path: Path, cutter: Cutter | None) -> None:
    """Two runs over the same pixels write the same tiles and the same thumbnail."""
    image = drawing(1200, 900)
    results = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with TileFile(write(tmp_path / name, image, UploadOptions(), cutter)) as tiles:
            results.append(({each: tiles.read(each) for each in tiles.names}, (tmp_path / name / THUMBNAIL).read_bytes()))
    assert results[0] == results[1]


@pytest.mark.parametrize("width", [100, 3000])
def test_write_to_a_place_that_cannot_be_written_is_an_os_error(tmp_path: Path, cutter: Cutter | None, width: int) -> None:
    """The page is then tried again, and its PDF is not blamed."""
    with pytest.raises(OSError, match=r"tiles\.flat"):
        write(tmp_path / "absent", drawing(width, 100), UploadOptions(), cutter)


def test_disk_that_fills_up_is_an_os_error(tmp_path: Path, cutter: Cutter | None) -> None:
    """Wherever the disk fills up: an archive that was not written to its end is never taken for a sheet of blank tiles."""
    image = drawing(900, 600)
    whole = write(tmp_path, image, UploadOptions(), cutter).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for size in (1, 1000, whole // 2, whole - 2000, whole - 1):
            (tmp_path / TILES).unlink()
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
            with pytest.raises(OSError, match=r"tiles\.|File too large"):
                write(tmp_path, image, UploadOptions(), cutter)
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_libvips_archive_is_gone(tmp_path: Path) -> None:
    """Only the flat file and the thumbnail are left; the other files that libvips adds to its archive are not among the names."""
    with TileFile(write(tmp_path, drawing(600, 400), UploadOptions())) as tiles:
        assert all(name.endswith(".jpeg") and "/" in name for name in tiles.names)
    assert {path.name for path in tmp_path.iterdir()} == {TILES, THUMBNAIL}


def test_tile_file_reads_from_many_threads(tmp_path: Path, cutter: Cutter | None) -> None:
    """Threads that read in any order get the same tiles as a single reader."""
    with TileFile(write(tmp_path, drawing(1500, 1100), UploadOptions(), cutter)) as tiles, ThreadPoolExecutor(8) as threads:
        names = sorted(tiles.names) * 5
        alone = {name: tiles.read(name) for name in tiles.names}
        random.Random(1).shuffle(names)  # noqa: S311 (an order, no secret)
        assert all(alone[name] == data for name, data in zip(names, threads.map(tiles.read, names), strict=True))


def test_tile_file_reads_more_than_65535_tiles(tmp_path: Path) -> None:
    """The number of tiles has no limit of 16 bits."""
    places = [(17, number % 300, number // 300) for number in range(70_000)]
    with (tmp_path / TILES).open("wb") as file:
        write_tile_file(file, ((place, str(place).encode()) for place in places), ())
    with TileFile(tmp_path / TILES) as tiles:
        assert len(tiles.names) == len(places)
        assert tiles.read("17/99_233.jpeg") == b"(17, 99, 233)"


def test_absent_or_cut_tile_file_is_tiles_missing(tmp_path: Path, cutter: Cutter | None) -> None:
    """Wherever the file is cut off, and when there is no file."""
    path = write(tmp_path, drawing(600, 400), UploadOptions(), cutter)
    whole = path.read_bytes()
    cut = tmp_path / "cut.flat"
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(TilesMissing):
            TileFile(cut)
    with pytest.raises(TilesMissing, match=r"no absent\.flat"):
        TileFile(tmp_path / "absent.flat")


def test_tile_file_that_shrinks_while_open_is_tiles_missing(tmp_path: Path) -> None:
    """A short read is never passed on as a tile."""
    path = write(tmp_path, drawing(600, 400), UploadOptions())
    with TileFile(path) as tiles:
        with path.open("r+b") as file:
            file.truncate(10)
        with pytest.raises(TilesMissing, match="cut off"):
            tiles.read(next(iter(tiles.names)))


def test_lost_tile_is_not_taken_for_a_blank_one(tmp_path: Path) -> None:
    """A tile is lost when the file has neither the tile nor a blank tile of its size."""
    path = tmp_path / TILES
    with path.open("wb") as file:
        write_tile_file(file, [((0, 0, 0), b"x")], [((100, 7), b"white")])
    with TileFile(path) as tiles:
        assert tiles.blank(100, 7) == b"white"
        with pytest.raises(TilesMissing, match="256 x 256"):
            tiles.blank(256, 256)


@pytest.mark.parametrize("entry", [(2**32 - 1, 0), (1, 2**64 - 1), (5, 0)], ids=["long", "far", "into the index"])
def test_index_that_names_bytes_outside_the_tiles_is_tiles_missing(tmp_path: Path, entry: tuple[int, int]) -> None:
    """A tile lies before the index."""
    path = tmp_path / TILES
    with path.open("wb") as file:
        write_tile_file(file, [((0, 0, 0), b"tile")], ())
    body = bytearray(path.read_bytes())
    body[16:28] = entry[0].to_bytes(4, "little") + entry[1].to_bytes(8, "little")
    path.write_bytes(body)
    with pytest.raises(TilesMissing, match="cut off"):
        TileFile(path)
