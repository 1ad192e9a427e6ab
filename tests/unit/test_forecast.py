"""The forecast and the receipt: exact where they can be, and in the right order where they cannot."""

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from activities.bucket import storage
from activities.bucket.dzi import Pyramid
from activities.bucket.forecast import (
    DOCUMENT_OBJECTS,
    LARGEST_PUT_BYTES,
    PART_BYTES,
    SHEET_OBJECTS,
    START_SECONDS,
    Forecaster,
    quality_factor,
    receipt,
)
from activities.bucket.records import (
    Forecast,
    Layout,
    Receipt,
    SheetState,
    SheetStatus,
    Snapshot,
    UploadOptions,
    UploadStatus,
    from_json,
    to_json,
)
from activities.interface import Page
from tests.unit.test_records import FORECASTS, OPTIONS, RECEIPTS

ARCH_E1 = Page(1, "A-101", 12_600, 9_000, 300)
PAGES = st.lists(
    st.builds(Page, number=st.integers(1, 99), width=st.integers(1, 20_000), height=st.integers(1, 20_000), dpi=st.integers(30, 1200)),
    max_size=4,
)
FORECASTERS = st.builds(
    Forecaster,
    render_slots=st.integers(1, 64),
    seconds_per_megapixel=st.floats(0, 10),
    price_class_a=st.floats(0, 100),
    price_class_b=st.floats(0, 100),
)


@given(FORECASTERS, PAGES, OPTIONS, st.integers(1, 10_000))
def test_forecast_is_exact_in_tiles_and_ordered_in_bytes(
    forecaster: Forecaster, pages: list[Page], options: UploadOptions, parts: int
) -> None:
    """The tiles are those of the pyramids, the low estimate is below the high one, and no number is below its minimum."""
    forecast = forecaster.forecast(pages, options, parts)
    pyramids = [Pyramid(page.width, page.height, options.tile_size, options.overlap) for page in pages]
    assert forecast.tiles == sum(pyramid.tile_count for pyramid in pyramids)
    exploded = forecast.tiles if options.layout.has_tiles else 0
    assert forecast.puts == exploded + (SHEET_OBJECTS + (options.layout is Layout.BOTH)) * len(pages) + DOCUMENT_OBJECTS
    assert forecast.class_a > forecast.puts + parts
    assert 0 <= forecast.bytes_low <= forecast.bytes_high
    assert 0 <= (forecast.seconds_low or 0) <= forecast.seconds <= (forecast.seconds_high or 0)
    assert forecast.dollars >= 0


def test_packed_sheets_cost_three_writes_each() -> None:
    """Of a set of 37 sheets of 42 x 30 inches; beside tiles, the object is one more. A large one is sent in parts."""
    pages = [Page(number, width=12_600, height=9_000, dpi=300) for number in range(1, 38)]
    exploded, packed, both = (Forecaster().forecast(pages, UploadOptions(layout=layout), 1) for layout in Layout)
    assert (exploded.puts, packed.puts, both.puts) == (37 * 2430 + 2, 37 * 3 + 2, 37 * 2431 + 2)
    assert packed.dollars < 0.01 < 0.4 < exploded.dollars < both.dollars
    assert exploded.tiles == packed.tiles == both.tiles
    large = Forecaster().forecast([Page(1, width=26_000, height=26_000, dpi=300)], UploadOptions(layout=Layout.PACKED), 1)
    assert large.class_a - large.puts == (packed.class_a - packed.puts) - 36 * 2 + 8, "7 parts, their begin and their end for 1 PUT"


def test_parts_are_those_of_the_bucket() -> None:
    """The forecast loads no bucket, so it has the two numbers of its own."""
    assert (PART_BYTES, LARGEST_PUT_BYTES) == (storage.PART_BYTES, storage.LARGEST_PUT_BYTES)


@given(PAGES, OPTIONS)
def test_pages_that_cannot_be_used_take_nothing(pages: list[Page], options: UploadOptions) -> None:
    """A page that failed when it was counted is neither tiled nor written."""
    broken = Page(100, reason="PageUnreadable", detail="no area")
    assert Forecaster().forecast([*pages, broken], options, 1) == Forecaster().forecast(pages, options, 1)


def test_one_sheet_of_42_by_30_inches_is_what_was_counted_at_the_server() -> None:
    """2,432 PUTs, one for source.pdf, 6 LISTs, 14 GETs and 2 HEADs, as tests/bench/bench_bucket.py reads in the server's log."""
    forecast = Forecaster().forecast([ARCH_E1], UploadOptions(), 1)
    assert (forecast.tiles, forecast.puts, forecast.class_a, forecast.class_b) == (2427, 2432, 2439, 16)
    assert forecast.dollars == pytest.approx((2439 * 4.50 + 16 * 0.36) / 1e6, abs=1e-6)
    assert Forecaster().forecast([ARCH_E1], UploadOptions(), 2).class_a == 2442


def test_slots_share_the_pages_but_never_a_page() -> None:
    """Twice the slots take half the time, until each page has a slot. The window limits them, too."""

    def seconds(slots: int, pages: int, window: int = 16) -> float:
        forecaster = Forecaster(slots, seconds_per_megapixel=0.1)
        return forecaster.forecast([ARCH_E1] * pages, UploadOptions(window=window), 1).seconds

    assert seconds(1, 4) - START_SECONDS == pytest.approx(2 * (seconds(2, 4) - START_SECONDS), abs=0.2)
    assert seconds(8, 1) == seconds(1, 1)
    assert seconds(8, 4, window=2) == seconds(2, 4)


def test_slow_bucket_is_waited_for() -> None:
    """A measured rate of PUTs counts where it is slower than the pages are drawn. Before that only the high estimate allows for it."""
    pages = [ARCH_E1] * 4

    def seconds(**bucket: Any) -> tuple[float, float | None, float | None]:
        forecast = Forecaster(2).forecast(pages, UploadOptions(), 1, **bucket)
        return forecast.seconds, forecast.seconds_low, forecast.seconds_high

    drawn, unmeasured = seconds(), seconds(is_s3=True)
    assert seconds(is_s3=True, puts_per_s=1e6) == drawn
    assert unmeasured[:2] == drawn[:2]
    assert (unmeasured[2] or 0) > (drawn[2] or 0)
    assert seconds(is_s3=True, puts_per_s=100)[0] == pytest.approx(START_SECONDS + 4 * 24.32, abs=0.1)


@given(st.integers(1, 99))
def test_better_quality_takes_more_bytes(quality: int) -> None:
    """The factor is 1 at quality 85, and grows with the quality."""
    assert quality_factor(85) == 1
    assert quality_factor(quality) < quality_factor(quality + 1)


@given(st.none() | FORECASTS, st.none() | RECEIPTS)
def test_forecast_and_receipt_are_read_as_they_were_written(forecast: Forecast | None, paid: Receipt | None) -> None:
    """In a snapshot, through JSON; also when one or both are absent."""
    snapshot = replace(Snapshot(UploadStatus.COMPLETE, 1, "2026-01-31T09:30:00.000Z"), forecast=forecast, receipt=paid)
    assert from_json(Snapshot, to_json(snapshot)) == snapshot


def test_a_manifest_of_an_earlier_release_has_neither() -> None:
    """A manifest from before there were forecasts is still read."""
    old = b'{"status":"complete","version":1,"updatedAt":"2026-01-31T09:30:00.000Z","totalPages":1,"progress":100,"sheets":[],"schema":1}'
    snapshot = from_json(Snapshot, old)
    assert (snapshot.forecast, snapshot.receipt, snapshot.sheet_puts, snapshot.processing_seconds) == (None, None, 0, 0)


def test_receipt_is_what_the_ready_sheets_hold() -> None:
    """It has the tiles and bytes of ready sheets only, PUTs as counted, other operations as forecast, and the seconds of processing."""
    forecast = Forecaster().forecast([ARCH_E1, replace(ARCH_E1, number=2)], UploadOptions(), 1)
    head = Snapshot(
        UploadStatus.PARTIAL,
        1,
        "x",
        forecast=forecast,
        processing_seconds=60.21,
        sheet_puts=2 * 2430,
    )
    ready = SheetState(1, SheetStatus.READY, 1, tiles=2427, bytes=7_000_000)
    paid = receipt(head, [ready, SheetState(2, SheetStatus.FAILED, 1)])
    assert paid is not None
    assert (paid.tiles, paid.bytes, paid.puts, paid.seconds) == (2427, 7_000_000, 4862, 60.2)
    assert (paid.class_a, paid.class_b) == (4862 + 1 + 2 + 2 * 4, 19)
    assert paid.dollars == pytest.approx((paid.class_a * 4.50 + 18 * 0.36) / 1e6, abs=1e-6)
    assert receipt(replace(head, forecast=None), [ready]) is None
