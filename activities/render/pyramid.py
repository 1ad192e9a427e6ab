"""Cuts pixels into a Deep Zoom tile set, one ZIP file, by libvips. Loaded in render children only.

1. dzsave gets no ``suffix``: with a suffix, libvips leaves its fast JPEG path and takes three times as long.
2. ``skip_blanks=0`` leaves pure white tiles out. Each size of tile that was left out is written once, as ``blanks/{width}x{height}.jpeg``.
3. Both dzsave and the writing of blank tiles have ``keep="none"``: else the JPEG of a blank tile differs from dzsave's.

https://www.libvips.org/API/current/method.Image.dzsave.html
"""

import errno
import os
import zipfile
from pathlib import Path

import pyvips

from activities.bucket.dzi import Pyramid, tile_name
from activities.bucket.records import UploadOptions
from activities.render.tilezip import THUMBNAIL, TILES, TILES_PREFIX, blank_name

LIBVIPS_VERSION = ".".join(str(pyvips.version(part)) for part in range(3))

THUMBNAIL_PX = 512
LAST_ENTRY = "tiles.dzi"
"""dzsave writes this entry after the tiles. The commit marker in the bucket is our own."""


def turn_off_cache() -> None:
    """Turns off libvips' cache of operations: no two pages share an operation, and the cache would keep the last page's buffer alive."""
    pyvips.cache_set_max(0)


def write_sheet(pixels: memoryview, width: int, height: int, options: UploadOptions, target: Path) -> None:
    """Writes ``tiles.zip`` and ``thumbnail.jpeg``, as ``tilezip`` reads them.

    Args:
        pixels: Rows of RGB without padding; not copied.
        width: Pixels.
        height: Pixels.
        options: Tile size, overlap and quality are used.
        target: An existing directory.

    Raises:
        OSError: The files cannot be written.
        MemoryError: libvips got no memory.
    """
    pyramid = Pyramid(width, height, options.tile_size, options.overlap)
    image = pyvips.Image.new_from_memory(pixels, width, height, 3, "uchar").copy(interpretation="srgb")
    try:
        image.dzsave(
            str(target / TILES),
            layout="dz",
            container="zip",
            compression=0,
            depth="onepixel",
            tile_size=options.tile_size,
            overlap=options.overlap,
            Q=options.quality,
            skip_blanks=0,
            background=[255],
            keep="none",
        )
        with zipfile.ZipFile(target / TILES, "a") as archive:
            names = set(archive.namelist())
            # libvips does not report that its last write has failed, and zipfile would begin a new archive behind the broken one.
            if LAST_ENTRY not in names:
                msg = f"{TILES} was not written to its end"
                raise OSError(msg)
            _add_blanks(archive, names, pyramid, options.quality)
            _thumbnail(archive, names, pyramid).jpegsave(str(target / THUMBNAIL), Q=options.quality, keep="none")
    except pyvips.Error as error:
        if "out of memory" in str(error):
            raise MemoryError(str(error)) from error
        if os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
        raise OSError(str(error)) from error


def blank_tile(width: int, height: int, quality: int) -> bytes:
    """The JPEG that dzsave writes for a white tile of this size."""
    return bytes(_white(width, height).jpegsave_buffer(Q=quality, keep="none"))


def _add_blanks(archive: zipfile.ZipFile, names: set[str], pyramid: Pyramid, quality: int) -> None:
    """Adds a white tile of each size of which the archive lacks a tile."""
    missing = {pyramid.tile_rectangle(*tile)[2:] for tile in pyramid.tiles() if TILES_PREFIX + tile_name(*tile) not in names}
    for width, height in sorted(missing):
        archive.writestr(blank_name(width, height), blank_tile(width, height, quality))


def _thumbnail(archive: zipfile.ZipFile, names: set[str], pyramid: Pyramid) -> pyvips.Image:
    """The page at 512 px, made from a level of at least twice this size: reading all pixels again would add 5 % to a sheet's time."""
    level = next((level for level in range(pyramid.max_level) if max(pyramid.level_size(level)) >= 2 * THUMBNAIL_PX), pyramid.max_level)
    columns, rows = pyramid.grid(level)
    tiles = []
    for row in range(rows):
        for column in range(columns):
            _, _, width, height = pyramid.tile_rectangle(level, column, row)
            name = TILES_PREFIX + tile_name(level, column, row)
            tile = pyvips.Image.new_from_buffer(archive.read(name), "") if name in names else _white(width, height)
            left, top = (pyramid.overlap if index else 0 for index in (column, row))
            tiles.append(tile.crop(left, top, min(pyramid.tile_size, width - left), min(pyramid.tile_size, height - top)))
    page = pyvips.Image.arrayjoin(tiles, across=columns, hspacing=pyramid.tile_size, vspacing=pyramid.tile_size)
    return page.crop(0, 0, *pyramid.level_size(level)).thumbnail_image(THUMBNAIL_PX, height=THUMBNAIL_PX, size="down")


def _white(width: int, height: int) -> pyvips.Image:
    return pyvips.Image.new_from_memory(b"\xff" * (3 * width * height), width, height, 3, "uchar").copy(interpretation="srgb")
