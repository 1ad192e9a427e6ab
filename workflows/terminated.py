"""What is said of an upload whose run was ended before it could write its manifest."""

from dataclasses import replace
from datetime import datetime

from temporalio.client import WorkflowExecutionStatus

from activities.bucket.records import SheetStatus, Snapshot
from activities.errors import Terminated
from workflows.progress import Progress

BROKEN_OFF = (WorkflowExecutionStatus.TERMINATED, WorkflowExecutionStatus.TIMED_OUT)
"""A run that ended so had no chance to write a manifest."""


def broken_off(last: Snapshot, status: WorkflowExecutionStatus | None, moment: datetime) -> Snapshot:
    """The final progress of such a run: ``failed`` with the reason ``Terminated``, or ``cancelled``; sheets in flight are pending.

    Args:
        last: What was known of it last; the version grows from there.
        status: How it ended.
        moment: When that is said.
    """
    progress = Progress(moment, replace(last, warning=None))
    for number in progress.sheets_in(SheetStatus.TILING, SheetStatus.UPLOADING):
        progress.pending(number, moment)
    if status is WorkflowExecutionStatus.CANCELED:
        progress.cancel(moment)
        return progress.snapshot()
    how = status.name.lower().replace("_", " ") if status else "ended"
    progress.fail(Terminated.__name__, f"its workflow was {how} before it could write the final progress", moment)
    return progress.snapshot()
