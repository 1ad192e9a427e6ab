"""What is said of an upload whose run was ended from outside."""

from dataclasses import replace
from datetime import UTC, datetime

from temporalio.client import WorkflowExecutionStatus

from activities.bucket.records import SheetStatus, Snapshot, UploadStatus
from tests.unit.api_fakes import snapshot
from workflows.terminated import ENDED_FROM_OUTSIDE, terminated_progress

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def test_no_sheet_of_an_ended_run_is_in_flight() -> None:
    """Those are pending, as ``retry`` wants them; the rest is as last known, and the version is newer than every earlier one."""
    statuses = (SheetStatus.READY, SheetStatus.TILING, SheetStatus.UPLOADING, SheetStatus.FAILED, SheetStatus.PENDING)
    last = replace(snapshot(*statuses, version=int(NOW.timestamp() * 1000) + 5_000), warning="nothing moves")
    said = terminated_progress(last, WorkflowExecutionStatus.TERMINATED, NOW)
    pending = SheetStatus.PENDING
    assert [sheet.status for sheet in said.sheets] == [SheetStatus.READY, pending, pending, SheetStatus.FAILED, pending]
    assert (said.status, said.reason, said.completed_pages, said.warning) == (UploadStatus.FAILED, "Terminated", 1, None)
    assert said.version > last.version
    assert all(sheet.version > last.version for sheet in said.sheets[1:3])


def test_cancelled_run_is_cancelled() -> None:
    """One that left nothing: nobody failed."""
    said = terminated_progress(snapshot(SheetStatus.READY, SheetStatus.TILING), WorkflowExecutionStatus.CANCELED, NOW)
    assert (said.status, said.reason, [sheet.status for sheet in said.sheets]) == (
        UploadStatus.CANCELLED,
        None,
        [SheetStatus.READY, SheetStatus.PENDING],
    )


def test_how_it_ended_is_said() -> None:
    """Also of a run that nothing is known of."""
    said = [
        terminated_progress(Snapshot(UploadStatus.QUEUED, 0, "2026-01-31T09:00:00.000Z"), status, NOW).detail or ""
        for status in ENDED_FROM_OUTSIDE
    ]
    assert [text.split(" before")[0] for text in said] == ["its workflow was terminated", "its workflow was timed out"]
