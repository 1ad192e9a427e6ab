"""Our cutter: its levels are those of dzsave, its scans those of libjpeg-turbo, and it refuses all else."""

import errno
import io
import math
import mmap
import os
import random
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, product
from pathlib import Path
from unittest.mock import patch

import pytest
import pyvips
from PIL import Image, ImageDraw, ImageFile

from activities.bucket.dzi import Pyramid
from activities.render import compile as compiling
from activities.render.compile import NoCompiler, compile_cutter
from activities.render.cutter import Cutter
from tests.resources.flat_file import FlatFile, read_flat_file
from tests.resources.jpeg import frame, huffman_tables, scan

KINDS = ("noise", "gray", "mixed", "white")
SIZES = ((1, 1), (2, 1), (1, 3), (2, 2), (255, 255), (256, 257), (513, 300), (777, 1025))
TILINGS = tuple(product((254, 256, 510, 512, 1024), (0, 1, 2)))
QUALITIES = (1, 30, 60, 85, 95, 100)


@dataclass(frozen=True)
class Cut:
    """How a page is cut.

    Args:
        tile_size: Pixels.
        overlap: Pixels.
        quality: 1 to 100.
        blue_first: Whether the pixels are given as B, G, R.
        padding: Bytes behind each row.
        preview_level: The level whose pixels are returned.
        limit_bytes: The most that is written.
    """

    tile_size: int = 256
    overlap: int = 1
    quality: int = 85
    blue_first: bool = False
    padding: int = 0
    preview_level: int = 0
    limit_bytes: int = 1 << 40


def compiled(directory: Path, *flags: str) -> Cutter:
    """The cutter, compiled with these flags. Without a compiler a test run on CI fails; elsewhere its tests are skipped."""
    try:
        compile_cutter(directory / "cutter.so", *flags)
    except NoCompiler as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    return Cutter(directory / "cutter.so")


@pytest.fixture(scope="module")
def cutter(tmp_path_factory: pytest.TempPathFactory) -> Cutter:
    """The cutter as it is installed."""
    return compiled(tmp_path_factory.mktemp("cutter"))


@pytest.fixture(scope="module")
def portable_cutter(tmp_path_factory: pytest.TempPathFactory) -> Cutter:
    """The cutter for a processor without AVX2."""
    return compiled(tmp_path_factory.mktemp("portable"), "-DCUTTER_PORTABLE")


def page(kind: str, width: int, height: int) -> Image.Image:
    """A page of this kind, always the same."""
    chance = random.Random(f"{kind} {width} {height}")  # noqa: S311 (pixels, no secrets)
    if kind == "noise":
        return Image.frombytes("RGB", (width, height), chance.randbytes(3 * width * height))
    if kind == "gray":
        return Image.frombytes("L", (width, height), chance.randbytes(width * height)).convert("RGB")
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for number in range(30 if kind == "mixed" else 0):
        left, top = chance.randrange(width), chance.randrange(height)
        right, bottom = left + chance.randrange(1 + width // 4), top + chance.randrange(1 + height // 4)
        gray = chance.randrange(256)
        colour = (gray, gray, gray) if number % 3 else (gray, chance.randrange(256), chance.randrange(256))
        draw.rectangle((left, top, right, bottom), fill=colour)
        draw.line((left, top, right, bottom), fill=(0, 0, 0) if number % 4 else (255, 0, 0), width=1 + number % 3)
    return image


def memory_of(image: Image.Image, cut: Cut) -> memoryview:
    """The pixels of a page, the bytes behind each row included."""
    rows = image.tobytes("raw", "BGR" if cut.blue_first else "RGB")
    row_bytes = 3 * image.width
    return memoryview(bytearray(b"".join(rows[at : at + row_bytes] + cut.padding * b"\x55" for at in range(0, len(rows), row_bytes))))


@contextmanager
def memory_file() -> Iterator[Path]:
    """An empty file in memory."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        yield Path(file.name)


def write(cutter: Cutter, image: Image.Image, cut: Cut, path: Path) -> bytes:
    """Cuts a page into an existing file; returns the preview."""
    with path.open("r+b", buffering=0) as file:
        return cutter.cut(
            memory_of(image, cut),
            *image.size,
            stride=3 * image.width + cut.padding,
            blue_first=cut.blue_first,
            tile_size=cut.tile_size,
            overlap=cut.overlap,
            quality=cut.quality,
            file=file.fileno(),
            preview_level=cut.preview_level,
            limit_bytes=cut.limit_bytes,
        )


def tiles_of(cutter: Cutter, image: Image.Image, cut: Cut) -> FlatFile:
    """The tiles of a page."""
    with memory_file() as path:
        write(cutter, image, cut, path)
        return read_flat_file(path)


def bytes_of(cutter: Cutter, image: Image.Image, cut: Cut) -> bytes:
    """The preview and the file of a page."""
    with memory_file() as path:
        return write(cutter, image, cut, path) + path.read_bytes()


def cut_changed(cutter: Cutter, path: Path, **changes: object) -> None:
    """Cuts 100 x 100 px, with some arguments changed."""
    arguments: dict[str, object] = {"width": 100, "height": 100, "blue_first": False, "tile_size": 256, "overlap": 1, "quality": 85}
    arguments |= {"preview_level": 0, "pixels": memoryview(bytearray(30_000))}
    with path.open("w+b", buffering=0) as file:
        cut: Callable[..., bytes] = cutter.cut
        cut(**(arguments | {"file": file.fileno()} | changes))


def dzsave(image: Image.Image, tile_size: int, overlap: int) -> dict[tuple[int, int, int], Image.Image]:
    """The tiles that libvips makes of a page, without the white ones, by level, column and row."""
    source = pyvips.Image.new_from_memory(image.tobytes(), *image.size, 3, "uchar").copy(interpretation="srgb")
    archive = source.dzsave_buffer(
        basename="page",
        layout="dz",
        compression=0,
        depth="onepixel",
        tile_size=tile_size,
        overlap=overlap,
        suffix=".png[compression=0]",
        skip_blanks=0,
        background=[255],
        keep="none",
    )
    tiles = {}
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        for name in files.namelist():
            if name.endswith(".png") and "_files/" in name:
                level, tile = name.removesuffix(".png").split("/")[-2:]
                column, row = tile.split("_")
                tiles[int(level), int(column), int(row)] = Image.open(io.BytesIO(files.read(name))).convert("RGB")
    return tiles


def is_gray(image: Image.Image) -> bool:
    """Whether each pixel has R = G = B."""
    red, green, blue = (channel.tobytes() for channel in image.split())
    return red == green == blue


def libjpeg(image: Image.Image, quality: int, *, optimize: bool = True) -> bytes:
    """The JPEG that libjpeg-turbo writes: of one component if the pixels are gray, else 4:4:4.

    Args:
        image: The pixels.
        quality: 1 to 100.
        optimize: Whether the JPEG has the Huffman tables that are best for it, or the standard ones.
    """
    file = io.BytesIO()
    with patch.object(ImageFile, "MAXBLOCK", 1 << 24):  # Pillow needs room for all of it then
        if is_gray(image):
            image.getchannel("G").save(file, "JPEG", quality=quality, optimize=optimize)
        else:
            image.save(file, "JPEG", quality=quality, subsampling=0, optimize=optimize)
    return file.getvalue()


def coded(jpeg: bytes) -> tuple[dict[int, bytes], bytes]:
    """Everything that depends on the pixels: the Huffman tables and the scan."""
    return huffman_tables(jpeg), scan(jpeg)


def decoded(jpeg: bytes) -> bytes:
    """The pixels of a JPEG, by Pillow and by libvips, which agree."""
    pixels = Image.open(io.BytesIO(jpeg)).tobytes()
    assert pixels == bytes(pyvips.Image.new_from_buffer(jpeg, "").write_to_memory())
    return pixels


# ---- Pixels ----


@pytest.mark.parametrize("kind", KINDS)
def test_levels_are_those_of_dzsave(cutter: Cutter, kind: str) -> None:
    """Each level has exactly the pixels that libvips makes, for any size, byte order, stride and tiling."""
    ways = cycle(product(TILINGS, (0, 1, 50), (False, True)))
    for size in SIZES:
        image = page(kind, *size)
        expected = dzsave(image, 2048, 0)
        pyramid = Pyramid(*size, 2048, 0)
        for level in range(pyramid.max_level + 1):
            (tile_size, overlap), padding, blue_first = next(ways)
            cut = Cut(tile_size, overlap, blue_first=blue_first, padding=padding, preview_level=level)
            white = Image.new("RGB", pyramid.level_size(level), "white")
            with memory_file() as path:
                assert write(cutter, image, cut, path) == expected.get((level, 0, 0), white).tobytes(), (size, cut)


@pytest.mark.parametrize(("tile_size", "overlap"), TILINGS)
def test_tiles_are_those_of_dzsave(cutter: Cutter, tile_size: int, overlap: int) -> None:
    """The same tiles are white, and every other tile has the tables and the scan that libjpeg-turbo writes of dzsave's pixels."""
    qualities = cycle(QUALITIES)
    for size, kind in product(SIZES, KINDS):
        image, quality, pyramid = page(kind, *size), next(qualities), Pyramid(*size, tile_size, overlap)
        expected = dzsave(image, tile_size, overlap)
        found = tiles_of(cutter, image, Cut(tile_size, overlap, quality))
        assert found.tiles.keys() == expected.keys(), (size, kind)
        for place, pixels in expected.items():
            assert coded(found.tiles[place]) == coded(libjpeg(pixels, quality)), (size, kind, place, quality)
            assert frame(found.tiles[place]) == (*pixels.size, 1 if is_gray(pixels) else 3)
        assert found.whites.keys() == {pyramid.tile_rectangle(*place)[2:] for place in pyramid.tiles() if place not in expected}
        for white_size, jpeg in found.whites.items():
            assert coded(jpeg) == coded(libjpeg(Image.new("RGB", white_size, "white"), quality))
            assert frame(jpeg) == (*white_size, 1)


@pytest.mark.parametrize("quality", QUALITIES)
def test_scans_are_those_of_libjpeg_turbo(cutter: Cutter, quality: int) -> None:
    """A tile has libjpeg-turbo's best Huffman tables and its scan byte for byte, whatever its content is."""
    pages = [page(kind, *size) for kind, size in product(("noise", "gray", "mixed"), ((300, 211), (1024, 1)))]
    pages += [extreme_blocks(), page("noise", 640, 480).quantize(5).convert("RGB")]
    for image in pages:
        found = tiles_of(cutter, image, Cut(1024, 0, quality))
        top = found.tiles[Pyramid(*image.size).max_level, 0, 0]
        assert coded(top) == coded(libjpeg(image, quality))


def extreme_blocks() -> Image.Image:
    """Blocks of two pure colours, in each pattern of the transform's basis: no coefficient can be larger than some of these."""
    image, colours = Image.new("RGB", (512, 512)), list(product((0, 255), repeat=3))
    for across, down in product(range(8), range(8)):
        waves = (
            math.cos((2 * x + 1) * across * math.pi / 16) * math.cos((2 * y + 1) * down * math.pi / 16) for y in range(8) for x in range(8)
        )
        mask = Image.frombytes("L", (8, 8), bytes(255 * (wave > 0) for wave in waves))
        for (i, one), (j, other) in product(enumerate(colours), enumerate(colours)):
            left, top = 64 * across + 8 * i, 64 * down + 8 * j
            image.paste(one, (left, top, left + 8, top + 8))
            image.paste(other, (left, top), mask)
    return image


def test_tables_change_no_pixel(cutter: Cutter) -> None:
    """Tiles decode to the pixels of libjpeg-turbo's JPEG with the standard tables, by two decoders."""
    for kind, quality in product(("noise", "gray", "mixed"), QUALITIES):
        image = page(kind, 513, 300)
        top = tiles_of(cutter, image, Cut(1024, 0, quality)).tiles[Pyramid(*image.size).max_level, 0, 0]
        assert decoded(top) == decoded(libjpeg(image, quality, optimize=False)), (kind, quality)


def test_processors_without_avx2_write_the_same_bytes(cutter: Cutter, portable_cutter: Cutter) -> None:
    """Both paths write the same file and the same preview."""
    assert cutter.version == portable_cutter.version
    ways = cycle(product(TILINGS, (False, True)))
    for kind, size, quality in product(KINDS, SIZES, (1, 85, 100)):
        (tile_size, overlap), blue_first = next(ways)
        cut = Cut(tile_size, overlap, quality, blue_first=blue_first)
        image = page(kind, *size)
        assert bytes_of(cutter, image, cut) == bytes_of(portable_cutter, image, cut), (kind, size, cut)


@pytest.mark.parametrize("kind", KINDS)
def test_byte_order_and_stride_change_nothing(cutter: Cutter, kind: str) -> None:
    """A page gives the same file, however its pixels lie in memory."""
    image, cut = page(kind, 777, 1025), Cut()
    expected = bytes_of(cutter, image, cut)
    for blue_first, padding in ((True, 0), (False, 1), (True, 31), (False, 4096)):
        assert bytes_of(cutter, image, replace(cut, blue_first=blue_first, padding=padding)) == expected


def test_threads_cut_pages_at_the_same_time(cutter: Cutter) -> None:
    """Pages that are cut at once do not disturb each other."""
    images = [page(kind, 777, 1025) for kind in KINDS]
    expected = [bytes_of(cutter, image, Cut()) for image in images]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda image: bytes_of(cutter, image, Cut()), 4 * images)) == 4 * expected


# ---- The file ----


def test_equal_tiles_are_stored_once(cutter: Cutter) -> None:
    """Equal tiles share their bytes, even if more lies between them than the cutter's buffer holds; different ones do not."""
    image, stamp = page("noise", 2048, 1024), page("gray", 256, 256)
    places = [(0, 0), (3, 0), (7, 1), (4, 2), (0, 3), (7, 3)]
    for column, row in places:
        image.paste(stamp, (256 * column, 256 * row))
    found = tiles_of(cutter, image, Cut(overlap=0))
    assert found.size_bytes > 2 << 20
    assert len({found.offsets[11, column, row] for column, row in places}) == 1
    assert len(set(found.offsets.values())) == len(found.offsets) - len(places) + 1
    assert found.size_bytes == sum(map(len, set(found.tiles.values())))


def test_many_equal_tiles_are_stored_once(cutter: Cutter) -> None:
    """A page of one gray has two different tiles of each size at most, however many tiles it has."""
    image = Image.new("RGB", (600, 400), (200, 200, 200))
    found = tiles_of(cutter, image, Cut(tile_size=4, overlap=0))
    assert len(found.tiles) == Pyramid(600, 400, 4, 0).tile_count > 15_000
    assert len(set(found.offsets.values())) == len(set(found.tiles.values())) < 40


def test_limit_is_kept(cutter: Cutter) -> None:
    """A file of exactly the limit is written; with one byte less the cutter stops with EFBIG and has not written more."""
    image = page("mixed", 777, 1025)
    with memory_file() as path:
        write(cutter, image, Cut(), path)
        size_bytes = path.stat().st_size
    assert len(tiles_of(cutter, image, Cut(limit_bytes=size_bytes)).tiles) > 10
    for limit_bytes in (size_bytes - 1, size_bytes // 2, 1000, 0):
        with memory_file() as path:
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as raised:
                write(cutter, image, Cut(limit_bytes=limit_bytes), path)
            assert raised.value.errno == errno.EFBIG
            assert path.stat().st_size <= limit_bytes


@pytest.mark.parametrize("size", [(1, 400_000), (400_000, 1), (1500, 1000)])
def test_limit_is_far_enough_for_noise(cutter: Cutter, tmp_path: Path, size: tuple[int, int]) -> None:
    """Without a limit of its own, each page can be cut: also a thin one, whose tiles have more bytes of tables than of pixels."""
    pixels = page("noise", *size).point(lambda value: 255 * (value & 1)).tobytes()
    options = {"tile_size": 128, "overlap": 8, "quality": 100}
    cut_changed(cutter, tmp_path / "file", pixels=memoryview(bytearray(pixels)), width=size[0], height=size[1], **options)
    assert len(read_flat_file(tmp_path / "file").tiles) > 100


def test_full_disk_is_an_error(cutter: Cutter) -> None:
    """A disk without room, and a file that cannot be written, end with the system's error."""
    for kind in KINDS:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as raised:
            write(cutter, page(kind, 777, 1025), Cut(), Path("/dev/full"))
        assert raised.value.errno == errno.ENOSPC


def test_file_that_is_not_open_is_an_error(cutter: Cutter) -> None:
    """A closed descriptor is the system's error."""
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as raised:
        cutter.cut(memoryview(bytearray(3)), 1, 1, blue_first=False, tile_size=256, overlap=1, quality=85, file=1 << 20, preview_level=0)
    assert raised.value.errno == errno.EBADF


# ---- Wrong arguments ----


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 0},
        {"height": 0},
        {"width": -1},
        {"width": 101},
        {"height": 101},
        {"width": 1 << 32, "height": 1},
        {"height": (1 << 32) + 100},
        {"stride": 299},
        {"stride": 301},
        {"stride": 0},
        {"stride": -300},
        {"stride": (1 << 64) + 300},
        {"tile_size": 0},
        {"tile_size": 255},
        {"tile_size": 2050},
        {"tile_size": (1 << 32) + 256},
        {"tile_size": -256},
        {"overlap": 129},
        {"overlap": -1},
        {"tile_size": 2, "overlap": 2},
        {"overlap": 1 << 32},
        {"preview_level": 8},
        {"preview_level": -1},
        {"quality": 0},
        {"quality": 101},
        {"quality": -1},
        {"limit_bytes": -1},
    ],
    ids=repr,
)
def test_wrong_arguments_are_refused(cutter: Cutter, tmp_path: Path, changes: dict[str, object]) -> None:
    """A page or a tiling that the cutter cannot cut is a ValueError, and nothing is written."""
    with pytest.raises(ValueError, match=r"."):
        cut_changed(cutter, tmp_path / "file", **changes)
    assert not (tmp_path / "file").read_bytes()


def test_too_large_a_page_is_refused(cutter: Cutter, tmp_path: Path) -> None:
    """A page has at most 2^24 px on a side."""
    width = (1 << 24) + 1
    with mmap.mmap(-1, 3 * width) as memory, pytest.raises(ValueError, match=r"."):
        cut_changed(cutter, tmp_path / "file", pixels=memory, width=width, height=1)
    assert not (tmp_path / "file").read_bytes()


def test_without_a_compiler_one_line_says_what_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is no failure: libvips cuts the tiles."""
    source = tmp_path / "cutter.c"
    source.write_bytes(compiling.SOURCE.read_bytes())
    monkeypatch.setattr(compiling, "SOURCE", source)
    monkeypatch.setattr(compiling, "library_path", lambda: tmp_path / "cutter.so")
    monkeypatch.setenv("PATH", str(tmp_path))
    compiling.main()
    assert capfd.readouterr().err.count("\n") == 1
    monkeypatch.undo()
    monkeypatch.setattr(compiling, "SOURCE", source)
    monkeypatch.setattr(compiling, "library_path", lambda: tmp_path / "cutter.so")
    compiling.main()
    assert {path.name for path in tmp_path.iterdir()} == {"cutter.c", "cutter.so"}
    assert capfd.readouterr() == ("", "")
