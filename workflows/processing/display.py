"""Shows operators the state of an upload's run in Temporal's UI."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from temporalio import workflow
from temporalio.common import SearchAttributeKey

from activities.bucket.records import SheetStatus
from workflows.processing.progress import Progress

STATUS = SearchAttributeKey.for_keyword("SiteLinkStatus")
REASON = SearchAttributeKey.for_keyword("SiteLinkReason")

LINES_SHOWN = 20
"""The most failed sheets, and the most waits, that the details name."""

ABOUT = """Under *Current Details* is what the run waits for; under *Pending Activities*, how often that was tried, what the last try met,
and what the present try does.

*Request Cancellation* stops the upload and keeps the sheets that are ready. The signals, each with `{}` as its argument:
`retry_sheets` tries the failed sheets again, and resumes a cancelled upload; `force_reconcile` compares with the bucket and repairs.
The query `progress` answers with every sheet."""
"""What an operator can do with a run. It is the same for each upload."""


class Display:
    """The details and the search attributes of one run."""

    def __init__(self) -> None:
        self.finding = ""
        """The result of the last comparison with the bucket, in one sentence."""
        self._attributes: tuple[str, str | None] = ("", None)
        self._lines = ["**queued**: the pages are not counted yet"]
        self._waits: dict[object, tuple[str, datetime]] = {}

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Shows in the block that the run waits for something.

        At its end the details stay as they are until the next wait begins, or ``show`` or ``refresh`` is called: when a worker drops a run
        out of its cache, the end may come at a moment at which nothing may be shown.
        """
        wait = object()
        self._waits[wait] = (what, workflow.now())
        self.refresh()
        try:
            yield
        finally:
            del self._waits[wait]

    def show(self, progress: Progress) -> None:
        """Shows the progress. Search attributes are written only when they change, because each write is an event in the history."""
        head = progress.head
        failures = [progress.sheet(number) for number in progress.sheets_in(SheetStatus.FAILED)]
        self._lines = [f"**{head.status}**: {head.completed_pages:,} of {head.total_pages:,} sheets ready, {len(failures):,} failed"]
        if head.reason:
            self._lines.append(f"{head.reason}: {head.detail}")
        if self.finding:
            self._lines.append(self.finding)
        self._lines += _listed([f"- sheet {sheet.number}: {sheet.reason}: {sheet.detail}" for sheet in failures])
        self.refresh()
        reason = head.reason or (failures[0].reason if failures else None)
        if (head.status, reason) != self._attributes:
            self._attributes = (head.status, reason)
            workflow.upsert_search_attributes([STATUS.value_set(head.status), REASON.value_set(reason) if reason else REASON.value_unset()])

    def refresh(self) -> None:
        """Shows the waits as they are now."""
        waits = _listed([f"- since {since:%Y-%m-%d %H:%M:%S} UTC: {what}" for what, since in self._waits.values()])
        workflow.set_current_details("\n\n".join([*self._lines, *(["It waits for", *waits] if waits else [])]))


def _listed(lines: list[str]) -> list[str]:
    """One paragraph with these lines, without blank lines between them: the UI shows few lines at once."""
    left = len(lines) - LINES_SHOWN
    return ["\n".join([*lines[:LINES_SHOWN], *([f"- and {left:,} more"] if left > 0 else [])])] if lines else []
