"""Pixels to tiles, and how the uploader reads the tiles."""

import io
import random
import zipfile
from pathlib import Path

import pytest
import pyvips
from PIL import Image, ImageChops, ImageDraw, ImageStat

from activities.bucket.dzi import THUMBNAIL_PX, Pyramid, tile_name
from activities.bucket.records import UploadOptions
from activities.render.cutter import Cutter
from activities.render.pyramid import write_sheet
from activities.render.tilefile import THUMBNAIL, TILES, TileFile, new_files
from tests.unit.full_disk import full_disk


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


def written(directory: Path, image: Image.Image, options: UploadOptions, cutter: Cutter | None = None) -> TileFile:
    """Writes a sheet; returns its tile file, open."""
    path = write(directory, image, options, cutter)
    return TileFile(path.parent, Pyramid(*image.size, options.tile_size, options.overlap))


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
    with written(tmp_path, image, options) as tiles, zipfile.ZipFile(whole) as archive:
        assert 0 < len(tiles.names) < pyramid.tile_count, "the drawing has blank tiles and others"
        for each in pyramid.tiles():
            assert tiles.tile(*each)[1] == archive.read(f"whole_files/{tile_name(*each)}"), each


def test_blank_sheet_keeps_every_size_of_tile(tmp_path: Path, cutter: Cutter | None) -> None:
    """A page with nothing on it still has all its tiles, all white."""
    image = Image.new("RGB", (700, 300), "white")
    pyramid = Pyramid(700, 300)
    with written(tmp_path, image, UploadOptions(), cutter) as tiles:
        for each in pyramid.tiles():
            decoded = Image.open(io.BytesIO(tiles.tile(*each)[1]))
            assert decoded.size == pyramid.tile_rectangle(*each)[2:]
            assert decoded.convert("RGB").getextrema() == ((255, 255),) * 3


def test_one_pale_pixel_keeps_its_tile(tmp_path: Path, cutter: Cutter | None) -> None:
    """Only pure white tiles are left out: a tile with one pixel of almost white is kept."""
    image = Image.new("RGB", (600, 600), "white")
    image.putpixel((300, 300), (255, 254, 255))
    with written(tmp_path, image, UploadOptions(), cutter) as tiles:
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
    with written(tmp_path, level_image, options, cutter) as tiles:
        for level in range(pyramid.max_level, -1, -1):
            assert level_image.size == pyramid.level_size(level)
            columns, rows = pyramid.grid(level)
            for row in range(rows):
                for column in range(columns):
                    left, top, tile_width, tile_height = pyramid.tile_rectangle(level, column, row)
                    expected = level_image.crop((left, top, left + tile_width, top + tile_height))
                    decoded = Image.open(io.BytesIO(tiles.tile(level, column, row)[1]))
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
        with written(tmp_path / name, image, UploadOptions(), cutter) as tiles:
            results.append(({each: tiles.tile(*each) for each in Pyramid(1200, 900).tiles()}, (tmp_path / name / THUMBNAIL).read_bytes()))
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
    for size in (1, 1000, whole // 2, whole - 2000, whole - 1):
        (tmp_path / TILES).unlink()
        with full_disk(size), pytest.raises(OSError, match=r"tiles\.|File too large"):
            write(tmp_path, image, UploadOptions(), cutter)


def test_libvips_archive_is_gone(tmp_path: Path) -> None:
    """Only the flat file and the thumbnail are left; the other files that libvips adds to its archive are not among the names."""
    write(tmp_path, drawing(600, 400), UploadOptions())
    assert {path.name for path in tmp_path.iterdir()} == {TILES, THUMBNAIL}
