"""Cuts drawn pixels into tiles, by our own C code in ``cutter.c``. Loaded in render children only."""

import ctypes
import errno
import os
from pathlib import Path
from typing import Self

from activities.bucket.dzi import BYTES_PER_PIXEL, Pyramid
from activities.bucket.records import UploadOptions
from activities.render.compile import library_path

MAX_TILE_SIZE = 2048
CHROMA = "4:4:4"

# fmt: off
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61,
    12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77,
    24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)
"""The quantizers of luminance at quality 50, row by row: https://www.w3.org/Graphics/JPEG/itu-t81.pdf, K.1."""
_CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99,
    18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99,
    *(32 * [99]),
)
"""The same of chrominance."""
# fmt: on


class _Page(ctypes.Structure):
    """``struct page`` of ``cutter.c``."""

    _fields_ = (
        ("pixels", ctypes.c_void_p),
        ("stride", ctypes.c_uint64),
        ("width", ctypes.c_uint32),
        ("height", ctypes.c_uint32),
        ("blue_first", ctypes.c_uint32),
        ("tile", ctypes.c_uint32),
        ("overlap", ctypes.c_uint32),
        ("preview_level", ctypes.c_uint32),
        ("preview", ctypes.c_void_p),
        ("quantizers", ctypes.c_char_p),
        ("limit", ctypes.c_uint64),
        ("file", ctypes.c_int32),
    )


class Cutter:
    """The compiled cutter.

    Args:
        library: The shared library.

    Raises:
        OSError: The library cannot be loaded.
    """

    def __init__(self, library: Path) -> None:
        code = ctypes.CDLL(str(library))
        self.version = int(code.sitelink_cutter_version())
        self._cut = code.sitelink_cut
        self._cut.argtypes = (ctypes.POINTER(_Page),)

    @classmethod
    def find(cls) -> Self | None:
        """Loads the cutter of this machine; None where it is not compiled, or is compiled for another machine."""
        path = library_path()
        try:
            return cls(path) if path.exists() else None
        except OSError:  # it was compiled for another machine
            return None

    @staticmethod
    def suits(options: UploadOptions) -> bool:
        """Whether the cutter cuts such tiles."""
        return options.tile_size % 2 == 0 and options.tile_size <= MAX_TILE_SIZE and options.overlap <= options.tile_size // 2

    def cut(
        self,
        pixels: memoryview,
        width: int,
        height: int,
        *,
        stride: int | None = None,
        blue_first: bool,
        tile_size: int,
        overlap: int,
        quality: int,
        file: int,
        preview_level: int,
        limit_bytes: int | None = None,
    ) -> bytes:
        """Writes the tiles of a page as a flat file, as ``tilefile`` reads it.

        Args:
            pixels: Writable rows of three bytes a pixel; not changed, not copied.
            width: Pixels.
            height: Pixels.
            stride: Bytes from row to row; default: ``3 * width``.
            blue_first: Whether a pixel is B, G, R instead of R, G, B.
            tile_size: Pixels, even.
            overlap: Pixels, at most half a tile.
            quality: JPEG quality, 1 to 100, with libjpeg's meaning.
            file: Descriptor of an empty file, open for reading and writing.
            preview_level: The level whose pixels are returned.
            limit_bytes: The most that is written; default: ``Pyramid.most_bytes``.

        Returns:
            The pixels of ``preview_level``, rows of R, G, B without padding.

        Raises:
            ValueError: These tiles cannot be cut.
            MemoryError: There is not enough memory.
            OSError: The file cannot be written, or would have more than ``limit_bytes``.
        """
        stride = BYTES_PER_PIXEL * width if stride is None else stride
        pyramid = Pyramid(width, height, tile_size, overlap)
        limit_bytes = pyramid.most_bytes if limit_bytes is None else limit_bytes
        if not 0 <= preview_level <= pyramid.max_level or len(pixels) < (height - 1) * stride + BYTES_PER_PIXEL * width:
            msg = f"no level {preview_level}, or fewer than {height} rows of {stride} bytes"
            raise ValueError(msg)
        if tile_size > MAX_TILE_SIZE or not 1 <= quality <= 100 or limit_bytes < 0:
            msg = f"no tiles of {tile_size:,} px, quality {quality}, at most {limit_bytes:,} bytes"
            raise ValueError(msg)
        preview_width, preview_height = pyramid.level_size(preview_level)
        preview = bytearray(BYTES_PER_PIXEL * preview_width * preview_height)
        page = _Page(
            pixels=ctypes.addressof(ctypes.c_ubyte.from_buffer(pixels)),
            stride=stride,
            width=width,
            height=height,
            blue_first=blue_first,
            tile=tile_size,
            overlap=overlap,
            preview_level=preview_level,
            preview=ctypes.addressof(ctypes.c_ubyte.from_buffer(preview)),
            quantizers=quantizers(quality),
            limit=limit_bytes,
            file=file,
        )
        error = -self._cut(ctypes.byref(page))
        if error == errno.EINVAL:
            msg = f"{width:,} x {height:,} px cannot be cut into tiles of {tile_size:,} px, overlap {overlap:,}"
            raise ValueError(msg)
        if error == errno.ENOMEM:
            raise MemoryError(os.strerror(error))
        if error:
            raise OSError(error, os.strerror(error))
        return bytes(preview)


def quantizers(quality: int) -> bytes:
    """The quantizers of luminance and chrominance, 64 bytes each, row by row: libjpeg's for a quality of 1 to 100."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return bytes(min(255, max(1, (value * scale + 50) // 100)) for value in _LUMINANCE + _CHROMINANCE)
