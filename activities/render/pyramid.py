"""Cuts pixels into a Deep Zoom tile set, one flat file: by the cutter, or by libvips. Loaded in render children only.

libvips is the fallback, and the judge of the cutter in the tests:

1. dzsave gets no ``suffix``: with a suffix, libvips leaves its fast JPEG path and takes three times as long.
2. ``skip_blanks=0`` leaves pure white tiles out. A white tile of each size that was left out is made with the same ``keep="none"``.

https://www.libvips.org/API/current/method.Image.dzsave.html
"""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import pyvips

from activities.bucket.dzi import THUMBNAIL_PX, Pyramid, tile_name
from activities.bucket.records import UploadOptions
from activities.render.cutter import CHROMA, Cutter
from activities.render.tilefile import write_tile_file

LIBVIPS_VERSION = ".".join(str(pyvips.version(part)) for part in range(3))

LAST_ENTRY = "tiles.dzi"
"""dzsave writes this entry after the tiles. The commit marker in the bucket is our own."""
FULL_CHROMA_QUALITY = 90
"""From this quality on, libvips halves no chroma: https://www.libvips.org/API/current/method.Image.jpegsave.html"""
_ARCHIVED = "tiles_files/"


@dataclass(frozen=True)
class Encoding:
    """How tiles were made.

    Args:
        engine: The name of the cutter, ``sitelink-cutter`` or ``libvips``, and its version.
        chroma: The chroma subsampling of tiles with colours, ``4:4:4`` or ``4:2:0``.
    """

    engine: dict[str, str]
    chroma: str


def turn_off_cache() -> None:
    """Turns off libvips' cache of operations: no two pages share an operation, and the cache would keep the last page's buffer alive."""
    pyvips.cache_set_max(0)


def write_sheet(
    pixels: memoryview, width: int, height: int, options: UploadOptions, tiles: int, thumbnail: int, cutter: Cutter | None = None
) -> Encoding:
    """Writes ``tiles.flat`` and ``thumbnail.jpeg``, as ``tilefile`` reads them.

    Args:
        pixels: Rows without padding, of B, G, R for the cutter, of R, G, B for libvips; not copied.
        width: Pixels.
        height: Pixels.
        options: Tile size, overlap and quality are used.
        tiles: Descriptor of the first file, empty, open for reading and writing.
        thumbnail: Descriptor of the second file, likewise.
        cutter: Cuts the tiles; None: libvips does.

    Raises:
        OSError: The files cannot be written.
        MemoryError: There is not enough memory.
    """
    pyramid = Pyramid(width, height, options.tile_size, options.overlap)
    with _named_errors(), open(tiles, "w+b", buffering=0 if cutter else -1, closefd=False) as file:
        if cutter is not None:
            # The thumbnail comes from a level of at least twice its size: all pixels again would add 5 % to a sheet's time.
            level = next(
                (level for level in range(pyramid.max_level) if max(pyramid.level_size(level)) >= 2 * THUMBNAIL_PX), pyramid.max_level
            )
            preview = cutter.cut(
                pixels,
                width,
                height,
                blue_first=True,
                tile_size=options.tile_size,
                overlap=options.overlap,
                quality=options.quality,
                file=file.fileno(),
                preview_level=level,
            )
            image = _image(preview, *pyramid.level_size(level))
            encoding = Encoding({"sitelink-cutter": str(cutter.version)}, CHROMA)
        else:
            image = _image(pixels, width, height)
            with zipfile.ZipFile(io.BytesIO(_archive(image, options))) as archive:
                _repack(archive, pyramid, options.quality, file)
            encoding = Encoding({"libvips": LIBVIPS_VERSION}, "4:4:4" if options.quality >= FULL_CHROMA_QUALITY else "4:2:0")
        small = image.thumbnail_image(THUMBNAIL_PX, height=THUMBNAIL_PX, size="down")
        with open(thumbnail, "wb", closefd=False) as file:
            file.write(small.jpegsave_buffer(Q=options.quality, keep="none"))
        return encoding


def blank_tile(width: int, height: int, quality: int) -> bytes:
    """The JPEG that dzsave writes for a white tile of this size."""
    return bytes(_image(b"\xff" * (3 * width * height), width, height).jpegsave_buffer(Q=quality, keep="none"))


def _image(pixels: memoryview | bytes, width: int, height: int) -> pyvips.Image:
    return pyvips.Image.new_from_memory(pixels, width, height, 3, "uchar").copy(interpretation="srgb")


def _archive(image: pyvips.Image, options: UploadOptions) -> bytes:
    """The ZIP of dzsave: ``tiles_files/{level}/{col}_{row}.jpeg``, uncompressed."""
    return bytes(
        image.dzsave_buffer(
            imagename="tiles",
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
    )


def _repack(archive: zipfile.ZipFile, pyramid: Pyramid, quality: int, file: IO[bytes]) -> None:
    """Writes the tiles of dzsave's ZIP, and the white tiles that it lacks, as a flat file."""
    names = set(archive.namelist())
    # libvips does not report that its last write has failed.
    if LAST_ENTRY not in names:
        msg = "dzsave did not come to its end"
        raise OSError(msg)
    there = [tile for tile in pyramid.tiles() if _ARCHIVED + tile_name(*tile) in names]
    sizes = {pyramid.tile_rectangle(*tile)[2:] for tile in set(pyramid.tiles()).difference(there)}
    write_tile_file(
        file,
        ((tile, archive.read(_ARCHIVED + tile_name(*tile))) for tile in there),
        ((size, blank_tile(*size, quality)) for size in sorted(sizes)),
    )


@contextmanager
def _named_errors() -> Iterator[None]:
    """Raises libvips' errors by their names."""
    try:
        yield
    except pyvips.Error as error:
        if "out of memory" in str(error):
            raise MemoryError(str(error)) from error
        raise OSError(str(error)) from error
