"""The comparison of a run's progress with the bucket: on request, and before the run ends."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.bucket.records import SheetStatus
from activities.errors import UploadNotFound
from workflows.processing.calls import Calls
from workflows.processing.display import Display
from workflows.processing.failures import is_cancelled, reason_and_detail
from workflows.processing.metrics import count_discrepancies
from workflows.processing.patches import CHECK_SHEETS, OBEY_REQUESTS_AFTER_CANCEL, WAIT_FOR_LATE_WRITES
from workflows.processing.progress import NOT_RECONCILED, Progress
from workflows.processing.window import Requests, Window

SHEETS_PER_CHECK = 32
"""How many sheets one activity judges. No sheet is tiled while it is judged."""

SHEETS_PER_DISCARD = 250
"""From how many unfinished sheets one activity removes all objects. Most unfinished sheets have no object."""


class BucketChecks:
    """Compares sheets with the bucket, and corrects the progress.

    Args:
        calls: The activities.
        progress: The progress to correct.
        window: Keeps a sheet from being tiled while it is judged.
        display: Shows the result.
    """

    def __init__(self, calls: Calls, progress: Progress, window: Window, display: Display) -> None:
        self._calls = calls
        self._progress = progress
        self._window = window
        self._display = display

    async def reconcile(self, requests: Requests) -> None:
        """Judges every sheet if a reconcile is requested, else only the sheets that the bucket has reported.

        A reconcile judges a sheet in flight after the sheet has landed. Only a reconcile changes the bucket: it repairs broken sheets, and
        removes objects that belong to no sheet.
        """
        numbers = set(range(1, self._progress.total_pages + 1))
        if not requests.reconcile:
            # A sheet in flight needs no judgement: its own task reports how it ends.
            numbers &= set(requests.stored) - self._window.in_flight - set(self._progress.sheets_in(SheetStatus.READY))
        wrong = removed = 0
        all_checked = True
        while numbers and not is_cancelled():
            judged = self._window.begin_judging(numbers, SHEETS_PER_CHECK)
            if not judged:
                # Only sheets in flight are left. A half-written sheet is not broken, so the judgement waits until a sheet has landed.
                await workflow.wait_condition(lambda: is_cancelled() or not numbers <= self._window.in_flight)
                continue
            numbers.difference_update(judged)
            try:
                newly_wrong, newly_removed = await self._check(judged, repair=requests.reconcile, deep=requests.deep)
                wrong, removed = wrong + newly_wrong, removed + newly_removed
            except ActivityError as error:
                all_checked = False
                warning = f"sheets {judged[0]} to {judged[-1]} could not be checked"
                self._warn(error, NOT_RECONCILED + warning if requests.reconcile else warning)
        if requests.reconcile and not is_cancelled():
            try:
                removed += await self._calls.prune_sheets(self._progress.total_pages)
            except ActivityError as error:
                all_checked = False
                self._warn(error, f"{NOT_RECONCILED}objects that belong to no sheet could not be removed")
            if all_checked:
                self._progress.warn(None, workflow.now())
                self._progress.reconcile((), (), workflow.now())
                done_at = f"{workflow.now():%Y-%m-%d %H:%M:%S} UTC"
                self._display.finding = f"last reconciled {done_at}: {wrong} sheets were wrong, {removed} objects removed"

    async def discard_undone(self, silence_noticed: datetime | None, late_write: timedelta) -> None:
        """Removes the objects of unfinished sheets from the bucket; counts a sheet that turns out to be whole.

        Args:
            silence_noticed: When a host last fell silent, if one did.
            late_write: How long after that moment such a host's last write may still arrive.
        """
        undone = self._progress.sheets_in(*(status for status in SheetStatus if status is not SheetStatus.READY))
        if not undone or not workflow.patched(CHECK_SHEETS):
            return
        if silence_noticed is not None and workflow.now() < silence_noticed + late_write and workflow.patched(WAIT_FOR_LATE_WRITES):
            # If a ``.dzi`` arrived after its tiles were removed, it would mark a sheet without tiles as committed.
            silence = "a host fell silent and may still be writing a commit marker"
            with self._display.waiting(silence):
                await workflow.sleep(silence_noticed + late_write - workflow.now(), summary=silence)
        for start in range(0, len(undone), SHEETS_PER_DISCARD):
            judged = self._window.begin_judging(undone[start : start + SHEETS_PER_DISCARD], SHEETS_PER_DISCARD)
            try:
                await self._check(judged, discard=True)
            except ActivityError as error:
                self._warn(error, "the objects of unfinished sheets could not be removed")

    async def _check(self, judged: Sequence[int], *, repair: bool = True, discard: bool = False, deep: bool = False) -> tuple[int, int]:
        """Judges the sheets that the window has set aside.

        Returns:
            How many sheets the progress showed wrongly, and how many objects were removed.
        """
        sheets = tuple(self._progress.sheet(number) for number in judged)
        try:
            # The window begins no judged sheet during this await: the repair would delete the ``.dzi`` that a new tiling has just written.
            checked = await self._calls.check_sheets(sheets, repair=repair, discard=discard, deep=deep)
        finally:
            self._window.end_judging(judged)
        # There is no await between the end of the judgement and the new plan: in between, a sheet found whole would be tiled again.
        for sheet in checked.broken:
            workflow.logger.warning("a sheet is broken: %s", sheet.detail, extra={"sheet": sheet.number})
        wrong = 0
        if checked.committed or (repair and checked.broken):
            wrong = self._progress.reconcile(checked.committed, [sheet.number for sheet in checked.broken], workflow.now())
            count_discrepancies(wrong)
            self._window.plan(self._progress.sheets_to_do)
        return wrong, checked.removed

    def _warn(self, error: ActivityError, failure: str) -> None:
        """Shows people that a check failed; the work on the sheets goes on.

        Raises:
            ActivityError: The upload was deleted, or the run began before a failed check became a warning.
        """
        reason, detail = reason_and_detail(error)
        if reason == UploadNotFound.__name__ or not workflow.patched(OBEY_REQUESTS_AFTER_CANCEL):
            raise error
        self._display.finding = f"{failure}: {reason}: {detail}"
        workflow.logger.warning("a look at the bucket failed: %s", self._display.finding)
        self._progress.warn(self._display.finding, workflow.now())
