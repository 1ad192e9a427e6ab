"""PMTiles 3: one object with all tiles of a sheet, and an index of them at its beginning. Pure.

https://github.com/protomaps/PMTiles/blob/main/spec/v3/spec.md

1. Zoom, x and y of a tile are its level, column and row in the Deep Zoom pyramid. All levels are in.
2. Nothing gets smaller: the tiles are JPEGs, and the index is in the form of gzip, but stored. So it has the same bytes whatever zlib is
   installed, and readers that take every index for a gzip can read it.
3. The bounds are the whole world, as a sheet has no place on it.
"""

import json
import struct
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

from activities.bucket.dzi import MOST_TILES, Pyramid
from activities.bucket.records import SCHEMA, SheetRecord, to_wire

MEDIA_TYPE = "application/vnd.pmtiles"
"""https://www.iana.org/assignments/media-types/application/vnd.pmtiles"""

FIRST_BYTES = 16 << 10
"""Readers ask for so many bytes first. So header and root directory lie within them."""
LEAF_ENTRIES = 4096
"""Entries of a leaf directory: with more of them, a reader gets more that it does not need; with fewer, it asks more often."""
LARGEST_INDEX_BYTES = 16 << 20
"""No sheet has a larger index: one of ``dzi.MOST_TILES`` is smaller."""

_HEADER = struct.Struct("<7sB11Q6B4iB2i")
_MAGIC, _VERSION = b"PMTiles", 3
_NO_COMPRESSION, _GZIP, _JPEG = 1, 2, 3
_BLOCK_BYTES = 0xFFFF
_WORLD = (-180_0000000, -85_0000000, 180_0000000, 85_0000000)

C = TypeVar("C", bound=Hashable)

_Entry = tuple[int, int, int, int]
"""Tile id, run length, length and offset."""


@dataclass(frozen=True)
class Archive(Generic[C]):
    """An archive that is to be written: the index, then the contents one after the other.

    Args:
        index: Header, root directory, metadata and leaf directories.
        contents: Each content once, in the order in which they follow the index.
        size_bytes: Of the whole archive.
    """

    index: bytes
    contents: tuple[C, ...]
    size_bytes: int


def plan_archive(tiles: Iterable[tuple[tuple[int, int, int], C, int]], metadata: bytes, leaf_entries: int = LEAF_ENTRIES) -> Archive[C]:
    """Decides what an archive is made of. The same tiles make the same archive, in whatever order they are given.

    Args:
        tiles: Level, column and row of each tile; its content, equal for equal tiles; and its size in bytes.
        metadata: JSON.
        leaf_entries: Entries of a leaf directory; more of them where the root directory would be too long otherwise.
    """
    in_order = sorted((tile_id(*place), content, size) for place, content, size in tiles)
    offsets: dict[C, int] = {}
    entries: list[_Entry] = []
    end = 0
    for number, content, size in in_order:
        if content not in offsets:
            offsets[content] = end
            end += size
        offset = offsets[content]
        if entries:
            first, run, length, before = entries[-1]
            if (offset, size, number) == (before, length, first + run):
                entries[-1] = (first, run + 1, length, before)
                continue
        entries.append((number, 1, size, offset))
    root, leaves = _directories(entries, leaf_entries)
    metadata = _stored(metadata)
    metadata_at = _HEADER.size + len(root)
    leaves_at = metadata_at + len(metadata)
    tiles_at = leaves_at + len(leaves)
    places = (_HEADER.size, len(root), metadata_at, len(metadata), leaves_at, len(leaves), tiles_at, end)
    max_zoom = _place_of(in_order[-1][0])[0]
    header = _HEADER.pack(
        *(_MAGIC, _VERSION, *places, len(in_order), len(entries), len(offsets)),
        *(1, _GZIP, _NO_COMPRESSION, _JPEG, 0, max_zoom, *_WORLD, 0, 0, 0),
    )
    return Archive(header + root + metadata + leaves, tuple(offsets), tiles_at + end)


def sheet_metadata(record: SheetRecord) -> bytes:
    """The metadata of a sheet's archive."""
    facts = {name: value for name, value in to_wire(record).items() if name in _FACTS and value is not None}
    name = record.title or f"Sheet {record.number}"
    document = {"schema": SCHEMA, "name": name, "type": "baselayer", "format": "jpeg", "sheet": record.number, **facts}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


_FACTS = frozenset({"title", "width", "height", "tileSize", "overlap", "dpi", "scaled", "transform"})


class Index:
    """The index of an archive that was read.

    Args:
        data: The beginning of the archive, at least as long as ``index_bytes`` says.

    Raises:
        ValueError: This is no archive of a sheet.
    """

    def __init__(self, data: bytes) -> None:
        header = _read_header(data)
        self._tiles_at: int
        self._tiles_bytes: int
        root_at, root_bytes, metadata_at, metadata_bytes, leaves_at, leaves_bytes, self._tiles_at, self._tiles_bytes = header[2:10]
        if len(data) < self._tiles_at or max(root_at + root_bytes, metadata_at + metadata_bytes, leaves_at + leaves_bytes) > self._tiles_at:
            msg = "its index is cut off"
            raise ValueError(msg)
        self._plain_bytes = 0
        self.metadata = _read_metadata(self._plain(data[metadata_at : metadata_at + metadata_bytes]))
        self._ids, self._runs, self._sizes, self._offsets = array("Q"), array("Q"), array("Q"), array("Q")
        for entry in _read_directory(self._plain(data[root_at : root_at + root_bytes])):
            _, run, size, offset = entry
            if run:
                self._add(entry)
                continue
            for leaf_entry in _read_directory(self._plain(data[leaves_at + offset : leaves_at + offset + size])):
                if not leaf_entry[1]:
                    msg = "its leaf directories have leaf directories"
                    raise ValueError(msg)
                self._add(leaf_entry)

    def _plain(self, data: bytes) -> bytes:
        """A part of the index, without its gzip. All parts together are bounded, because a root directory can name a leaf many times."""
        plain = _plain(data, LARGEST_INDEX_BYTES - self._plain_bytes)
        self._plain_bytes += LEAF_ENTRIES + len(plain)
        return plain

    def _add(self, entry: _Entry) -> None:
        number, _, size, offset = entry
        if len(self._ids) >= MOST_TILES:
            msg = f"its directories have more than {MOST_TILES:,} entries"
            raise ValueError(msg)
        if self._ids and number < self._ids[-1] + self._runs[-1]:
            msg = "its directories are not in order"
            raise ValueError(msg)
        if offset + size > self._tiles_bytes:
            msg = "it names bytes behind its end"
            raise ValueError(msg)
        for column, value in zip((self._ids, self._runs, self._sizes, self._offsets), entry, strict=True):
            column.append(value)

    @property
    def size_bytes(self) -> int:
        """Of the whole archive."""
        return self._tiles_at + self._tiles_bytes

    @property
    def tile_count(self) -> int:
        """How many tiles the archive has."""
        return sum(self._runs)

    @property
    def memory_bytes(self) -> int:
        """About how much memory this takes."""
        return 32 * len(self._ids) + 4096

    @property
    def pyramid(self) -> Pyramid:
        """The pyramid by the metadata.

        Raises:
            ValueError: The metadata has no such numbers.
        """
        numbers: list[Any] = [self.metadata.get(name) for name in ("width", "height", "tileSize", "overlap")]
        if not all(type(number) is int for number in numbers):
            msg = "its metadata lacks the size of the sheet"
            raise ValueError(msg)
        return Pyramid(*numbers)

    def place(self, level: int, column: int, row: int) -> tuple[int, int] | None:
        """Where the bytes of a tile begin in the archive, and how many there are; None if the archive lacks the tile."""
        if not (0 <= level < 32 and 0 <= column < 1 << level and 0 <= row < 1 << level):
            return None
        number = tile_id(level, column, row)
        at = bisect_right(self._ids, number) - 1
        if at < 0 or number >= self._ids[at] + self._runs[at]:
            return None
        return self._tiles_at + self._offsets[at], self._sizes[at]


def index_bytes(head: bytes | bytearray) -> int:
    """How many bytes at the beginning of an archive are its index.

    Args:
        head: At least its first 127 bytes.

    Raises:
        ValueError: This is no archive of a sheet.
    """
    tiles_at: int = _read_header(head)[8]
    if tiles_at > LARGEST_INDEX_BYTES:
        msg = f"its index has {tiles_at:,} bytes, limit {LARGEST_INDEX_BYTES:,}"
        raise ValueError(msg)
    return tiles_at


def tile_id(zoom: int, x: int, y: int) -> int:
    """The number of a tile: those of all lower zooms come first, then those of its zoom along a Hilbert curve."""
    number = ((1 << 2 * zoom) - 1) // 3
    for bit in range(zoom - 1, -1, -1):
        side = 1 << bit
        right, low = x & side, y & side
        number += ((3 * right) ^ low) << bit
        if not low:
            if right:
                x, y = side - 1 - x, side - 1 - y
            x, y = y, x
    return number


def _place_of(number: int) -> tuple[int, int]:
    """The zoom of a tile's number, and its number within the zoom."""
    zoom = ((3 * number + 1).bit_length() - 1) // 2
    return zoom, number - ((1 << 2 * zoom) - 1) // 3


def _directories(entries: Sequence[_Entry], step: int) -> tuple[bytes, bytes]:
    """The root directory, and the leaf directories if the root alone does not fit into the first bytes of the archive."""
    root, leaves = _stored(_directory(entries)), b""
    while len(root) > FIRST_BYTES - _HEADER.size:
        roots: list[_Entry] = []
        body = bytearray()
        for start in range(0, len(entries), step):
            leaf = _stored(_directory(entries[start : start + step]))
            roots.append((entries[start][0], 0, len(leaf), len(body)))
            body += leaf
        root, leaves, step = _stored(_directory(roots)), bytes(body), 2 * step
    return root, leaves


def _stored(data: bytes) -> bytes:
    """The data as a gzip of stored blocks: https://www.rfc-editor.org/rfc/rfc1952, https://www.rfc-editor.org/rfc/rfc1951#section-3.2.4."""
    blocks = [data[start : start + _BLOCK_BYTES] for start in range(0, len(data), _BLOCK_BYTES)]
    body = b"".join(struct.pack("<?HH", block is blocks[-1], len(block), len(block) ^ _BLOCK_BYTES) + block for block in blocks)
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + body + struct.pack("<II", zlib.crc32(data), len(data))


def _plain(data: bytes, most_bytes: int) -> bytes:
    """The content of a gzip."""
    reader = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        content = reader.decompress(data, most_bytes) if most_bytes > 0 else b""
    except zlib.error as error:
        msg = "its index cannot be decompressed"
        raise ValueError(msg) from error
    if not reader.eof:
        msg = "its index is cut off, or too large"
        raise ValueError(msg)
    return content


def _directory(entries: Sequence[_Entry]) -> bytes:
    numbers, runs, sizes, offsets = zip(*entries, strict=True)
    values = [len(entries), numbers[0], *(after - before for before, after in pairwise(numbers)), *runs, *sizes]
    end = -1
    for size, offset in zip(sizes, offsets, strict=True):
        values.append(0 if offset == end else offset + 1)
        end = offset + size
    body = bytearray()
    for value in values:
        while value > 0x7F:
            body.append(value & 0x7F | 0x80)
            value >>= 7
        body.append(value)
    return bytes(body)


def _read_directory(data: bytes) -> Iterator[_Entry]:
    values = array("Q")
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if shift > 63 or len(values) > 4 * MOST_TILES:
            break
        if byte < 0x80:
            values.append(value)
            value = shift = 0
    count = values[0] if values else -1
    if shift or len(values) != 1 + 4 * count:
        msg = "a directory of it is damaged"
        raise ValueError(msg)
    steps, runs, sizes, places = (values[1 + part * count : 1 + (part + 1) * count] for part in range(4))
    number = end = 0
    for step, run, size, place in zip(steps, runs, sizes, places, strict=True):
        number += step
        offset = place - 1 if place else end
        end = offset + size
        if max(number, end, run) >= 1 << 63:
            msg = "a directory of it is damaged"
            raise ValueError(msg)
        yield number, run, size, offset


def _read_header(data: bytes | bytearray) -> tuple[Any, ...]:
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        msg = "it is no PMTiles archive"
        raise ValueError(msg)
    header = _HEADER.unpack_from(data)
    if header[1] != _VERSION or header[14:17] != (_GZIP, _NO_COMPRESSION, _JPEG):
        msg = "it is a PMTiles archive of another kind"
        raise ValueError(msg)
    return header


def _read_metadata(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        msg = "its metadata is not JSON"
        raise ValueError(msg) from error
    if not isinstance(document, dict):
        msg = "its metadata is not a JSON object"
        raise ValueError(msg)
    return document
