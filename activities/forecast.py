"""What an upload will take, said before the work from page sizes alone, and what it took in the end. Pure.

Tiles, and the objects that hold them, follow from the sizes. Bytes and seconds are estimates; each constant below says what it rests on.
Dollars are those of a bucket's operations: storing the objects, reading them later and a provider's free tier are not in them.
A bucket that is a directory costs nothing; the dollars are what R2 would ask.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from activities.dzi import Pyramid
from activities.interface import Page
from activities.records import Forecast, Receipt, SheetState, SheetStatus, Snapshot, UploadOptions

SHEET_OBJECTS = 3
"""``thumbnail.jpeg``, ``sheet.json`` and the ``.dzi``."""
DOCUMENT_OBJECTS = 2
"""``upload.json`` and ``manifest.json``. A key of an ``Idempotency-Key`` would be one more."""
MULTIPART_CALLS = 2
"""``source.pdf`` is begun and completed besides its parts."""
LISTS = 1
"""Which sheets were begun; a reconcile lists more, and is not forecast."""
DOCUMENT_READS = 10
"""``upload.json`` and ``manifest.json`` by the API and the activities, ``source.pdf`` by one host."""
SHEET_READS = 1
"""``upload.json``, before the sheet is drawn."""

TILE_BYTES = 620
"""What the JPEG of a tile takes for its tables, whatever it shows."""
LOW_BYTES, HIGH_BYTES = 0.03, 0.12
"""Bytes that the tiles take besides, for each pixel of the sheet, at 300 dpi and quality 85."""
QUALITY_FACTORS = ((1, 0.4), (50, 0.7), (85, 1.0), (89, 1.1), (90, 1.4), (95, 1.7), (100, 2.4))
"""Quality to what it makes of these bytes, straight lines between. From 90 on libvips keeps colours at full resolution."""

SECONDS_PER_MEGAPIXEL = 0.016
"""Of one render slot."""

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
        tiles = sum(_pyramid(page, options).tile_count for page in usable)
        puts = tiles + SHEET_OBJECTS * len(usable) + DOCUMENT_OBJECTS
        class_a = puts + source_parts + MULTIPART_CALLS + LISTS
        class_b = SHEET_READS * len(usable) + DOCUMENT_READS
        # Lines grow with the resolution, the paper around them with its square.
        content = quality_factor(options.quality) * sum(_pixels(page) * math.sqrt(300 / page.dpi) for page in usable)
        return Forecast(
            tiles=tiles,
            puts=puts,
            bytes_low=round(TILE_BYTES * tiles + LOW_BYTES * content),
            bytes_high=round(TILE_BYTES * tiles + HIGH_BYTES * content),
            seconds=self._seconds([_pixels(page) for page in usable], options.window),
            class_a=class_a,
            class_b=class_b,
            dollars=dollars(class_a, class_b, self.price_class_a, self.price_class_b),
            price_class_a=self.price_class_a,
            price_class_b=self.price_class_b,
        )

    def _seconds(self, pixels: Sequence[int], window: int) -> float:
        """The slots share the work; no page is shared."""
        slots = min(self.render_slots, window)
        megapixels = max(sum(pixels) / slots, max(pixels, default=0)) / 1e6
        return round(self.seconds_per_megapixel * megapixels, 1)


def receipt(head: Snapshot, sheets: Iterable[SheetState]) -> Receipt | None:
    """What an upload took; None when it was refused before its pages were counted, or had no forecast.

    Tiles and bytes are those of the sheets that are ready, also of those that an earlier run has made. PUTs are those of every sheet as often
    as it was committed, and of the document; what an attempt had written before it failed is not known and not in them. The other
    operations are as forecast. Seconds go from the count of the pages to the last end: waiting and, of an upload that was opened again,
    the time between are in them.

    Args:
        head: The progress at its end; its sheets are not looked at.
        sheets: All of them.
    """
    expected = head.forecast
    if expected is None or head.started_at is None or head.completed_at is None:
        return None
    ready = [sheet for sheet in sheets if sheet.status is SheetStatus.READY]
    puts = head.sheet_puts + DOCUMENT_OBJECTS
    class_a = puts + expected.class_a - expected.puts
    took = datetime.fromisoformat(head.completed_at) - datetime.fromisoformat(head.started_at)
    return Receipt(
        tiles=sum(sheet.tiles or 0 for sheet in ready),
        puts=puts,
        bytes=sum(sheet.bytes or 0 for sheet in ready),
        seconds=round(took.total_seconds(), 1),
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


def _pyramid(page: Page, options: UploadOptions) -> Pyramid:
    return Pyramid(page.width, page.height, options.tile_size, options.overlap)


def _pixels(page: Page) -> int:
    return page.width * page.height
