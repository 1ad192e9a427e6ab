"""The forecast of an upload, made before the work from the sizes of the pages, and the receipt at its end. Pure.

The numbers of tiles and of objects follow from the sizes and the layout.
Bytes and seconds are estimates; each constant below says what it rests on.
The dollars are the price of the bucket's operations. They leave out storage, later reads and a provider's free tier.
For a bucket that is a directory, which costs nothing, the dollars are those of the same upload on R2.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from activities.bucket.dzi import Pyramid
from activities.bucket.records import Forecast, Layout, Receipt, SheetState, SheetStatus, Snapshot, UploadOptions
from activities.interface import Page

# Operations, counted in the log of an S3 server by tests/bench/bench_bucket.py. Uploads of 1 and of 6 sheets took exactly this many.
SHEET_OBJECTS = 3
"""``thumbnail.jpeg``, ``sheet.json`` and the commit marker."""
DOCUMENT_OBJECTS = 2
"""``upload.json`` and ``manifest.json``. The record of an ``Idempotency-Key``, which few uploads have, is not counted."""
MULTIPART_CALLS = 2
"""A multipart upload takes a call that begins it and a call that completes it."""
PART_BYTES, LARGEST_PUT_BYTES = 8 << 20, 32 << 20
"""A larger ``.pmtiles`` is sent in parts of this size: ``activities.bucket.storage``."""
DOCUMENT_LISTS = 2
"""The API and the run each list the sheets that were begun."""
LIST_PAGE = 1000
"""Objects in one answer to a LIST. A sheet is listed twice: before and after its tiles are written."""
DOCUMENT_READS = 13
"""The API and the activities of one host read the records and ``source.pdf``; ``manifest.json`` is read back after it was written."""
SHEET_READS = 3
"""``upload.json`` before the sheet is drawn and before it is committed, the ``.dzi`` after it was written."""

# The bytes were measured by tests/bench/bench_forecast.py, of tiles from the cutter. libvips' tiles, where they stand in, are 16 % larger.
TILE_BYTES = 160
"""The JPEG tables of every tile: the size of a tile of one white pixel."""
LOW_BYTES, HIGH_BYTES = 0.03, 0.135
"""Further bytes of the tiles of all levels, for each pixel of the full-size level, at 300 dpi and quality 85, low and high.

Measured over ten public PDFs of construction plans, maps and schematics. Between the two lie 81 % of all 126 pages, 87 % of the 94 pages
that are plans, and each of the ten documents as a whole. The extremes are 0.008 (a nearly empty detail sheet) and 0.26 (a schematic on A4).
"""
DPI_EXPONENT = 0.59
"""The bytes for each pixel grow with ``(300 / dpi) ** 0.59``. Medians of 25 pages: 1.91 times as many bytes at 100 dpi, 1.51 at 150; 0.66
at 600, of 11 pages."""
QUALITY_FACTORS = ((1, 0.23), (10, 0.35), (50, 0.64), (75, 0.83), (85, 1.0), (90, 1.15), (95, 1.44), (100, 2.12))
"""A quality, and the factor by which it changes the bytes for each pixel. Between two qualities the factor is interpolated. Medians of 25
pages. The factor of a single page may be half as far again from 1."""

SECONDS_PER_MEGAPIXEL = 0.008
"""Seconds that a render slot takes for a million pixels of a page. This includes drawing, tiling and uploading.

This and the next two constants were measured by whole jobs of the same ten documents, on an idle machine of two cores, into a directory.
Eight jobs took 0.7 to 1.3 times their forecast; a document of two pages full of images took 1.6 times, one small sheet half. The forecast
is wrong on another machine, where libvips cuts the tiles (twice as long), or while other uploads are being processed. An operator then
sets ``SITELINK_SECONDS_PER_MEGAPIXEL`` by the receipts.
"""
SHEET_SECONDS = 0.08
"""Further seconds that a render slot takes for each page, however small."""
START_SECONDS = 0.4
"""Seconds from the count of the pages to the first drawing, and from the last tile to the manifest."""

SECONDS_RANGE = (0.7, 1.6)
"""The low and the high estimate of the seconds, as shares of the likely ones: nine of the ten jobs above lie between them."""
UNMEASURED_PUTS_PER_S = 500
"""For the high estimate, while a host has not measured its S3 server: 25 requests in flight, each of 50 ms."""

# https://developers.cloudflare.com/r2/pricing/ (Standard storage; a part of a multipart upload is class A, a DELETE is free)
PRICE_CLASS_A = 4.50
PRICE_CLASS_B = 0.36


@dataclass(frozen=True)
class Forecaster:
    """Makes forecasts for one host.

    Args:
        render_slots: Pages rendered at once.
        seconds_per_megapixel: Seconds that a render slot takes for a million pixels.
        price_class_a: Dollars for a million operations that write or list.
        price_class_b: Dollars for a million operations that read.
    """

    render_slots: int = 1
    seconds_per_megapixel: float = SECONDS_PER_MEGAPIXEL
    price_class_a: float = PRICE_CLASS_A
    price_class_b: float = PRICE_CLASS_B

    def forecast(
        self, pages: Iterable[Page], options: UploadOptions, source_parts: int, *, is_s3: bool = False, puts_per_s: float | None = None
    ) -> Forecast:
        """Estimates what a document will take.

        Args:
            pages: The pages as counted. A page that cannot be used takes nothing.
            options: The upload's options.
            source_parts: Parts in which ``source.pdf`` was sent to the bucket.
            is_s3: Whether the bucket is on an S3 server, which may take the tiles more slowly than the pages are drawn.
            puts_per_s: The PUTs that the S3 server takes in a second, as the host has measured it; None before that.
        """
        usable = [page for page in pages if page.reason is None]
        tile_counts = [Pyramid(page.width, page.height, options.tile_size, options.overlap).tile_count for page in usable]
        tiles = sum(tile_counts)
        layout = options.layout
        puts = sum(sheet_objects(layout, count) for count in tile_counts) + DOCUMENT_OBJECTS
        source_calls = source_parts if source_parts == 1 else source_parts + MULTIPART_CALLS
        # The second LIST of a sheet finds all its objects except the commit marker, which is not written yet.
        lists = DOCUMENT_LISTS + sum(1 + math.ceil((sheet_objects(layout, count) - 1) / LIST_PAGE) for count in tile_counts)
        contents = [quality_factor(options.quality) * _pixels(page) * (300 / page.dpi) ** DPI_EXPONENT for page in usable]
        further_parts = sum(_further_calls((LOW_BYTES + HIGH_BYTES) / 2 * content) for content in contents) if layout.has_archive else 0
        class_a = puts + source_calls + lists + further_parts
        class_b = SHEET_READS * len(usable) + DOCUMENT_READS
        content = sum(contents)
        seconds = seconds_high = self._seconds(usable, options.window)
        if puts_per_s:
            seconds = seconds_high = max(seconds, START_SECONDS + puts / puts_per_s)
        elif is_s3:
            seconds_high = max(seconds, START_SECONDS + puts / UNMEASURED_PUTS_PER_S)
        low, high = SECONDS_RANGE
        return Forecast(
            tiles=tiles,
            puts=puts,
            bytes_low=round(TILE_BYTES * tiles + LOW_BYTES * content),
            bytes_high=round(TILE_BYTES * tiles + HIGH_BYTES * content),
            seconds=round(seconds, 1),
            seconds_low=round(low * seconds, 1),
            seconds_high=round(high * seconds_high, 1),
            class_a=class_a,
            class_b=class_b,
            dollars=dollars(class_a, class_b, self.price_class_a, self.price_class_b),
            price_class_a=self.price_class_a,
            price_class_b=self.price_class_b,
        )

    def _seconds(self, pages: Sequence[Page], window: int) -> float:
        """Seconds for all pages: the slots share the pages, but each page takes one slot."""
        page_seconds = [SHEET_SECONDS + self.seconds_per_megapixel * _pixels(page) / 1e6 for page in pages]
        return START_SECONDS + max(sum(page_seconds) / min(self.render_slots, window), max(page_seconds, default=0))


def sheet_objects(layout: Layout, tiles: int) -> int:
    """How many objects are written for a sheet.

    Args:
        layout: How the sheet lies in the bucket.
        tiles: How many tiles the sheet has.
    """
    return SHEET_OBJECTS + (tiles if layout.has_tiles else 0) + (layout is Layout.BOTH)


def _further_calls(archive_bytes: float) -> int:
    """How many calls beside one PUT a ``.pmtiles`` takes."""
    return 0 if archive_bytes <= LARGEST_PUT_BYTES else math.ceil(archive_bytes / PART_BYTES) + MULTIPART_CALLS - 1


def receipt(head: Snapshot, sheets: Iterable[SheetState]) -> Receipt | None:
    """Makes the receipt of an upload that has ended.

    1. Tiles and bytes are those of all ready sheets, whichever run made them.
    2. PUTs are those of the document, and of each sheet as often as it became ready. A failed attempt is not counted, because its PUTs are
       not known. A repaired sheet counts with all its objects, even if the repair wrote only some of them.
    3. The other operations are as forecast.
    4. Seconds are the time in the state ``processing``, which includes the waits for slots and for a bucket that failed.

    Args:
        head: The final progress, whose ``sheets`` are not used.
        sheets: All sheets.

    Returns:
        None when the progress has no forecast: the upload was refused before its pages were counted, or an earlier release counted them.
    """
    forecast = head.forecast
    if forecast is None:
        return None
    ready = [sheet for sheet in sheets if sheet.status is SheetStatus.READY]
    puts = head.sheet_puts + DOCUMENT_OBJECTS
    class_a = puts + forecast.class_a - forecast.puts
    return Receipt(
        tiles=sum(sheet.tiles or 0 for sheet in ready),
        puts=puts,
        bytes=sum(sheet.bytes or 0 for sheet in ready),
        seconds=round(head.processing_seconds, 1),
        class_a=class_a,
        class_b=forecast.class_b,
        dollars=dollars(class_a, forecast.class_b, forecast.price_class_a, forecast.price_class_b),
    )


def dollars(class_a: int, class_b: int, price_class_a: float, price_class_b: float) -> float:
    """The price of the operations, to a millionth of a dollar."""
    return round((class_a * price_class_a + class_b * price_class_b) / 1e6, 6)


def quality_factor(quality: int) -> float:
    """The factor by which a JPEG quality of 1 to 100 changes the bytes at quality 85."""
    for (low, low_factor), (high, high_factor) in pairwise(QUALITY_FACTORS):
        if quality <= high:
            return low_factor + (high_factor - low_factor) * (quality - low) / (high - low)
    return QUALITY_FACTORS[-1][1]


def _pixels(page: Page) -> int:
    return page.width * page.height
