"""The final progress of an upload whose run ended before it could write its manifest."""

from dataclasses import replace
from datetime import datetime

from temporalio.client import WorkflowExecutionStatus

from activities.bucket.records import SheetStatus, Snapshot
from activities.errors import Terminated
from workflows.processing.progress import Progress

ENDED_FROM_OUTSIDE = (WorkflowExecutionStatus.TERMINATED, WorkflowExecutionStatus.TIMED_OUT)
"""The endings that give a run no chance to write a manifest."""


def terminated_progress(last: Snapshot, status: WorkflowExecutionStatus | None, moment: datetime) -> Snapshot:
    """The final progress of a run that left no manifest: ``failed`` with the reason ``Terminated``, or ``cancelled``.

    Sheets that were in flight become pending, because no run works on them any more.

    Args:
        last: The last known progress; the new version is higher.
        status: How the run ended.
        moment: The time of the change.
    """
    progress = Progress(moment, replace(last, warning=None))
    for number in progress.sheets_in(SheetStatus.TILING, SheetStatus.UPLOADING):
        progress.mark_pending(number, moment)
    if status is WorkflowExecutionStatus.CANCELED:
        progress.cancel(moment)
        return progress.snapshot()
    how = status.name.lower().replace("_", " ") if status else "ended"
    progress.fail(Terminated.__name__, f"its workflow was {how} before it could write the final progress", moment)
    return progress.snapshot()
