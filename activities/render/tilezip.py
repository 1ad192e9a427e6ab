"""Reads the files that a render child writes for one sheet. Loads no native library.

``tiles.zip`` holds the tiles, uncompressed, as ``tiles_files/{level}/{col}_{row}.jpeg``. Pure white tiles are left out; for each size of
such a tile there is one ``blanks/{width}x{height}.jpeg``. ``thumbnail.jpeg`` is in the same directory.
"""

import os
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Self

from activities.errors import TilesMissing

TILES = "tiles.zip"
THUMBNAIL = "thumbnail.jpeg"
TILES_PREFIX = "tiles_files/"
BLANKS_PREFIX = "blanks/"

_LOCAL_HEADER_BYTES = 30


def blank_name(width: int, height: int) -> str:
    """The name of the entry for a white tile of this size in pixels."""
    return f"{BLANKS_PREFIX}{width}x{height}.jpeg"


class TileZip:
    """A context manager that reads a sheet's tiles by offset, for any number of threads.

    Args:
        path: ``tiles.zip``.

    Raises:
        TilesMissing: The file is absent or cut off.
    """

    names: dict[str, tuple[int, int]]
    """The name of each tile that is not pure white, ``{level}/{col}_{row}.jpeg``, and its offset and size in bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.names = {}
        self._blanks: dict[str, tuple[int, int]] = {}
        try:
            self._file = path.open("rb")
        except FileNotFoundError as error:
            msg = f"no {path.name} in {path.parent.name}"
            raise TilesMissing(msg) from error
        try:
            with zipfile.ZipFile(self._file) as archive:
                for entry in archive.infolist():
                    if entry.filename.startswith(TILES_PREFIX) and entry.filename.endswith(".jpeg"):
                        self.names[entry.filename.removeprefix(TILES_PREFIX)] = self._locate(entry)
                    elif entry.filename.startswith(BLANKS_PREFIX):
                        self._blanks[entry.filename] = self._locate(entry)
        except zipfile.BadZipFile as error:
            self.close()
            raise self._cut_off_error() from error
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> bytes:
        """The JPEG of a tile.

        Args:
            name: A key of ``names``.

        Raises:
            KeyError: The tile is pure white; ``blank`` returns it.
            TilesMissing: The file is cut off.
        """
        return self._read(*self.names[name])

    def blank(self, width: int, height: int) -> bytes:
        """The JPEG of the pure white tiles of this size in pixels, with the bytes that they would have in the archive.

        Raises:
            TilesMissing: No tile of this size is pure white. So a tile that is not in ``names`` was lost.
        """
        place = self._blanks.get(blank_name(width, height))
        if place is None:
            msg = f"{self._path.name} in {self._path.parent.name} lacks a tile of {width} x {height} px that is not blank"
            raise TilesMissing(msg)
        return self._read(*place)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _locate(self, entry: zipfile.ZipInfo) -> tuple[int, int]:
        # The local header repeats the name and has an extra field of its own.
        header = self._read(entry.header_offset, _LOCAL_HEADER_BYTES)
        name_bytes = int.from_bytes(header[26:28], "little")
        extra_bytes = int.from_bytes(header[28:30], "little")
        return entry.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes, entry.file_size

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise self._cut_off_error()
        return data

    def _cut_off_error(self) -> TilesMissing:
        return TilesMissing(f"{self._path.name} in {self._path.parent.name} is cut off")
