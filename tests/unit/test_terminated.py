"""The final progress of an upload whose run was ended from outside."""

from dataclasses import replace
from datetime import UTC, datetime

from temporalio.client import WorkflowExecutionStatus

from activities.bucket.records import SheetStatus, Snapshot, UploadStatus
from tests.unit.api_fakes import snapshot
from workflows.terminated import ENDED_FROM_OUTSIDE, terminated_progress

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def test_no_sheet_of_an_ended_run_is_in_flight() -> None:
    """Sheets that were in flight become pending, so that ``retry`` can take them. The others stay as last known; the version is newer."""
    statuses = (SheetStatus.READY, SheetStatus.TILING, SheetStatus.UPLOADING, SheetStatus.FAILED, SheetStatus.PENDING)
    last = replace(snapshot(*statuses, version=int(NOW.timestamp() * 1000) + 5_000), warning="nothing moves")
    progress = terminated_progress(last, WorkflowExecutionStatus.TERMINATED, NOW)
    pending = SheetStatus.PENDING
    assert [sheet.status for sheet in progress.sheets] == [SheetStatus.READY, pending, pending, SheetStatus.FAILED, pending]
    assert (progress.status, progress.reason, progress.completed_pages, progress.warning) == (UploadStatus.FAILED, "Terminated", 1, None)
    assert progress.version > last.version
    assert all(sheet.version > last.version for sheet in progress.sheets[1:3])


def test_cancelled_run_is_cancelled() -> None:
    """A cancelled run without a manifest is ``cancelled``, and has no reason."""
    progress = terminated_progress(snapshot(SheetStatus.READY, SheetStatus.TILING), WorkflowExecutionStatus.CANCELED, NOW)
    assert (progress.status, progress.reason, [sheet.status for sheet in progress.sheets]) == (
        UploadStatus.CANCELLED,
        None,
        [SheetStatus.READY, SheetStatus.PENDING],
    )


def test_detail_says_how_the_run_ended() -> None:
    """Even if nothing else is known of the run."""
    details = [
        terminated_progress(Snapshot(UploadStatus.QUEUED, 0, "2026-01-31T09:00:00.000Z"), status, NOW).detail or ""
        for status in ENDED_FROM_OUTSIDE
    ]
    assert [text.split(" before")[0] for text in details] == ["its workflow was terminated", "its workflow was timed out"]
