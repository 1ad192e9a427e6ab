"""The estimate of the seconds that an upload still takes."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import hypothesis.strategies as st
import pytest
from hypothesis import given

from activities.bucket.forecast import Forecaster
from activities.bucket.records import SheetRecord, SheetState, SheetStatus, Snapshot, UploadOptions, UploadStatus
from activities.interface import Page
from api.progress.live import LiveProgress
from api.progress.remaining import seconds_left, with_estimate
from workflows.processing.progress import Progress

START = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
PAGES = [Page(number, None, 12_600, 9_000, 300) for number in range(1, 21)]


def after(seconds: float) -> datetime:
    """So many seconds after the count of the pages."""
    return START + timedelta(seconds=seconds)


def record(number: int) -> SheetRecord:
    """The ``sheet.json`` of a page."""
    return SheetRecord(number, 12_600, 9_000, 300, False, None, 256, 1, 85, 2427, 1_000_000, "0" * 64, {})


def begun(committed: int = 0, *, forecast: bool = True) -> Progress:
    """The progress of twenty sheets, of which so many were committed by an earlier run."""
    progress = Progress(START)
    expected = Forecaster(2).forecast(PAGES, UploadOptions(), 1) if forecast else None
    progress.begin(PAGES, [record(number) for number in range(1, committed + 1)], START, expected)
    return progress


def finish(progress: Progress, first: int, last: int, *, began_s: float, each_s: float) -> Snapshot:
    """Makes these sheets ready one after the other; returns the progress with the estimate."""
    for number in range(first, last + 1):
        progress.mark_ready([record(number)], after(began_s + (number - first + 1) * each_s))
    return with_estimate(progress.snapshot())


def estimate(snapshot: Snapshot) -> tuple[float, float]:
    """The low and the high estimate, which there must be."""
    assert snapshot.seconds_left is not None
    return snapshot.seconds_left.low, snapshot.seconds_left.high


def test_nothing_is_known_before_the_pages_are_counted_and_nothing_is_left_at_the_end() -> None:
    """A queued upload, one without forecast and finished sheets, and an ended one have no estimate."""
    assert with_estimate(Progress(START).snapshot()).seconds_left is None
    assert with_estimate(begun(forecast=False).snapshot()).seconds_left is None
    for end in ("finish", "cancel"):
        progress = begun()
        if end == "finish":
            finish(progress, 1, 20, began_s=0, each_s=1)
        getattr(progress, end)(after(30))
        assert with_estimate(progress.snapshot()).seconds_left is None


def test_steady_pace_is_found_with_and_without_a_forecast() -> None:
    """Ten sheets at two seconds each: twenty seconds are left, whatever the forecast has said."""
    for forecast in (True, False):
        low, high = estimate(finish(begun(forecast=forecast), 1, 10, began_s=0, each_s=2))
        assert 9 < low < 20 < high < 35


def test_estimate_begins_with_the_forecast() -> None:
    """Before any sheet is finished, the forecast lies in the range."""
    snapshot = with_estimate(begun().snapshot())
    low, high = estimate(snapshot)
    assert snapshot.forecast is not None
    assert low < snapshot.forecast.seconds < high


def test_slower_pace_is_felt_by_the_high_estimate() -> None:
    """Another upload takes half of the workers from now on: the high estimate follows, the low one hopes that it ends soon."""
    progress = begun()
    finish(progress, 1, 10, began_s=0, each_s=1)
    low, high = estimate(finish(progress, 11, 14, began_s=10, each_s=4))
    assert low < 10
    assert high > 6 * 4


def test_sheets_of_an_earlier_run_say_nothing_about_the_pace() -> None:
    """After a lost history, fifteen sheets are ready at once. The five that are left still take their time."""
    low, high = estimate(finish(begun(committed=15), 16, 18, began_s=0, each_s=3))
    assert low < 6 < high
    assert low > 1


def test_time_between_two_runs_does_not_count() -> None:
    """A cancelled upload is resumed a day later, and goes on at its pace."""
    progress = begun()
    finish(progress, 1, 10, began_s=0, each_s=2)
    progress.cancel(after(20))
    progress.retry((), after(86_400))
    low, high = estimate(with_estimate(progress.snapshot()))
    assert 8 < low < 20 < high < 40
    low, high = estimate(finish(progress, 11, 12, began_s=86_400, each_s=2))
    assert low < 16 < high


def test_last_sheet_takes_one_slot() -> None:
    """Two slots share the sheets, but not the last one: it takes as long as any, at the pace of one slot."""
    _, high = estimate(finish(begun(), 1, 19, began_s=0, each_s=1))
    assert high > 2


@given(
    st.lists(st.sampled_from(SheetStatus), min_size=1, max_size=40),
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 20_000), st.integers(0, 100_000)), min_size=40, max_size=40),
    st.floats(0, 1e6),
    st.booleans(),
)
def test_any_progress_has_a_sane_estimate(
    statuses: list[SheetStatus], numbers: list[tuple[int, int, int]], processing_s: float, forecast: bool
) -> None:
    """Both ends are finite, not negative, and in order, whatever the sheets, their versions and the clocks say."""
    head = begun(forecast=forecast).snapshot()
    sheets = tuple(
        SheetState(number, status, head.version + later, width=width, height=height)
        for number, (status, (width, height, later)) in enumerate(zip(statuses, numbers, strict=False), start=1)
    )
    left = seconds_left(replace(head, processing_seconds=processing_s), sheets)
    if left is not None:
        assert math.isfinite(left.high)
        assert 0 <= left.low <= left.high


@given(st.floats(0.5, 30))
def test_more_finished_sheets_leave_less_time(each_s: float) -> None:
    """At a steady pace, each finished sheet brings the high estimate down, and its range closer together."""
    progress = begun(forecast=False)
    highs, ranges = [], []
    for number in range(1, 20):
        snapshot = finish(progress, number, number, began_s=(number - 1) * each_s, each_s=each_s)
        low, high = estimate(snapshot)
        highs.append(high)
        ranges.append(high - low)
    assert highs == sorted(highs, reverse=True)
    assert ranges == sorted(ranges, reverse=True)


def test_changes_bring_the_same_estimate_as_the_whole_progress() -> None:
    """A watcher that takes changes and one that reads the whole state send the same."""
    progress = begun()
    live = LiveProgress(progress.snapshot())
    for number in range(1, 6):
        version = progress.version
        finish(progress, number, number, began_s=number, each_s=1)
        live.apply(progress.changes_since(version))
        assert live.snapshot == with_estimate(progress.snapshot())
        assert live.head.seconds_left is not None


@pytest.mark.parametrize("status", [UploadStatus.QUEUED, UploadStatus.COMPLETE])
def test_only_a_processing_upload_has_an_estimate(status: UploadStatus) -> None:
    """The sheets alone are not asked."""
    head = replace(begun().snapshot(), status=status)
    assert seconds_left(head, head.sheets) is None
