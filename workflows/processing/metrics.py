"""What a run counts, by Temporal's meter: a replay counts nothing twice. No label holds an upload or a title."""

from dataclasses import dataclass
from datetime import timedelta

from temporalio import workflow
from temporalio.common import MetricMeter

from activities.bucket.records import Snapshot
from activities.interface import WORKFLOW_QUEUE, UploadedSheet

SLOW_UPDATE_S = 1.0
"""A commit that takes longer to reach its run is logged."""

PAGES = (5, 50, 500)
"""The upper ends of the groups of documents, by pages."""


COUNTERS = {
    "progress_update_success": "Commits of sheets that reached their runs",
    "progress_update_retry": "Those of them that took more than one attempt of upload_page",
    "progress_update_failure": "Uploads of tiled sheets that failed for good",
    "progress_reconciliation_discrepancy": "Sheets that the progress had wrong",
}


def begin_counters(meter: MetricMeter, namespace: str) -> None:
    """Sets the counters of ``ProcessUpload`` to 0: Prometheus sees no rise of a counter that begins with its first count.

    Args:
        meter: Of the process that runs workflows.
        namespace: Temporal's namespace of these workflows.
    """
    labels = {"namespace": namespace, "task_queue": WORKFLOW_QUEUE, "workflow_type": "ProcessUpload"}
    for name, help_text in COUNTERS.items():
        meter.create_counter(name, help_text).add(0, labels)


def _count(name: str, number: int = 1) -> None:
    workflow.metric_meter().create_counter(name, COUNTERS[name]).add(number)


@dataclass(frozen=True)
class Backlog:
    """What a run has to do.

    Args:
        sheets: How many sheets are neither ready nor failed.
        changed_at: When the progress last changed, seconds since 1970.
    """

    sheets: int
    changed_at: float


def count_update(sheet: UploadedSheet) -> None:
    """Counts a sheet's commit that has reached its run."""
    _count("progress_update_success")
    if sheet.attempt > 1:
        _count("progress_update_retry")
    if sheet.committed_at:
        # The clocks of two hosts may differ.
        seconds = max(0.0, workflow.now().timestamp() - sheet.committed_at)
        help_text = "From a sheet's commit to the step of its run that counts it"
        workflow.metric_meter().create_histogram_timedelta("progress_update", help_text).record(timedelta(seconds=seconds))
        if seconds > SLOW_UPDATE_S:
            workflow.logger.warning("a commit reached its run late", extra={"sheet": sheet.number, "seconds": round(seconds, 3)})


def count_failed_update() -> None:
    """Counts a sheet that was tiled and whose commit will not reach its run."""
    _count("progress_update_failure")


def count_discrepancies(sheets: int) -> None:
    """Counts the sheets that the progress had wrong when it was compared with the bucket."""
    _count("progress_reconciliation_discrepancy", sheets)


def count_sheet(outcome: str, reason: str = "") -> None:
    """Counts a sheet whose work has ended.

    Args:
        outcome: ``ready`` or ``failed``.
        reason: The type of the error.
    """
    labels = {"outcome": outcome, "reason": reason}
    workflow.metric_meter().create_counter("sitelink_sheets", "Sheets whose work ended, by outcome and reason").add(1, labels)


def count_upload(ending: Snapshot) -> None:
    """Counts an upload that has ended, and how long it took. A run that continues another knows only the time in ``processing``."""
    labels = {"status": ending.status.value, "pages": _group(ending.total_pages)}
    took = max(workflow.now() - workflow.info().start_time, timedelta(seconds=ending.processing_seconds))
    help_text = "From the start of an upload's run to its manifest, by final status and number of pages; not of reopened uploads"
    workflow.metric_meter().create_histogram_timedelta("processing_duration", help_text).record(took, labels)


def _group(pages: int) -> str:
    low = 1
    for high in PAGES:
        if pages <= high:
            return f"{low}-{high}" if pages else "0"
        low = high + 1
    return f"{low}+"


def count_webhook(outcome: str) -> None:
    """Counts a webhook whose delivery has ended, as ``delivered`` or ``failed``."""
    workflow.metric_meter().create_counter("sitelink_webhooks", "Webhooks whose delivery ended, by outcome").add(1, {"outcome": outcome})
