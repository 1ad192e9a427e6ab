"""Reads the cutter's file without the code under test."""

import struct
from dataclasses import dataclass
from pathlib import Path

ENTRY = struct.Struct("<IIIIQ")
TRAILER = struct.Struct("<QII8s")


@dataclass(frozen=True)
class FlatFile:
    """The content of a tile file.

    Args:
        tiles: The JPEG of each tile that is not white, by level, column and row.
        whites: The JPEG of the white tiles, by width and height.
        size_bytes: Of all JPEGs in the file.
        offsets: Of the JPEG of each tile.
    """

    tiles: dict[tuple[int, int, int], bytes]
    whites: dict[tuple[int, int], bytes]
    size_bytes: int
    offsets: dict[tuple[int, int, int], int]


def read_flat_file(path: Path) -> FlatFile:
    """Reads the whole file."""
    data = path.read_bytes()
    first, tiles, whites, magic = TRAILER.unpack_from(data, len(data) - TRAILER.size)
    assert magic == b"SLTILES1"
    assert first + ENTRY.size * (tiles + whites) + TRAILER.size == len(data)
    entries = list(ENTRY.iter_unpack(data[first : -TRAILER.size]))
    jpegs = [((level, column, row), data[offset : offset + size]) for level, column, row, size, offset in entries]
    return FlatFile(
        dict(jpegs[:tiles]),
        {place[1:]: jpeg for place, jpeg in jpegs[tiles:]},
        first,
        {(level, column, row): offset for level, column, row, _, offset in entries[:tiles]},
    )
