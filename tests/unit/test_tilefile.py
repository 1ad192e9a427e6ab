"""The files that a render child leaves: whatever a child that was taken over leaves there, nobody waits, and no other file is read."""

import os
import random
import resource
import stat
import struct
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from activities.bucket.dzi import Pyramid
from activities.errors import TilesMissing
from activities.render.tilefile import MOST_THUMBNAIL_BYTES, THUMBNAIL, TILES, TileFile, check_sheet, read_thumbnail, write_tile_file
from tests.resources.jpeg import outline
from tests.unit.hostile_files import as_ordinary_user
from tests.unit.sheets import jpeg

PYRAMID = Pyramid(600, 400)
SECRET = b"%PDF-1.7 the drawing of another tenant"
ENTRY = struct.Struct("<IIIIQ")
TRAILER = struct.Struct("<QII8s")


def fill(page: Path, pyramid: Pyramid = PYRAMID) -> Path:
    """Leaves the files of a sheet, each as it should be; every tile is another one."""
    (page / THUMBNAIL).write_bytes(jpeg(512, 341))
    with (page / TILES).open("wb") as file:
        tiles = ((tile, outline(*pyramid.tile_rectangle(*tile)[2:], str(tile).encode())) for tile in pyramid.tiles())
        write_tile_file(file, tiles, ())
    return page


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The directory of a page that was tiled well."""
    (tmp_path / "page").mkdir()
    return fill(tmp_path / "page")


def with_index(
    page: Path, entries: list[tuple[int, int, int, int, int]], whites: list[tuple[int, int, int, int, int]], data: bytes
) -> None:
    """Leaves a tile file with this index."""
    index = b"".join(ENTRY.pack(*entry) for entry in entries + whites)
    (page / TILES).write_bytes(data + index + TRAILER.pack(len(data), len(entries), len(whites), b"SLTILES1"))


def link_to_environment(path: Path) -> None:
    """A symbolic link to this process's environment."""
    path.symlink_to("/proc/self/environ")


def link_to_source(path: Path) -> None:
    """A symbolic link to another tenant's file."""
    (path.parents[1] / "other.pdf").write_bytes(SECRET)
    path.symlink_to(path.parents[1] / "other.pdf")


def hard_link_to_source(path: Path) -> None:
    """A second name of another tenant's file, which is right in all else."""
    path.with_name("right").rename(path.parents[1] / "other")
    path.hardlink_to(path.parents[1] / "other")


def fifo(path: Path) -> None:
    """A FIFO that nobody writes into."""
    os.mkfifo(path)


def directory(path: Path) -> None:
    """A directory."""
    path.mkdir()


def socket_file(path: Path) -> None:
    """A file that can only be connected to."""
    os.mknod(path, stat.S_IFSOCK | 0o600)


def other_bytes(path: Path) -> None:
    """A file of other bytes."""
    path.write_bytes(SECRET)


def without_end(path: Path) -> None:
    """A sparse file that is longer than any sheet's."""
    path.touch()
    os.truncate(path, 1 << 40)


def empty(path: Path) -> None:
    """An empty file."""
    path.touch()


@pytest.mark.parametrize("name", [THUMBNAIL, TILES])
@pytest.mark.parametrize(
    "leave",
    [link_to_environment, link_to_source, hard_link_to_source, fifo, directory, socket_file, other_bytes, without_end, empty],
    ids=lambda leave: str(leave.__name__),
)
def test_only_a_file_of_the_child_is_read(page: Path, name: str, leave: Callable[[Path], None]) -> None:
    """It is refused, and nothing is waited for."""
    (page / name).rename(page / "right")
    leave(page / name)
    with pytest.raises(TilesMissing) as refusal:
        check_sheet(page, PYRAMID)
    assert str(page.parent) not in str(refusal.value)
    (page / name).rename(page / "wrong")
    with pytest.raises(TilesMissing, match=f"no {name}"):
        check_sheet(page, PYRAMID)


def test_directory_that_became_a_link_is_not_followed(page: Path) -> None:
    """The files of another upload stay its own."""
    page.rename(page.with_name("other"))
    page.symlink_to("other")
    with pytest.raises(TilesMissing):
        check_sheet(page, PYRAMID)


def test_file_without_permission_is_tiles_missing(open_path: Path) -> None:
    """An ordinary user cannot open such a file; that is no reason to try for ever."""
    page = fill(open_path)

    def refused() -> None:
        (page / TILES).chmod(0)
        with pytest.raises(TilesMissing):
            check_sheet(page, PYRAMID)

    as_ordinary_user(refused, page, page / TILES, page / THUMBNAIL)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_file_of_another_owner_is_refused(page: Path) -> None:
    """The child made the file if its owner is the directory's owner."""
    os.chown(page / THUMBNAIL, 65534, 65534)
    with pytest.raises(TilesMissing):
        check_sheet(page, PYRAMID)


@pytest.mark.parametrize(
    "body",
    [
        SECRET,
        b"\xff\xd8" + SECRET + b"\xff\xd9",
        outline(513, 20),
        outline(0, 20),
        outline(20, 20)[:-1],
        outline(20, 20) + SECRET,
        b"\xff\xd8" + b"\xff\xe0\x00\x02" * 1000 + b"\xff\xd9",
        b"\xff\xd8\xff\xda" + outline(20, 20)[2:],
        outline(20, 20, bytes(MOST_THUMBNAIL_BYTES)),
    ],
    ids=["other", "framed", "wide", "no width", "cut", "appended", "no frame", "scan first", "long"],
)
def test_thumbnail_is_a_small_jpeg(page: Path, body: bytes) -> None:
    """Nothing else gets into the bucket as ``image/jpeg``."""
    (page / THUMBNAIL).write_bytes(body)
    with pytest.raises(TilesMissing):
        read_thumbnail(page)


def test_real_thumbnail_is_read(page: Path) -> None:
    """Byte for byte."""
    assert read_thumbnail(page) == jpeg(512, 341)


FIRST = (0, 0, 0, 4, 0)


@pytest.mark.parametrize(
    ("entries", "whites"),
    [
        ([(0, 0, 0, 2 << 30, 0)], []),
        ([(0, 0, 0, 2**32 - 1, 2**64 - 1)], []),
        ([(0, 0, 0, 1, 4)], []),
        ([FIRST, FIRST], []),
        ([(11, 0, 0, 4, 0)], []),
        ([(0, 1, 0, 4, 0)], []),
        ([(0, 0, 1, 4, 0)], []),
        ([(2**32 - 1, 2**32 - 1, 2**32 - 1, 4, 0)], []),
        ([], [(0, 258, 258, 2 << 30, 0)]),
        ([(0, 0, 0, 4, 0)] * 300, []),
        ([], [(0, number, 1, 4, 0) for number in range(300)]),
    ],
    ids=["2 GB", "far", "into the index", "twice", "level", "column", "row", "negative", "white 2 GB", "many", "many whites"],
)
def test_index_names_each_tile_of_the_sheet_once_and_inside_the_file(
    page: Path, entries: list[tuple[int, int, int, int, int]], whites: list[tuple[int, int, int, int, int]]
) -> None:
    """A file of some kilobytes makes nobody take gigabytes of memory."""
    with_index(page, entries, whites, b"tile")
    tracemalloc.start()
    try:
        with pytest.raises(TilesMissing):
            TileFile(page, PYRAMID)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [2**32 - 1, 2**31])
def test_count_of_tiles_that_the_file_cannot_have_is_refused(page: Path, count: int) -> None:
    """Before memory is taken for them."""
    (page / TILES).write_bytes(bytes(8000) + TRAILER.pack(2**64 - 24 * count + 8000, count, 0, b"SLTILES1"))
    with pytest.raises(TilesMissing):
        TileFile(page, PYRAMID)


def test_tile_is_not_longer_than_a_tile_can_be(page: Path) -> None:
    """Even if the file, a sparse one, really is that long."""
    pyramid = Pyramid(30_000, 30_000)
    long = 100 << 20
    with (page / TILES).open("wb") as file:
        file.truncate(long)
        file.seek(long)
        file.write(ENTRY.pack(0, 0, 0, long, 0) + TRAILER.pack(long, 1, 0, b"SLTILES1"))
    with pytest.raises(TilesMissing):
        TileFile(page, pyramid)


@pytest.mark.parametrize("white", [False, True])
def test_few_bytes_do_not_become_a_mountain_of_tiles(page: Path, white: bool) -> None:
    """Tiles that share their bytes are together no longer than the sheet could be."""
    pyramid = Pyramid(3000, 3000)
    content = outline(258, 258, bytes(1_200_000))
    tiles = [(*tile, len(content), 0) for tile in pyramid.tiles()]
    whites = [(0, *size, len(content), 0) for size in {pyramid.tile_rectangle(*tile)[2:] for tile in pyramid.tiles()}]
    with_index(page, [] if white else tiles, whites if white else [], content)
    with pytest.raises(TilesMissing):
        TileFile(page, pyramid)


@pytest.mark.parametrize("wrong", [SECRET, outline(257, 258), b"", outline(256, 256)[:-1]], ids=["other", "size", "empty", "cut"])
@pytest.mark.parametrize("white", [False, True])
def test_tile_that_is_no_jpeg_of_its_size_is_not_handed_on(page: Path, wrong: bytes, white: bool) -> None:
    """The other tiles are."""
    pyramid = Pyramid(1000, 1000, 256, 1)
    with (page / TILES).open("wb") as file:
        write_tile_file(
            file, [((0, 0, 0), outline(1, 1)), *([] if white else [((10, 1, 1), wrong)])], [((258, 258), wrong)] if white else []
        )
    with TileFile(page, pyramid) as tiles:
        assert tiles.tile(0, 0, 0)[1] == outline(1, 1)
        with pytest.raises(TilesMissing):
            tiles.tile(10, 1, 1)


def test_refused_files_are_closed(page: Path) -> None:
    """A child that leaves bad files again and again does not use up the worker's descriptors."""
    (page / TILES).write_bytes(b"")
    (page / "other").hardlink_to(page / THUMBNAIL)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (names of descriptors)
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 20, hard))
    try:
        for _ in range(50):
            with pytest.raises(TilesMissing):
                TileFile(page, PYRAMID)
            with pytest.raises(TilesMissing):
                read_thumbnail(page)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_tile_file_reads_from_many_threads(page: Path) -> None:
    """Threads that read in any order get the same tiles as a single reader."""
    with TileFile(page, PYRAMID) as tiles, ThreadPoolExecutor(8) as threads:
        alone = {tile: tiles.tile(*tile) for tile in PYRAMID.tiles()}
        places = list(alone) * 20
        random.Random(1).shuffle(places)  # noqa: S311 (an order, no secret)
        assert all(alone[place] == data for place, data in zip(places, threads.map(lambda place: tiles.tile(*place), places), strict=True))


def test_tile_file_reads_more_than_65535_tiles(page: Path) -> None:
    """The number of tiles has no limit of 16 bits."""
    pyramid = Pyramid(26_000, 26_000, 100, 0)
    fill(page, pyramid)
    with TileFile(page, pyramid) as tiles:
        assert len(tiles.names) == pyramid.tile_count > 70_000
        assert tiles.tile(15, 99, 233) == ("15/99_233.jpeg", outline(100, 100, b"(15, 99, 233)"))


def test_absent_or_cut_tile_file_is_tiles_missing(page: Path) -> None:
    """Wherever the file is cut off, and when there is no file."""
    whole = (page / TILES).read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (page / TILES).write_bytes(whole[:size])
        with pytest.raises(TilesMissing):
            TileFile(page, PYRAMID)
    (page / TILES).unlink()
    with pytest.raises(TilesMissing, match=r"no tiles\.flat"):
        TileFile(page, PYRAMID)


def test_tile_file_that_shrinks_while_open_is_tiles_missing(page: Path) -> None:
    """A short read is never passed on as a tile."""
    with TileFile(page, PYRAMID) as tiles:
        os.truncate(page / TILES, 10)
        with pytest.raises(TilesMissing, match="cut off"):
            tiles.tile(10, 1, 1)


def test_tile_file_that_changes_while_open_is_checked_again(page: Path) -> None:
    """The child is still alive, and may hold the file open."""
    with TileFile(page, PYRAMID) as tiles:
        with (page / TILES).open("r+b") as file:
            file.write(SECRET * 100)
        with pytest.raises(TilesMissing, match="is no JPEG"):
            tiles.tile(0, 0, 0)


def test_lost_tile_is_not_taken_for_a_blank_one(page: Path) -> None:
    """A tile is lost when the file has neither the tile nor a blank tile of its size."""
    pyramid = Pyramid(1000, 1000)
    with (page / TILES).open("wb") as file:
        write_tile_file(file, [((0, 0, 0), outline(1, 1))], [((257, 257), outline(257, 257, b"white"))])
    with TileFile(page, pyramid) as tiles:
        assert tiles.tile(10, 0, 0)[1] == outline(257, 257, b"white")
        with pytest.raises(TilesMissing, match="258 x 257"):
            tiles.tile(10, 1, 0)
