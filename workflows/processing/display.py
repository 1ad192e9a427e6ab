"""Shows operators the state of an upload's run in Temporal's UI."""

from temporalio import workflow
from temporalio.common import SearchAttributeKey

from activities.bucket.records import SheetStatus
from workflows.processing.progress import Progress

STATUS = SearchAttributeKey.for_keyword("SiteLinkStatus")
REASON = SearchAttributeKey.for_keyword("SiteLinkReason")

FAILURES_SHOWN = 20


class Display:
    """The details and the search attributes of one run."""

    def __init__(self) -> None:
        self.finding = ""
        """The result of the last comparison with the bucket, in one sentence."""
        self._attributes: tuple[str, str | None] = ("", None)

    def show(self, progress: Progress) -> None:
        """Shows the progress. Search attributes are written only when they change, because each write is an event in the history."""
        head = progress.head
        failures = [progress.sheet(number) for number in progress.sheets_in(SheetStatus.FAILED)]
        lines = [f"**{head.status}**: {head.completed_pages} of {head.total_pages} sheets ready, {len(failures)} failed"]
        if head.reason:
            lines.append(f"{head.reason}: {head.detail}")
        if self.finding:
            lines.append(self.finding)
        lines += [f"- sheet {sheet.number}: {sheet.reason}: {sheet.detail}" for sheet in failures[:FAILURES_SHOWN]]
        workflow.set_current_details("\n\n".join(lines))
        reason = head.reason or (failures[0].reason if failures else None)
        if (head.status, reason) != self._attributes:
            self._attributes = (head.status, reason)
            workflow.upsert_search_attributes([STATUS.value_set(head.status), REASON.value_set(reason) if reason else REASON.value_unset()])
