"""The arithmetic of a Deep Zoom pyramid: levels, tiles, sizes. Pure.

Level ``max_level`` is the image itself. Each lower level is half as large, rounded up, down to level 0 of 1 x 1 px. A level is cut
into tiles of ``tile_size`` px, and each tile shows ``overlap`` px more of each neighbour.
https://learn.microsoft.com/en-us/previous-versions/windows/silverlight/dotnet-windows-silverlight/cc645077(v=vs.95)
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

MINIMUM_DPI = 30
"""Below this resolution a plan cannot be read: a page that fits its budget only below it is refused."""

BYTES_PER_PIXEL = 3

THUMBNAIL_PX = 512
"""Longest side of a thumbnail."""

LARGEST_SIDE_PX, MOST_TILES = 10_000_000, 1_000_000
"""No host may be set to make a larger sheet. A process that works on a sheet holds the list of its tiles in memory, so the record of a
larger sheet, whoever wrote it, is refused."""

_TILE_NAME = re.compile(r"(0|[1-9][0-9]{0,8})/(0|[1-9][0-9]{0,8})_(0|[1-9][0-9]{0,8})\.jpeg")


@dataclass(frozen=True)
class Pyramid:
    """The tiles of an image. The four numbers below determine all tiles.

    Args:
        width: Pixels, at least 1.
        height: Pixels, at least 1.
        tile_size: Pixels from the beginning of one tile to the beginning of the next, without the overlap.
        overlap: Pixels that a tile shows of each neighbour.

    Raises:
        ValueError: A number is out of its range.
    """

    width: int
    height: int
    tile_size: int = 256
    overlap: int = 1

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1 or self.tile_size < 1 or not 0 <= self.overlap < self.tile_size:
            msg = f"no pyramid of {self.width} x {self.height} px with tiles of {self.tile_size} px, overlap {self.overlap}"
            raise ValueError(msg)
        if max(self.width, self.height) > LARGEST_SIDE_PX:
            msg = f"no pyramid of {self.width} x {self.height} px, at most {LARGEST_SIDE_PX:,} px a side"
            raise ValueError(msg)
        if self.tile_count > MOST_TILES:
            msg = f"no pyramid of {self.width} x {self.height} px: {self.tile_count:,} tiles, limit {MOST_TILES:,}"
            raise ValueError(msg)

    @property
    def max_level(self) -> int:
        """The number of the full-size level; there are ``max_level + 1`` levels."""
        return _max_level(self.width, self.height)

    def level_size(self, level: int) -> tuple[int, int]:
        """Width and height of a level in pixels."""
        return _halved(self.width, self.max_level - level), _halved(self.height, self.max_level - level)

    def grid(self, level: int) -> tuple[int, int]:
        """Columns and rows of a level."""
        width, height = self.level_size(level)
        return -(-width // self.tile_size), -(-height // self.tile_size)

    def tile_rectangle(self, level: int, column: int, row: int) -> tuple[int, int, int, int]:
        """Left, top, width and height of a tile within its level, overlap included, in pixels."""
        left, width = self._span(self.level_size(level)[0], column)
        top, height = self._span(self.level_size(level)[1], row)
        return left, top, width, height

    def tile_sizes(self, level: int) -> tuple[list[int], list[int]]:
        """The width of the tiles of each column of a level, and the height of those of each row, overlap included, in pixels."""
        (width, height), (columns, rows) = self.level_size(level), self.grid(level)
        return [self._span(width, column)[1] for column in range(columns)], [self._span(height, row)[1] for row in range(rows)]

    def _span(self, length: int, index: int) -> tuple[int, int]:
        start = max(0, index * self.tile_size - self.overlap)
        end = min(length, (index + 1) * self.tile_size + self.overlap)
        return start, end - start

    @property
    def tile_count(self) -> int:
        """How many tiles all levels have together."""
        return tile_count(self.width, self.height, self.tile_size)

    @property
    def most_bytes(self) -> int:
        """More bytes than the JPEGs of all tiles take together, even those of noise at quality 100, in a picture of any shape."""
        return 6 * BYTES_PER_PIXEL * self.width * self.height + 2048 * self.tile_count + (1 << 20)

    def tiles(self) -> Iterator[tuple[int, int, int]]:
        """Level, column and row of every tile: level by level, row by row."""
        for level in range(self.max_level + 1):
            columns, rows = self.grid(level)
            for row in range(rows):
                for column in range(columns):
                    yield level, column, row

    def has_tile(self, level: int, column: int, row: int) -> bool:
        """Whether the pyramid has this tile."""
        if not 0 <= level <= self.max_level:
            return False
        columns, rows = self.grid(level)
        return 0 <= column < columns and 0 <= row < rows

    def descriptor(self) -> str:
        """The text of the ``.dzi``."""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="jpeg"'
            f' Overlap="{self.overlap}" TileSize="{self.tile_size}">\n'
            f'  <Size Width="{self.width}" Height="{self.height}"/>\n'
            "</Image>\n"
        )


def tile_count(width: int, height: int, tile_size: int) -> int:
    """How many tiles an image has on all levels together. Computed level by level, so that an image of any size is counted at once."""
    return sum(
        -(-_halved(width, times) // tile_size) * -(-_halved(height, times) // tile_size) for times in range(_max_level(width, height) + 1)
    )


def _max_level(width: int, height: int) -> int:
    return (max(width, height) - 1).bit_length()


def _halved(length: int, times: int) -> int:
    """A length after so many halvings, rounded up."""
    return -(-length >> times)


def tile_name(level: int, column: int, row: int) -> str:
    """The name of a tile below ``sheet-N_files/``."""
    return f"{level}/{column}_{row}.jpeg"


def parse_tile_name(name: str) -> tuple[int, int, int] | None:
    """Level, column and row of a name that ``tile_name`` made; None for any other name."""
    match = _TILE_NAME.fullmatch(name)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


@dataclass(frozen=True)
class SheetSize:
    """The size of a page's sheet.

    Args:
        width: Pixels.
        height: Pixels.
        dpi: Resolution.
        scaled: Whether the resolution is lower than the upload's option.
    """

    width: int
    height: int
    dpi: int
    scaled: bool


def sheet_size(width_pt: float, height_pt: float, user_unit: float, dpi: int, budget_bytes: int) -> SheetSize | None:
    """The size of a page in pixels: ``max(1, round(points x UserUnit x dpi / 72))``, at a lower dpi when it is over the budget.

    Args:
        width_pt: Width as PDFium reports it (CropBox and rotation applied), more than 0.
        height_pt: Height, likewise.
        user_unit: The page's UserUnit, 1 when the page has none.
        dpi: The upload's option.
        budget_bytes: Most bytes that the page's pixels may take, at 3 bytes a pixel.

    Returns:
        The size, or None when the page fits its budget only below ``MINIMUM_DPI``.
    """

    def size_at(resolution: int) -> tuple[int, int]:
        scale = user_unit * resolution / 72
        return max(1, round(width_pt * scale)), max(1, round(height_pt * scale))

    def fits(resolution: int) -> bool:
        width, height = size_at(resolution)
        return width * height * BYTES_PER_PIXEL <= budget_bytes

    if fits(dpi):
        return SheetSize(*size_at(dpi), dpi=dpi, scaled=False)
    low, high = MINIMUM_DPI, dpi
    if low >= high or not fits(low):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return SheetSize(*size_at(low), dpi=low, scaled=True)
