"""``ConvertUpload``: converts the ready sheets of a stored upload to another layout, some at a time.

The workflow may be terminated and started again at any time: each sheet says in its ``sheet.json`` how it lies in the bucket.
"""

import asyncio
from dataclasses import replace
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from activities.bucket.report import MOST_NAMES, Conversion, ConversionStatus, RefusedSheet
    from activities.interface import ConvertSheet, LayoutActivities, ListConvertible, TellLayouts
    from workflows.housekeeping import call_housekeeping
    from workflows.messages import ConvertInput
    from workflows.processing.failures import is_cancelled

LIST_TIMEOUT = timedelta(minutes=10)
SHEET_TIMEOUT = timedelta(hours=1)
SHEETS_AT_ONCE = 4

WAIT_FOR_SHEETS = "wait-for-sheets"
"""The name, in histories, of this change: a conversion that is cancelled waits until its sheets are not written any more."""


@workflow.defn
class ConvertUpload:
    """Gives every ready sheet of an upload another layout."""

    @workflow.init
    def __init__(self, args: ConvertInput) -> None:
        self._ref = args.ref
        self._state = args.done or Conversion(args.layout)
        self._sheets = list(reversed(args.sheets))

    @workflow.run
    async def run(self, args: ConvertInput) -> Conversion:
        """Converts sheet by sheet.

        Returns:
            How many sheets were converted, and which were left as they are.

        Raises:
            ApplicationError: The upload was deleted.
        """
        if args.done is None:
            convertible = await call_housekeeping(
                LayoutActivities.list_convertible, ListConvertible(self._ref), LIST_TIMEOUT, "list the sheets"
            )
            self._sheets = list(reversed(convertible.sheets))
            self._state = replace(self._state, total_sheets=len(self._sheets))
        # A sheet that is still being written would change its layout after the manifest was told, and beside the next conversion.
        kinds = workflow.ActivityCancellationType
        self._cancellation = kinds.WAIT_CANCELLATION_COMPLETED if workflow.patched(WAIT_FOR_SHEETS) else kinds.TRY_CANCEL
        try:
            await asyncio.gather(*(self._convert_sheets() for _ in range(SHEETS_AT_ONCE)))
        except (asyncio.CancelledError, ActivityError):
            if is_cancelled():
                await asyncio.shield(asyncio.create_task(self._tell_layouts()))  # of the sheets that are converted
            raise
        if self._sheets:
            workflow.continue_as_new(replace(args, sheets=tuple(reversed(self._sheets)), done=self._state))
        await self._tell_layouts()
        status = ConversionStatus.PARTIAL if self._state.refused_count else ConversionStatus.COMPLETE
        self._state = replace(self._state, status=status)
        return self._state

    @workflow.query(description="How many sheets are converted, and which were left as they are")
    def conversion(self) -> Conversion:
        """How far it is."""
        return self._state

    async def _tell_layouts(self) -> None:
        await call_housekeeping(LayoutActivities.tell_layouts, TellLayouts(self._ref), LIST_TIMEOUT, "tell the layouts in the manifest")

    async def _convert_sheets(self) -> None:
        while self._sheets and not workflow.info().is_continue_as_new_suggested():
            number = self._sheets.pop()
            args = ConvertSheet(self._ref, number, self._state.layout)
            sheet = await call_housekeeping(
                LayoutActivities.convert_sheet, args, SHEET_TIMEOUT, f"sheet {number}", cancellation=self._cancellation
            )
            state = self._state
            if sheet.reason is not None:
                refused = (*state.refused, RefusedSheet(number, sheet.reason, sheet.detail))[:MOST_NAMES]
                state = replace(state, refused=refused, refused_count=state.refused_count + 1)
            self._state = replace(state, done_sheets=state.done_sheets + 1, converted_sheets=state.converted_sheets + sheet.converted)
            workflow.set_current_details(f"{self._state.done_sheets:,} of {self._state.total_sheets:,} sheets")
