"""Packs the tiles of a sheet into one PMTiles archive, out of the file that a render child wrote. Loads no native library."""

import hashlib
from collections.abc import Iterator, Sequence

from activities.bucket.dzi import Pyramid
from activities.bucket.pmtiles import plan_archive
from activities.bucket.records import TileLine
from activities.render.tilefile import TileFile

CHUNK_BYTES = 1 << 20


def tile_lines(tiles: TileFile, pyramid: Pyramid) -> list[TileLine]:
    """Name, size and MD5 of each tile, in the order of ``Pyramid.tiles``. A tile that stands for several is read once.

    Raises:
        TilesMissing: A tile was lost or is no JPEG of its size, or the file is cut off.
    """
    md5s: dict[tuple[int, int], str] = {}
    lines = []
    for tile in pyramid.tiles():
        name, place = tiles.place(*tile)
        if place not in md5s:
            md5s[place] = hashlib.md5(tiles.tile(*tile)[1], usedforsecurity=False).hexdigest()
        lines.append((name, place[1], md5s[place]))
    return lines


class PackedSheet:
    """The archive of a sheet. Its bytes are read from the tile file as they are asked for.

    Args:
        tiles: The tile file, open as long as this is used.
        pyramid: The sheet's tiles.
        lines: Name, size and MD5 of each tile, in the order of ``Pyramid.tiles``.
        metadata: JSON.

    Raises:
        TilesMissing: A tile was lost.
    """

    def __init__(self, tiles: TileFile, pyramid: Pyramid, lines: Sequence[TileLine], metadata: bytes) -> None:
        self._tiles = tiles
        in_order = list(zip(pyramid.tiles(), lines, strict=True))
        self._archive = plan_archive(((tile, md5, size) for tile, (_, size, md5) in in_order), metadata)
        self._tile_of = {md5: tile for tile, (_, _, md5) in in_order}

    @property
    def index(self) -> bytes:
        """The beginning of the archive: everything but the tiles."""
        return self._archive.index

    @property
    def size_bytes(self) -> int:
        """Of the archive."""
        return self._archive.size_bytes

    def chunks(self) -> Iterator[bytes]:
        """The archive from its beginning, in chunks of about a megabyte.

        Raises:
            TilesMissing: The tile file was cut off or changed.
        """
        chunk = bytearray(self.index)
        for md5 in self._archive.contents:
            if len(chunk) >= CHUNK_BYTES:
                yield bytes(chunk)
                chunk.clear()
            chunk += self._tiles.tile(*self._tile_of[md5])[1]
        yield bytes(chunk)
