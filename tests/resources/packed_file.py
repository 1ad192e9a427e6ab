"""A packed sheet as PyPI's ``pmtiles`` writes it: the official library, with a compressed index."""

import io
from collections.abc import Callable
from typing import Any

from pmtiles.tile import Compression, TileType, zxy_to_tileid
from pmtiles.writer import Writer

from activities.bucket.dzi import Pyramid

NOWHERE = dict.fromkeys(
    ("min_lon_e7", "min_lat_e7", "max_lon_e7", "max_lat_e7", "center_zoom", "center_lon_e7", "center_lat_e7"),
    0,
)


def packed_file(pyramid: Pyramid, tile: Callable[[int, int, int], bytes], **metadata: Any) -> bytes:
    """All tiles of a pyramid in one PMTiles file.

    Args:
        pyramid: The sheet.
        tile: The bytes of the tile at a level, column and row.
        metadata: Is added to the sheet's size, or stands in its place; None leaves a name out.
    """
    out = io.BytesIO()
    writer: Any = Writer(out)
    for number, place in sorted((zxy_to_tileid(*place), place) for place in pyramid.tiles()):
        writer.write_tile(number, tile(*place))
    size = {"width": pyramid.width, "height": pyramid.height, "tileSize": pyramid.tile_size, "overlap": pyramid.overlap}
    header = {"tile_type": TileType.JPEG, "tile_compression": Compression.NONE, **NOWHERE}
    document = {"schema": 1, "format": "jpeg", **size, **metadata}
    writer.finalize(header, {name: value for name, value in document.items() if value is not None})
    return out.getvalue()
