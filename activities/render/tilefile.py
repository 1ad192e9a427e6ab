"""The files of one sheet on the scratch. A render child writes its tiles and its thumbnail. Loads no native library.

``tiles.flat`` holds the JPEGs of the tiles one after the other, equal ones once. Pure white tiles are left out; there is one white tile of
each size of them. At the end are the index and a trailer, all numbers little-endian:

    entry    level, column, row, bytes (32 bits each), offset (64 bits); of a white tile: 0, width, height, bytes, offset
    trailer  offset of the first entry (64 bits), number of tiles, number of white tiles (32 bits each), ``SLTILES1``

``thumbnail.jpeg`` is in the same directory. So is ``layers.json``, which the worker writes, if the page uses layers.

A hostile PDF may take over a child, so nothing in the directory is trusted, each time that it is opened:

1. A file is opened without following a link and without waiting for the other end of a FIFO. It must be a regular file of the
   directory's owner with a single name: otherwise it could be a hard link to another upload's PDF.
2. A file has at most as many bytes as a sheet of its size can take. The index names tiles of this sheet only, each once, all of them
   inside the file, and together no longer than the file may be.
3. A file is read by ``pread``, which a file that shrinks meanwhile cannot crash, as it would a mapping.
4. A JPEG is handed on only if it begins and ends like a JPEG, and its header has the right size. Its pixels are not decoded.
"""

import errno
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from activities.bucket.dzi import THUMBNAIL_PX, Pyramid, tile_name
from activities.bucket.records import MOST_LAYERS_BYTES, Layer, bounded_layers, from_json, to_json
from activities.errors import TilesMissing

TILES = "tiles.flat"
THUMBNAIL = "thumbnail.jpeg"
LAYERS = "layers.json"

MOST_THUMBNAIL_BYTES = 2 << 20
"""More than noise takes at quality 100."""

MOST_KEPT_WHITES = 16
"""White tiles of a sheet that are read once, because there are many of each."""

_NO_LINK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_START, _END = b"\xff\xd8", b"\xff\xd9"
_FRAMES, _SCAN = frozenset(range(0xC0, 0xC4)), 0xDA
"""The markers of frames with Huffman coding, and of a scan: https://www.w3.org/Graphics/JPEG/itu-t81.pdf, table B.1."""

_ERRORS_OF_A_CHILD = frozenset({errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV, errno.ENOTDIR, errno.EISDIR})
"""What the kernel says of a link, of a file without permission, and of a socket or a device, where a file should be."""

_ENTRY = struct.Struct("<IIIIQ")
_TRAILER = struct.Struct("<QII8s")
_MAGIC = b"SLTILES1"


@dataclass(frozen=True)
class _LayersFile:
    layers: tuple[Layer, ...]


def write_layers(directory: Path, layers: Iterable[Layer]) -> None:
    """Writes ``layers.json``.

    Raises:
        TilesMissing: There is such a file already. Only a child that was taken over makes it.
        OSError: The file cannot be written.
    """
    try:
        descriptor = os.open(directory / LAYERS, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        msg = f"{LAYERS} is in {directory.name} already"
        raise TilesMissing(msg) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(to_json(_LayersFile(bounded_layers(layers))))


def read_layers(directory: Path) -> tuple[Layer, ...]:
    """The layers of a sheet; none where the file is absent.

    Raises:
        TilesMissing: The file is not as ``write_layers`` writes it.
        OSError: The file cannot be read.
    """
    if not (directory / LAYERS).exists():
        return ()
    try:
        return from_json(_LayersFile, _read_left(directory, LAYERS, 2 * MOST_LAYERS_BYTES)).layers
    except ValueError as error:
        msg = f"{LAYERS} in {directory.name} is damaged"
        raise TilesMissing(msg) from error


def read_thumbnail(page: Path) -> bytes:
    """The thumbnail of a page.

    Args:
        page: The directory that a render child was given.

    Raises:
        TilesMissing: There is no thumbnail, or the child left something else in its place.
        OSError: The file cannot be read.
    """
    jpeg = _read_left(page, THUMBNAIL, MOST_THUMBNAIL_BYTES)
    size = jpeg_size(jpeg)
    if size is None or not 1 <= min(size) <= max(size) <= THUMBNAIL_PX:
        msg = f"{THUMBNAIL} in {page.name} is no JPEG of at most {THUMBNAIL_PX} x {THUMBNAIL_PX} px"
        raise TilesMissing(msg)
    return jpeg


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in the header of a JPEG; None if the bytes do not begin and end like one."""
    if not (data.startswith(_START) and data.endswith(_END)):
        return None
    at = len(_START)
    while at + 9 <= len(data) and data[at] == 0xFF and (marker := data[at + 1]) != _SCAN:
        if marker in _FRAMES:
            return data[at + 7] << 8 | data[at + 8], data[at + 5] << 8 | data[at + 6]
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def check_sheet(page: Path, pyramid: Pyramid) -> None:
    """Looks at the files that a render child left for a sheet. Whoever opens them later looks again.

    Raises:
        TilesMissing: A file is absent, or is not what it should be.
        OSError: A file cannot be read.
    """
    read_thumbnail(page)
    TileFile(page, pyramid).close()


def _read_left(page: Path, name: str, most_bytes: int) -> bytes:
    """The content of such a file. Raises like ``_open_left``."""
    descriptor, size_bytes = _open_left(page, name, most_bytes)
    try:
        return os.pread(descriptor, size_bytes, 0)
    finally:
        os.close(descriptor)


def _open_left(page: Path, name: str, most_bytes: int) -> tuple[int, int]:
    """Opens a file that a render child left, as the module says; returns the descriptor and the file's size.

    Raises:
        TilesMissing: The file is absent, or is not what it should be.
        OSError: The file cannot be opened for a reason that no child makes.
    """
    where = f"{name} in {page.name}"
    try:
        directory = os.open(page, _NO_LINK | os.O_DIRECTORY)
        try:
            owner = os.fstat(directory).st_uid
            descriptor = os.open(name, _NO_LINK, dir_fd=directory)
        finally:
            os.close(directory)
    except FileNotFoundError as error:
        msg = f"no {where}"
        raise TilesMissing(msg) from error
    except OSError as error:
        if error.errno not in _ERRORS_OF_A_CHILD:
            raise
        msg = f"{where} is not a file that can be read"
        raise TilesMissing(msg) from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == owner and status.st_size <= most_bytes:
        return descriptor, status.st_size
    os.close(descriptor)
    msg = f"{where} is not a file of the render process with at most {most_bytes:,} bytes"
    raise TilesMissing(msg)


class TileFile:
    """A context manager that reads a sheet's tiles by offset, for any number of threads.

    Args:
        page: The directory that a render child was given.
        pyramid: The sheet's tiles.

    Raises:
        TilesMissing: The file is absent, cut off, or not the file of such a sheet.
        OSError: The file cannot be read.
    """

    names: dict[str, tuple[int, int]]
    """The name of each tile that is not pure white, ``{level}/{col}_{row}.jpeg``, and its offset and size in bytes."""

    def __init__(self, page: Path, pyramid: Pyramid) -> None:
        self._where = f"{TILES} in {page.name}"
        self._pyramid = pyramid
        self._sizes = [pyramid.tile_sizes(level) for level in range(pyramid.max_level + 1)]
        self._white_tiles: dict[tuple[int, int], bytes] = {}
        most_bytes = pyramid.most_bytes + _ENTRY.size * 2 * pyramid.tile_count + _TRAILER.size
        self._descriptor, size_bytes = _open_left(page, TILES, most_bytes)
        try:
            self.names, self._whites = self._read_index(size_bytes)
        except BaseException:
            self.close()
            raise

    def tile(self, level: int, column: int, row: int) -> tuple[str, bytes]:
        """The name and the JPEG of a tile of the sheet, white or not.

        Raises:
            TilesMissing: The tile was lost or is no JPEG of its size, or the file is cut off.
        """
        name, place = self.place(level, column, row)
        size = self._size(level, column, row)
        if name not in self.names and (white := self._white_tiles.get(size)) is not None:
            return name, white
        data = self._read_at(*place)
        if jpeg_size(data) != size:
            msg = f"{name} in {self._where} is no JPEG of {size[0]:,} x {size[1]:,} px"
            raise TilesMissing(msg)
        if name not in self.names and len(self._white_tiles) < MOST_KEPT_WHITES:
            self._white_tiles[size] = data
        return name, data

    def place(self, level: int, column: int, row: int) -> tuple[str, tuple[int, int]]:
        """The name of a tile, white or not, and the offset and the size in bytes of its JPEG. Tiles at the same place are equal.

        Raises:
            TilesMissing: The tile was lost.
        """
        name = tile_name(level, column, row)
        place = self.names.get(name)
        if place is None:
            place = self._whites.get(size := self._size(level, column, row))
        if place is None:
            msg = f"{self._where} lacks a tile of {size[0]:,} x {size[1]:,} px that is not blank"
            raise TilesMissing(msg)
        return name, place

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _size(self, level: int, column: int, row: int) -> tuple[int, int]:
        widths, heights = self._sizes[level]
        return widths[column], heights[row]

    def _read_at(self, offset: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise self._damaged_error()
        return data

    def _read_index(self, size_bytes: int) -> tuple[dict[str, tuple[int, int]], dict[tuple[int, int], tuple[int, int]]]:
        end = size_bytes - _TRAILER.size
        if end < 0:
            raise self._damaged_error()
        start, tiles, blanks, magic = _TRAILER.unpack(self._read_at(end, _TRAILER.size))
        if magic != _MAGIC or start + _ENTRY.size * (tiles + blanks) != end or max(tiles, blanks) > self._pyramid.tile_count:
            raise self._damaged_error()
        entries = list(_ENTRY.iter_unpack(self._read_at(start, end - start)))
        side = self._pyramid.tile_size + 2 * self._pyramid.overlap
        most_tile_bytes = Pyramid(side, side, side, 0).most_bytes
        if any(offset + size > start or size > most_tile_bytes for *_, size, offset in entries):
            raise self._damaged_error()
        grids = [self._pyramid.grid(level) for level in range(self._pyramid.max_level + 1)]
        names = {}
        for level, column, row, size, offset in entries[:tiles]:
            if level >= len(grids) or column >= grids[level][0] or row >= grids[level][1]:
                raise self._damaged_error()
            names[tile_name(level, column, row)] = offset, size
        white = {(width, height): (offset, size) for _, width, height, size, offset in entries[tiles:]}
        white_bytes = (self._pyramid.tile_count - tiles) * max((size for _, size in white.values()), default=0)
        if len(names) != tiles or sum(size for _, size in names.values()) + white_bytes > self._pyramid.most_bytes:
            raise self._damaged_error()
        return names, white

    def _damaged_error(self) -> TilesMissing:
        return TilesMissing(f"{self._where} is cut off, or is not the file of such a sheet")


@contextmanager
def new_files(target: Path) -> Iterator[tuple[int, int]]:
    """Makes ``tiles.flat`` and ``thumbnail.jpeg``, empty, and yields their descriptors, open for reading and writing.

    Args:
        target: An existing directory.

    Raises:
        OSError: They cannot be made.
    """
    with ExitStack() as opened:
        descriptors = []
        for name in (TILES, THUMBNAIL):
            descriptors.append(os.open(target / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            opened.callback(os.close, descriptors[-1])
        yield descriptors[0], descriptors[1]


def write_tile_file(
    file: IO[bytes], tiles: Iterable[tuple[tuple[int, int, int], bytes]], blanks: Iterable[tuple[tuple[int, int], bytes]]
) -> None:
    """Writes ``tiles.flat``.

    Args:
        file: Empty.
        tiles: Level, column and row of each tile that is not pure white, and its JPEG.
        blanks: Width and height of each size of white tiles, and the JPEG.

    Raises:
        OSError: The file cannot be written.
    """
    offset, index, counts = 0, bytearray(), []
    for named in (tiles, (((0, *size), jpeg) for size, jpeg in blanks)):
        before = len(index)
        for place, jpeg in named:
            file.write(jpeg)
            index += _ENTRY.pack(*place, len(jpeg), offset)
            offset += len(jpeg)
        counts.append((len(index) - before) // _ENTRY.size)
    file.write(index)
    file.write(_TRAILER.pack(offset, *counts, _MAGIC))
    file.flush()
