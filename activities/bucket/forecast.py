"""What an upload will take, said before the work from page sizes alone, and what it took in the end. Pure.

Tiles, and the objects that hold them, follow from the sizes. Bytes and seconds are estimates; each constant below says what it rests on.
Dollars are those of a bucket's operations: storing the objects, reading them later and a provider's free tier are not in them.
A bucket that is a directory costs nothing, and is asked less; the dollars are what R2 would ask.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from activities.bucket.dzi import Pyramid
from activities.bucket.records import Forecast, Receipt, SheetState, SheetStatus, Snapshot, UploadOptions
from activities.interface import Page

# Operations as an S3 server counts them: tests/bench/bench_bucket.py reads its log, and with 1 and 6 sheets there were exactly as many.
SHEET_OBJECTS = 3
"""``thumbnail.jpeg``, ``sheet.json`` and the ``.dzi``."""
DOCUMENT_OBJECTS = 2
"""``upload.json`` and ``manifest.json``. The key of an ``Idempotency-Key`` would be one more."""
MULTIPART_CALLS = 2
"""A ``source.pdf`` of more than one part is begun and completed besides."""
DOCUMENT_LISTS = 2
"""Which sheets were begun, asked by the API and by the run."""
LIST_PAGE = 1000
"""Objects in one answer to a LIST. A sheet is listed before its tiles are written, and after."""
DOCUMENT_READS = 13
"""Of the records and ``source.pdf`` by the API and the activities of one host; of ``manifest.json`` after it was written."""
SHEET_READS = 3
"""``upload.json`` before the sheet is drawn and before it is committed, the ``.dzi`` after it was written."""

TILE_BYTES = 612
"""What every tile takes for its JPEG tables, whatever it shows: the size of a tile of one white pixel."""
LOW_BYTES, HIGH_BYTES = 0.035, 0.125
"""Bytes that the tiles of all levels take besides, for each pixel of the full-size level, at 300 dpi and quality 85.

Measured over ten public PDFs of construction plans, maps and schematics: of 126 pages 86 % lie between, of the 94 that are plans 95 %,
of the ten documents as a whole all. The extremes are 0.025 (a nearly empty detail sheet) and 0.20 (a schematic on A4).
"""
DPI_EXPONENT = 0.4
"""These bytes go with ``(300 / dpi) ** 0.4``: of 27 pages the median is 1.59 times as much at 100 dpi, 1.35 at 150, 0.77 at 600."""
QUALITY_FACTORS = ((1, 0.4), (10, 0.47), (50, 0.71), (75, 0.86), (85, 1.0), (89, 1.09), (90, 1.42), (95, 1.69), (100, 2.48))
"""Quality to what it makes of these bytes, straight lines between; medians of 27 pages, of 3 at 1 and 89. A single page may be half as far
again from 1. From 90 on libvips keeps colours at full resolution."""

SECONDS_PER_MEGAPIXEL = 0.018
"""What a page takes one render slot for a million pixels, drawing, tiling and its tiles' way into the bucket together.

Measured with the two below by whole jobs of the same ten documents on a machine of two cores with nothing else to do, into a directory:
nine took 0.75 to 1.1 times what these make of them, a document of one small sheet 0.6. Another machine, a bucket that takes a
sheet's tiles more slowly than it is drawn, or other uploads before this one make it wrong: set it to what receipts say.
"""
SHEET_SECONDS = 0.08
"""What a page takes a slot besides, however small."""
START_SECONDS = 0.6
"""From the count of the pages to the first stroke, and from the last tile to the manifest."""

# https://developers.cloudflare.com/r2/pricing/ (Standard storage; a part of a multipart upload is class A, a DELETE is free)
PRICE_CLASS_A = 4.50
PRICE_CLASS_B = 0.36


@dataclass(frozen=True)
class Forecaster:
    """Makes forecasts for the host that it is on.

    Args:
        render_slots: Pages rendered at once.
        seconds_per_megapixel: What a page takes a slot, a million pixels.
        price_class_a: Dollars for a million operations that write or list.
        price_class_b: Dollars for a million operations that read.
    """

    render_slots: int = 1
    seconds_per_megapixel: float = SECONDS_PER_MEGAPIXEL
    price_class_a: float = PRICE_CLASS_A
    price_class_b: float = PRICE_CLASS_B

    def forecast(self, pages: Iterable[Page], options: UploadOptions, source_parts: int) -> Forecast:
        """What a document will take.

        Args:
            pages: As counted; those that cannot be used take nothing.
            options: The upload's.
            source_parts: Parts in which ``source.pdf`` was sent to the bucket.
        """
        usable = [page for page in pages if page.reason is None]
        tiles_of = [Pyramid(page.width, page.height, options.tile_size, options.overlap).tile_count for page in usable]
        tiles = sum(tiles_of)
        puts = tiles + SHEET_OBJECTS * len(usable) + DOCUMENT_OBJECTS
        source_calls = source_parts if source_parts == 1 else source_parts + MULTIPART_CALLS
        # At the second LIST the .dzi is not yet there.
        lists = DOCUMENT_LISTS + sum(1 + math.ceil((count + SHEET_OBJECTS - 1) / LIST_PAGE) for count in tiles_of)
        class_a = puts + source_calls + lists
        class_b = SHEET_READS * len(usable) + DOCUMENT_READS
        content = quality_factor(options.quality) * sum(_pixels(page) * (300 / page.dpi) ** DPI_EXPONENT for page in usable)
        return Forecast(
            tiles=tiles,
            puts=puts,
            bytes_low=round(TILE_BYTES * tiles + LOW_BYTES * content),
            bytes_high=round(TILE_BYTES * tiles + HIGH_BYTES * content),
            seconds=self._seconds(usable, options.window),
            class_a=class_a,
            class_b=class_b,
            dollars=dollars(class_a, class_b, self.price_class_a, self.price_class_b),
            price_class_a=self.price_class_a,
            price_class_b=self.price_class_b,
        )

    def _seconds(self, pages: Sequence[Page], window: int) -> float:
        """The slots share the work; no page is shared."""
        each = [SHEET_SECONDS + self.seconds_per_megapixel * _pixels(page) / 1e6 for page in pages]
        return round(START_SECONDS + max(sum(each) / min(self.render_slots, window), max(each, default=0)), 1)


def receipt(head: Snapshot, sheets: Iterable[SheetState]) -> Receipt | None:
    """What an upload took; None when it was refused before its pages were counted, or had no forecast.

    Tiles and bytes are those of the sheets that are ready, also of those that an earlier run has made. PUTs are those of every sheet, as
    often as it became ready, and of the document: what an attempt had written before it failed is not known and not in them, and of a
    sheet that was repaired all objects count, also those that were whole. The other operations are as forecast. Seconds are those in
    which it was processing, waiting for slots and a bucket that failed included.

    Args:
        head: The progress at its end; its sheets are not looked at.
        sheets: All of them.
    """
    expected = head.forecast
    if expected is None:
        return None
    ready = [sheet for sheet in sheets if sheet.status is SheetStatus.READY]
    puts = head.sheet_puts + DOCUMENT_OBJECTS
    class_a = puts + expected.class_a - expected.puts
    return Receipt(
        tiles=sum(sheet.tiles or 0 for sheet in ready),
        puts=puts,
        bytes=sum(sheet.bytes or 0 for sheet in ready),
        seconds=round(head.processing_seconds, 1),
        class_a=class_a,
        class_b=expected.class_b,
        dollars=dollars(class_a, expected.class_b, expected.price_class_a, expected.price_class_b),
    )


def dollars(class_a: int, class_b: int, price_class_a: float, price_class_b: float) -> float:
    """What so many operations cost, to a millionth of a dollar."""
    return round((class_a * price_class_a + class_b * price_class_b) / 1e6, 6)


def quality_factor(quality: int) -> float:
    """What a JPEG quality of 1 to 100 makes of the bytes at 85, roughly."""
    for (low, at_low), (high, at_high) in pairwise(QUALITY_FACTORS):
        if quality <= high:
            return at_low + (at_high - at_low) * (quality - low) / (high - low)
    return QUALITY_FACTORS[-1][1]


def _pixels(page: Page) -> int:
    return page.width * page.height
