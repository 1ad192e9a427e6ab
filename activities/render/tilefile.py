"""The files of one sheet on the scratch. A render child writes its tiles and its thumbnail. Loads no native library.

``tiles.flat`` holds the JPEGs of the tiles one after the other, equal ones once. Pure white tiles are left out; there is one white tile of
each size of them. At the end are the index and a trailer, all numbers little-endian:

    entry    level, column, row, bytes (32 bits each), offset (64 bits); of a white tile: 0, width, height, bytes, offset
    trailer  offset of the first entry (64 bits), number of tiles, number of white tiles (32 bits each), ``SLTILES1``

``thumbnail.jpeg`` is in the same directory. So is ``layers.json``, which the worker writes, if the page uses layers.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from activities.bucket.dzi import Pyramid, tile_name
from activities.bucket.records import Layer, bounded_layers, from_json, to_json
from activities.errors import TilesMissing

TILES = "tiles.flat"
THUMBNAIL = "thumbnail.jpeg"
LAYERS = "layers.json"

_ENTRY = struct.Struct("<IIIIQ")
_TRAILER = struct.Struct("<QII8s")
_MAGIC = b"SLTILES1"


@dataclass(frozen=True)
class _LayersFile:
    layers: tuple[Layer, ...]


def write_layers(directory: Path, layers: Iterable[Layer]) -> None:
    """Writes ``layers.json``."""
    (directory / LAYERS).write_bytes(to_json(_LayersFile(bounded_layers(layers))))


def read_layers(directory: Path) -> tuple[Layer, ...]:
    """The layers of a sheet; none where the file is absent.

    Raises:
        TilesMissing: The file is not as ``write_layers`` writes it.
    """
    try:
        return from_json(_LayersFile, (directory / LAYERS).read_bytes()).layers
    except FileNotFoundError:
        return ()
    except ValueError as error:
        msg = f"{LAYERS} in {directory.name} is damaged"
        raise TilesMissing(msg) from error


class TileFile:
    """A context manager that reads a sheet's tiles by offset, for any number of threads.

    Args:
        path: ``tiles.flat``.

    Raises:
        TilesMissing: The file is absent, cut off, or no such file.
    """

    names: dict[str, tuple[int, int]]
    """The name of each tile that is not pure white, ``{level}/{col}_{row}.jpeg``, and its offset and size in bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("rb")
        except FileNotFoundError as error:
            msg = f"no {path.name} in {path.parent.name}"
            raise TilesMissing(msg) from error
        try:
            self.names, self._blanks = self._read_index()
        except BaseException:
            self.close()
            raise

    def tile(self, pyramid: Pyramid, level: int, column: int, row: int) -> tuple[str, bytes]:
        """The name and the JPEG of a tile of the sheet, white or not.

        Raises:
            TilesMissing: The tile was lost, or the file is cut off.
        """
        name, place = self.place(pyramid, level, column, row)
        return name, self.read_at(*place)

    def place(self, pyramid: Pyramid, level: int, column: int, row: int) -> tuple[str, tuple[int, int]]:
        """The name of a tile, white or not, and the offset and the size in bytes of its JPEG. Tiles at the same place are equal.

        Raises:
            TilesMissing: The tile was lost.
        """
        name = tile_name(level, column, row)
        return name, self.names.get(name) or self._blank_place(*pyramid.tile_rectangle(level, column, row)[2:])

    def read_at(self, offset: int, size: int) -> bytes:
        """The bytes at a place.

        Raises:
            TilesMissing: The file is cut off.
        """
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise self._cut_off_error()
        return data

    def read(self, name: str) -> bytes:
        """The JPEG of a tile.

        Args:
            name: A key of ``names``.

        Raises:
            KeyError: The tile is pure white; ``blank`` returns it.
            TilesMissing: The file is cut off.
        """
        return self.read_at(*self.names[name])

    def blank(self, width: int, height: int) -> bytes:
        """The JPEG of the pure white tiles of this size in pixels.

        Raises:
            TilesMissing: No tile of this size is pure white. So a tile that is not in ``names`` was lost.
        """
        return self.read_at(*self._blank_place(width, height))

    def _blank_place(self, width: int, height: int) -> tuple[int, int]:
        place = self._blanks.get((width, height))
        if place is None:
            msg = f"{self._path.name} in {self._path.parent.name} lacks a tile of {width} x {height} px that is not blank"
            raise TilesMissing(msg)
        return place

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _read_index(self) -> tuple[dict[str, tuple[int, int]], dict[tuple[int, int], tuple[int, int]]]:
        end = os.fstat(self._file.fileno()).st_size - _TRAILER.size
        if end < 0:
            raise self._cut_off_error()
        start, tiles, blanks, magic = _TRAILER.unpack(self.read_at(end, _TRAILER.size))
        if magic != _MAGIC or start + _ENTRY.size * (tiles + blanks) != end:
            raise self._cut_off_error()
        entries = list(_ENTRY.iter_unpack(self.read_at(start, end - start)))
        if any(offset + size > start for *_, size, offset in entries):
            raise self._cut_off_error()
        names = {tile_name(level, column, row): (offset, size) for level, column, row, size, offset in entries[:tiles]}
        return names, {(width, height): (offset, size) for _, width, height, size, offset in entries[tiles:]}

    def _cut_off_error(self) -> TilesMissing:
        return TilesMissing(f"{self._path.name} in {self._path.parent.name} is cut off")


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
