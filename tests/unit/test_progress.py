"""The state machine of progress holds its guarantees in any order of changes."""

from datetime import UTC, datetime, timedelta

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from activities.bucket.forecast import Forecaster
from activities.bucket.records import (
    Forecast,
    Note,
    SheetRecord,
    SheetState,
    SheetStatus,
    Snapshot,
    UploadOptions,
    UploadStatus,
    from_wire,
    timestamp,
    to_wire,
)
from activities.interface import Page
from workflows.processing.progress import NOT_RECONCILED, Progress, percentage

START = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
OPEN = (SheetStatus.PENDING, SheetStatus.TILING, SheetStatus.UPLOADING)


def page(number: int, *, reason: str | None = None) -> Page:
    """A page of 100 x 50 px, or one that cannot be used."""
    if reason:
        return Page(number, reason=reason, detail="no area")
    return Page(number, f"A-10{number}", 100, 50, 300)


def record(number: int) -> SheetRecord:
    """The ``sheet.json`` of a committed sheet."""
    return SheetRecord(number, 100, 50, 300, False, f"A-10{number}", 256, 1, 85, 8, 4321, "0" * 64, {"pdfium": "1"})


def begun_progress(pages: int) -> Progress:
    """The progress of a document of so many good pages."""
    progress = Progress(START)
    progress.begin([page(number) for number in range(1, pages + 1)], [], START)
    return progress


def forecast_of(pages: int) -> Forecast:
    """The forecast of a document of so many good pages."""
    return Forecaster().forecast([page(number) for number in range(1, pages + 1)], UploadOptions(), 1)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_percentage_is_rounded_half_up_and_held_at_99(completed: int, total: int) -> None:
    """100 means every sheet, and 99 never comes from rounding up to 100."""
    completed = min(completed, total)
    result = percentage(completed, total)
    assert (result == 100) == (completed == total > 0)
    if total and result < 99:
        assert result == int(100 * completed / total + 0.5)


@pytest.mark.parametrize(("completed", "total", "expected"), [(1, 3, 33), (2, 3, 67), (0, 0, 0), (1, 200, 1), (199, 200, 99), (5, 5, 100)])
def test_percentage_gives_the_published_examples(completed: int, total: int, expected: int) -> None:
    """The examples of the wire contract."""
    assert percentage(completed, total) == expected


def test_begin_shows_committed_sheets_at_once() -> None:
    """After a lost history the first snapshot with sheets is right already."""
    progress = Progress(START)
    progress.begin([page(1), page(2, reason="PageUnreadable"), page(3)], [record(3), record(9)], START)
    snapshot = progress.snapshot()
    assert [sheet.status for sheet in snapshot.sheets] == [SheetStatus.PENDING, SheetStatus.FAILED, SheetStatus.READY]
    assert (snapshot.completed_pages, snapshot.total_pages, snapshot.progress) == (1, 3, 33)
    assert snapshot.sheets[1].reason == "PageUnreadable"


def test_committed_sheets_of_an_uncounted_upload_are_shown_and_counted_once() -> None:
    """The upload was cancelled before the count, so its number of pages is unknown. A later count resumes nothing without a retry."""
    progress = Progress(START)
    progress.show_committed([record(2), record(3)], START)
    progress.cancel(START)
    known = progress.snapshot()
    assert (known.status, known.completed_pages, known.total_pages, known.progress) == (UploadStatus.CANCELLED, 2, 0, 0)
    puts = known.sheet_puts
    progress = Progress(START, known)
    progress.begin([page(1), page(2), page(3)], [record(2), record(3)], START, forecast_of(3), resume=False)
    counted = progress.snapshot()
    assert (counted.status, counted.completed_pages, counted.total_pages) == (UploadStatus.CANCELLED, 2, 3)
    assert (counted.sheet_puts, counted.reconciled) == (puts, True)
    progress.retry([], START)
    assert progress.status is UploadStatus.PROCESSING


def test_only_a_different_warning_is_a_change() -> None:
    """A watcher gets one change when a warning appears, and one when it goes."""
    progress = begun_progress(1)
    versions = []
    for warning in ("sheets 1 to 1 could not be checked", "sheets 1 to 1 could not be checked", None, None):
        progress.warn(warning, START)
        versions.append(progress.version)
    assert versions[0] == versions[1] < versions[2] == versions[3]
    assert progress.snapshot().warning is None


@pytest.mark.parametrize("prefix", ["", NOT_RECONCILED])
def test_warning_goes_when_every_sheet_is_ready(prefix: str) -> None:
    """But a warning about a failed reconcile stays until a reconcile succeeds, and no warning about single sheets replaces it."""
    progress = begun_progress(2)
    progress.mark_failed(2, "PageUnreadable", "sentence", START)
    progress.warn(f"{prefix}sheets 1 to 1 could not be checked", START)
    progress.mark_ready([record(1)], START)
    progress.finish(START)
    assert (progress.status, progress.snapshot().warning) == (UploadStatus.PARTIAL, f"{prefix}sheets 1 to 1 could not be checked")
    progress.retry([2], START)
    progress.warn("sheets 2 to 2 could not be checked", START)
    progress.mark_ready([record(2)], START)
    progress.finish(START)
    assert progress.status is UploadStatus.COMPLETE
    assert progress.snapshot().warning == (f"{prefix}sheets 1 to 1 could not be checked" if prefix else None)
    progress.warn(None, START)
    assert progress.snapshot().warning is None


def test_version_is_the_clock_in_milliseconds_or_one_more() -> None:
    """Versions grow across runs because they follow the clock, and within a millisecond because they count."""
    progress = begun_progress(1)
    assert progress.version == int(START.timestamp() * 1000) + 1
    progress.mark_tiling(1, START + timedelta(seconds=2))
    assert progress.version == int(START.timestamp() * 1000) + 2000


def test_ready_again_changes_nothing_and_late_failure_is_ignored() -> None:
    """Repeated and late changes cannot move a ready sheet."""
    progress = begun_progress(2)
    progress.mark_ready([record(1)], START)
    version = progress.version
    progress.mark_ready([record(1)], START)
    progress.mark_failed(1, "RenderCrashed", "late", START)
    progress.mark_tiling(1, START)
    assert progress.version == version
    assert progress.sheets_in(SheetStatus.READY) == [1]


@pytest.mark.parametrize(
    ("ready", "failed", "status", "reason"),
    [
        ([1, 2], [], UploadStatus.COMPLETE, None),
        ([2], [1], UploadStatus.PARTIAL, None),
        ([], [2, 1], UploadStatus.FAILED, "Reason1"),
    ],
)
def test_finish_follows_from_the_sheets(ready: list[int], failed: list[int], status: UploadStatus, reason: str | None) -> None:
    """All sheets ready is complete, some is partial, no sheet ready is failed with the reason of the first sheet."""
    progress = begun_progress(2)
    progress.mark_ready([record(number) for number in ready], START)
    for number in failed:
        progress.mark_failed(number, f"Reason{number}", "sentence", START)
    progress.finish(START)
    snapshot = progress.snapshot()
    assert (snapshot.status, snapshot.reason) == (status, reason)
    assert snapshot.completed_at is not None


def test_geometry_is_decided_anew_only_for_a_sheet_that_is_not_ready() -> None:
    """Size, resolution and notes change, the status does not. A repeated call, or a call for a ready sheet, changes nothing."""
    progress = begun_progress(2)
    half = Page(1, "A-101", 50, 25, 150, scaled=True, notes=(Note("Scaled", "too little memory"),))
    progress.mark_tiling(1, START)
    progress.resize(1, half, START)
    sheet = progress.sheet(1)
    assert (sheet.status, sheet.title) == (SheetStatus.TILING, "A-101")
    assert (sheet.width, sheet.height, sheet.dpi, sheet.scaled, sheet.notes) == (50, 25, 150, True, half.notes)
    assert progress.changes_since(progress.version - 1).sheets == (sheet,)
    progress.mark_ready([record(2)], START)
    before = progress.snapshot()
    progress.resize(1, half, START)
    progress.resize(2, half, START)
    assert progress.snapshot() == before


def test_finish_refuses_open_sheets() -> None:
    """An upload cannot end while a sheet is neither ready nor failed."""
    with pytest.raises(ValueError, match="1 sheets are not done, the first is 1"):
        begun_progress(1).finish(START)


def test_reconcile_corrects_both_ways_and_says_so() -> None:
    """A ready sheet without its commit marker becomes pending, and a committed pending sheet becomes ready."""
    progress = begun_progress(3)
    progress.mark_ready([record(1)], START)
    progress.mark_tiling(3, START)
    assert progress.reconcile([record(2), record(3)], [1], START) == 2
    snapshot = progress.snapshot()
    assert [sheet.status for sheet in snapshot.sheets] == [SheetStatus.PENDING, SheetStatus.READY, SheetStatus.TILING]
    assert snapshot.reconciled
    assert snapshot.reconciled_at == snapshot.updated_at


def test_thumbnail_follows_the_sheet() -> None:
    """A sheet has its thumbnail when it is drawn. It has none any more when its objects are removed: it is broken, stopped or failed."""
    progress = begun_progress(3)
    for number in (1, 2, 3):
        progress.mark_tiling(number, START)
        assert not progress.sheet(number).thumbnail
        progress.mark_uploading(number, START, thumbnail=number != 3)
    assert [progress.sheet(number).thumbnail for number in (1, 2, 3)] == [True, True, False]
    progress.mark_tiling(1, START)  # its host was lost, but not the thumbnail
    assert progress.sheet(1).thumbnail
    progress.mark_pending(1, START)
    progress.mark_failed(2, "PageUnreadable", "cannot be drawn", START)
    progress.mark_ready([record(3)], START)
    assert [progress.sheet(number).thumbnail for number in (1, 2, 3)] == [False, False, True]
    progress.reconcile([record(1)], [3], START)
    assert [progress.sheet(number).thumbnail for number in (1, 2, 3)] == [True, False, False]


def test_ready_sheet_of_an_earlier_release_has_its_thumbnail() -> None:
    """A manifest that does not know the flag is read as it was meant."""
    progress = begun_progress(1)
    progress.mark_ready([record(1)], START)
    document = to_wire(progress.snapshot())
    del document["sheets"][0]["thumbnail"]
    assert from_wire(Snapshot, document) == progress.snapshot()


def test_reconcile_that_finds_nothing_wrong_confirms_and_ends_nothing_again() -> None:
    """A finished upload stays finished, with the time of its end; a broken sheet opens it again."""
    progress = begun_progress(2)
    progress.mark_ready([record(1), record(2)], START)
    progress.finish(START)
    later = START + timedelta(hours=1)
    assert progress.reconcile([record(1)], [], later) == 0
    progress.finish(later)
    snapshot = progress.snapshot()
    assert (snapshot.status, snapshot.completed_at) == (UploadStatus.COMPLETE, timestamp(START))
    assert (snapshot.reconciled, snapshot.reconciled_at) == (True, timestamp(later))
    assert progress.reconcile([], [2], later) == 1
    assert (progress.status, progress.snapshot().completed_at) == (UploadStatus.PROCESSING, None)


def test_reconcile_leaves_a_cancelled_upload_cancelled() -> None:
    """A reconcile must not start work that someone stopped."""
    progress = begun_progress(2)
    progress.cancel(START)
    progress.reconcile([record(1)], [2], START)
    assert progress.snapshot().status is UploadStatus.CANCELLED
    assert progress.sheets_in(SheetStatus.READY) == [1]
    progress.retry([], START)
    assert progress.snapshot().status is UploadStatus.PROCESSING


def test_retry_leaves_unusable_pages_failed() -> None:
    """A page without a size can never be tiled."""
    progress = Progress(START)
    progress.begin([page(1), page(2, reason="PageTooLarge")], [], START)
    progress.mark_failed(1, "RenderTimeout", "120 s", START)
    progress.finish(START)
    progress.retry([], START)
    assert progress.sheets_in(SheetStatus.PENDING) == [1]
    assert progress.sheets_in(SheetStatus.FAILED) == [2]


def test_receipt_comes_with_the_end_and_counts_a_sheet_as_often_as_it_was_made() -> None:
    """No receipt before the end. A sheet that is tiled again costs its PUTs again; a sheet of an earlier run counts once.

    The days between two runs do not count as processing time.
    """
    progress = Progress(START)
    progress.begin([page(1), page(2)], [record(1)], START, forecast_of(2))
    assert progress.snapshot().receipt is None
    progress.mark_ready([record(2)], START)
    progress.mark_ready([record(2)], START)
    progress.finish(START + timedelta(seconds=9))
    first = progress.snapshot().receipt
    assert first is not None
    assert (first.tiles, first.bytes, first.puts, first.seconds) == (16, 8642, 2 * 11 + 2, 9)
    assert first.puts == forecast_of(2).puts + 2 * (8 - forecast_of(1).tiles)
    progress.reconcile([record(1)], [2], START + timedelta(days=3))
    progress.mark_ready([record(2)], START + timedelta(days=3, seconds=2))
    progress.finish(START + timedelta(days=3, seconds=3))
    second = progress.snapshot().receipt
    assert second is not None
    assert (second.tiles, second.bytes, second.puts, second.seconds) == (16, 8642, 3 * 11 + 2, 12)


def test_receipt_of_a_cancelled_upload_is_of_what_was_done() -> None:
    """Pending sheets are not in the receipt. A sheet that a reconcile finds is added, and the next run goes on counting."""
    progress = Progress(START)
    progress.begin([page(1), page(2)], [], START, forecast_of(2))
    progress.mark_ready([record(1)], START)
    progress.cancel(START)
    paid = progress.snapshot().receipt
    assert paid is not None
    assert (paid.tiles, paid.puts) == (8, 13)
    progress.reconcile([record(1), record(2)], [], START)
    paid = progress.snapshot().receipt
    assert paid is not None
    assert (paid.tiles, paid.puts) == (16, 24)
    assert Progress(START, progress.snapshot()).snapshot() == progress.snapshot()


def test_a_refused_document_has_neither_forecast_nor_receipt() -> None:
    """Without a page count there are no numbers."""
    progress = Progress(START)
    progress.fail("NotAPdf", "no PDF", START)
    assert (progress.snapshot().forecast, progress.snapshot().receipt) == (None, None)


def test_changes_since_a_newer_version_are_everything() -> None:
    """A client with a future version gets the whole snapshot."""
    progress = begun_progress(3)
    assert progress.changes_since(progress.version + 1) == progress.snapshot()
    assert progress.changes_since(progress.version).sheets == ()


def test_only_a_processing_upload_has_sheets_to_do() -> None:
    """The pending sheets, ascending; a cancelled upload keeps them pending and begins none until a retry."""
    progress = Progress(START)
    assert progress.sheets_to_do == []
    progress.begin([page(1), page(2), page(3)], [], START)
    progress.mark_tiling(2, START)
    assert progress.sheets_to_do == [1, 3]
    progress.mark_pending(2, START)
    progress.cancel(START)
    assert progress.sheets_to_do == []
    progress.retry([], START)
    assert progress.sheets_to_do == [1, 2, 3]


def test_restored_progress_equals_that_of_the_earlier_run() -> None:
    """The state is the same, and the version goes on from there."""
    earlier = begun_progress(2)
    earlier.mark_ready([record(1)], START)
    progress = Progress(START)
    progress.restore(earlier.snapshot())
    assert progress.snapshot() == earlier.snapshot()
    progress.mark_ready([record(2)], START)
    assert progress.version > earlier.version


class ProgressMachine(RuleBasedStateMachine):
    """Any order of changes, and a client that sees only the changes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.progress = Progress(self.now)
        self.before = self.progress.snapshot()
        self.client: dict[int, SheetState] = {}
        self.client_version = 0
        self.asked = False

    def tick(self, milliseconds: int) -> datetime:
        """Time may stand still, but never goes back."""
        self.now += timedelta(milliseconds=milliseconds)
        return self.now

    @initialize(pages=st.lists(st.booleans(), min_size=1, max_size=5))
    def begin(self, pages: list[bool]) -> None:
        """A document of good and bad pages."""
        made = [page(number, reason=None if good else "PageUnreadable") for number, good in enumerate(pages, 1)]
        self.progress.begin(made, [], self.tick(1))

    def number(self, data: st.DataObject) -> int:
        """One of the sheets."""
        return data.draw(st.integers(1, self.progress.total_pages))

    @precondition(lambda self: not self.progress.status.is_final)
    @rule(data=st.data(), gap=st.integers(0, 3), step=st.sampled_from(["mark_tiling", "mark_uploading", "mark_pending"]))
    def move(self, data: st.DataObject, gap: int, step: str) -> None:
        """A sheet moves on, or the work on it is stopped."""
        getattr(self.progress, step)(self.number(data), self.tick(gap))

    @rule(data=st.data(), gap=st.integers(0, 3))
    def commit(self, data: st.DataObject, gap: int) -> None:
        """A sheet is committed, perhaps once more."""
        if not self.progress.status.is_final:
            self.progress.mark_ready([record(self.number(data))], self.tick(gap))

    @rule(data=st.data(), gap=st.integers(0, 3))
    def fail(self, data: st.DataObject, gap: int) -> None:
        """A sheet fails, perhaps late."""
        if not self.progress.status.is_final:
            self.progress.mark_failed(self.number(data), "RenderCrashed", "signal 11", self.tick(gap))

    @rule(data=st.data(), gap=st.integers(0, 3))
    def reconcile(self, data: st.DataObject, gap: int) -> None:
        """The bucket holds any subset."""
        held = data.draw(st.sets(st.integers(1, self.progress.total_pages)))
        self.asked = True
        self.progress.reconcile([record(number) for number in sorted(held)], set(range(1, 6)) - held, self.tick(gap))

    @rule(gap=st.integers(0, 3))
    def retry(self, gap: int) -> None:
        """Someone asks for the failed sheets again."""
        self.asked = True
        self.progress.retry([], self.tick(gap))

    @precondition(lambda self: not self.progress.status.is_final)
    @rule(gap=st.integers(0, 3))
    def end(self, gap: int) -> None:
        """The run ends if every sheet is ready or failed, else it is cancelled."""
        for number in self.progress.sheets_in(SheetStatus.TILING, SheetStatus.UPLOADING):
            self.progress.mark_pending(number, self.tick(gap))
        if self.progress.sheets_in(*OPEN):
            self.progress.cancel(self.tick(gap))
        else:
            self.progress.finish(self.tick(gap))

    @rule()
    def watch(self) -> None:
        """The client asks what changed since it last asked."""
        change = self.progress.changes_since(self.client_version)
        self.client.update((sheet.number, sheet) for sheet in change.sheets)
        self.client_version = change.version

    @invariant()
    def counters_follow_from_sheets(self) -> None:
        """The counters always equal the number of sheets in each state."""
        snapshot = self.progress.snapshot()
        ready = [sheet for sheet in snapshot.sheets if sheet.status is SheetStatus.READY]
        assert snapshot.completed_pages == len(ready)
        assert snapshot.progress == percentage(len(ready), snapshot.total_pages)
        if snapshot.status is UploadStatus.COMPLETE:
            assert snapshot.completed_pages == snapshot.total_pages
        assert all(sheet.version <= snapshot.version for sheet in snapshot.sheets)

    @invariant()
    def nothing_falls_unasked(self) -> None:
        """The version never falls. Counters and final states fall only by a reconcile or a requested retry."""
        after = self.progress.snapshot()
        assert after.version >= self.before.version
        if after.version == self.before.version:
            assert after == self.before
        fell = after.completed_pages < self.before.completed_pages or (self.before.status.is_final and not after.status.is_final)
        assert not fell or self.asked
        self.before, self.asked = after, False

    def teardown(self) -> None:
        """A client that saw only the changes has the whole state."""
        self.watch()
        assert tuple(self.client[number] for number in sorted(self.client)) == self.progress.snapshot().sheets
        assert isinstance(self.progress.snapshot(), Snapshot)


TestProgressMachine = ProgressMachine.TestCase
