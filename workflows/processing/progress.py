"""The state machine of an upload's progress: plain Python, no Temporal, no clock of its own.

Every change passes through ``Progress._change``, which gives it a version. So a filter over the state finds all changes since a version.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from activities.bucket.changes import SheetsByChange, by_number
from activities.bucket.forecast import receipt, sheet_objects
from activities.bucket.records import (
    COUNTED_NOTES,
    Forecast,
    Layout,
    SheetRecord,
    SheetState,
    SheetStatus,
    Snapshot,
    UploadStatus,
    milliseconds,
    timestamp,
)
from activities.bucket.weight import DETAIL_BYTES, HEAD_TEXT_BYTES, cut
from activities.interface import Page

NOT_RECONCILED = "a reconcile could not be done: "
"""How every warning about a failed reconcile begins. Such a warning stays even when all sheets are ready."""


def percentage(completed: int, total: int) -> int:
    """``100 x completed / total`` rounded half up, but at most 99 until all are completed; 0 of 0 is 0."""
    if total == 0:
        return 0
    rounded = (200 * completed + total) // (2 * total)
    return rounded if completed == total else min(rounded, 99)


class Progress:
    """The progress of one upload.

    Only ``retry`` and ``reconcile`` make a ready or failed sheet pending again.

    Args:
        now: The time of the change, UTC, here and in every method.
        snapshot: The last state of an earlier run; without it the upload is ``queued`` and has no sheets.
    """

    def __init__(self, now: datetime, snapshot: Snapshot | None = None) -> None:
        if snapshot is None:
            snapshot = Snapshot(UploadStatus.QUEUED, version=milliseconds(now), updated_at=timestamp(now))
        self.restore(snapshot)

    def restore(self, snapshot: Snapshot) -> None:
        """Replaces the progress by the last state of an earlier run."""
        self._head = replace(snapshot, sheets=())
        self._set_sheets(snapshot.sheets)

    def renew(self, now: datetime) -> None:
        """Gives the state a newer version, although nothing has changed."""
        self._change(now)

    def _set_sheets(self, sheets: Iterable[SheetState]) -> None:
        self._sheets = SheetsByChange(sheets)
        self._numbers: dict[SheetStatus, set[int]] = {status: set() for status in SheetStatus}
        for sheet in self._sheets.values():
            self._numbers[sheet.status].add(sheet.number)

    def _put(self, sheet: SheetState) -> None:
        if (earlier := self._sheets.put(sheet)) is not None:
            self._numbers[earlier.status].discard(sheet.number)
        self._numbers[sheet.status].add(sheet.number)

    @property
    def head(self) -> Snapshot:
        """The state without its sheets."""
        return self._head

    @property
    def status(self) -> UploadStatus:
        """The upload's status."""
        return self._head.status

    @property
    def version(self) -> int:
        """The version of the last change."""
        return self._head.version

    @property
    def total_pages(self) -> int:
        """Pages of the document; 0 until they are counted."""
        return self._head.total_pages

    def snapshot(self) -> Snapshot:
        """The whole state."""
        return replace(self._head, sheets=by_number(self._sheets.values()))

    def changes_since(self, version: int) -> Snapshot:
        """The counters and the sheets that changed after ``version``; the whole state when ``version`` is newer than the state."""
        if version > self._head.version:
            return self.snapshot()
        return replace(self._head, sheets=self._sheets.since(version)[1])

    def sheets_in(self, *statuses: SheetStatus) -> list[int]:
        """The numbers of the sheets in any of these states, ascending."""
        return sorted(number for status in statuses for number in self._numbers[status])

    @property
    def open_sheets(self) -> int:
        """How many sheets are neither ready nor failed."""
        return sum(len(self._numbers[status]) for status in SheetStatus if status not in (SheetStatus.READY, SheetStatus.FAILED))

    @property
    def sheets_to_do(self) -> list[int]:
        """The numbers of the sheets that the run should begin, ascending; no sheet unless the upload is ``processing``."""
        return self.sheets_in(SheetStatus.PENDING) if self.status is UploadStatus.PROCESSING else []

    @property
    def first_failure(self) -> SheetState | None:
        """The failed sheet with the lowest number."""
        failed = self._numbers[SheetStatus.FAILED]
        return self._sheets[min(failed)] if failed else None

    def sheet(self, number: int) -> SheetState:
        """One sheet, by its number.

        Raises:
            KeyError: There is no such sheet.
        """
        return self._sheets[number]

    def begin(
        self,
        pages: Sequence[Page],
        committed: Iterable[SheetRecord],
        now: datetime,
        forecast: Forecast | None = None,
        *,
        resume: bool = True,
    ) -> None:
        """Begins the sheets of a counted document: committed sheets are ready, sheets with an unusable page failed, the others pending.

        Args:
            pages: All pages of the document.
            committed: The sheets that the bucket holds.
            now: The time of the change.
            forecast: The expected size, time and cost of the pages.
            resume: Whether the run will work on the pending sheets; if not, an upload that has ended keeps its final status.
        """
        sheets = {
            page.number: SheetState(
                number=page.number,
                status=SheetStatus.FAILED if page.reason else SheetStatus.PENDING,
                version=0,
                title=page.title,
                width=page.width or None,
                height=page.height or None,
                dpi=page.dpi or None,
                scaled=page.scaled,
                reason=page.reason,
                detail=page.detail,
                notes=page.notes,
            )
            for page in pages
        }
        for record in committed:
            if record.number in sheets:
                sheets[record.number] = ready_sheet(sheets[record.number], record)
        reopened = self._head.status.is_final
        self._set_sheets(())
        self._head = replace(self._head, total_pages=len(sheets), forecast=forecast, sheet_puts=0)
        self._change(
            now,
            sheets.values(),
            started_at=timestamp(now),
            **(self._processing_fields() if resume else {}),
            **(_reconciled_fields(now) if reopened else {}),
        )

    def show_committed(self, committed: Iterable[SheetRecord], now: datetime) -> None:
        """Shows the committed sheets of an upload whose pages will not be counted now; the number of pages stays unknown."""
        sheets = [ready_sheet(SheetState(record.number, SheetStatus.PENDING, 0, record.title), record) for record in committed]
        self._change(now, sheets)

    def warn(self, warning: str | None, now: datetime) -> None:
        """Replaces the warning; None removes it.

        A warning that begins with ``NOT_RECONCILED`` stays until a reconcile succeeds. Any other warning stays until every sheet is ready:
        then ``finish`` removes it.
        """
        is_lesser = warning is not None and not warning.startswith(NOT_RECONCILED)
        warning = warning and cut(warning, HEAD_TEXT_BYTES)
        if warning != self._head.warning and not (is_lesser and self._is_not_reconciled):
            self._change(now, warning=warning)

    @property
    def _is_not_reconciled(self) -> bool:
        return (self._head.warning or "").startswith(NOT_RECONCILED)

    def _processing_fields(self) -> dict[str, object]:
        return {"status": UploadStatus.PROCESSING, "completed_at": None, "reason": None, "detail": None}

    def mark_tiling(self, number: int, now: datetime) -> None:
        """Shows that the sheet waits for a render slot or is rendered."""
        self._advance(number, SheetStatus.TILING, now)

    def mark_uploading(self, number: int, now: datetime, *, thumbnail: bool = False) -> None:
        """Shows that the sheet's tiles are being written to the bucket, and whether the bucket has the thumbnail already."""
        self._advance(number, SheetStatus.UPLOADING, now, thumbnail=thumbnail)

    def mark_pending(self, number: int, now: datetime) -> None:
        """Shows that the work on the sheet was stopped before it ended."""
        self._advance(number, SheetStatus.PENDING, now)

    def _advance(self, number: int, status: SheetStatus, now: datetime, *, thumbnail: bool = False) -> None:
        sheet = self._sheets[number]
        if sheet.status not in (SheetStatus.READY, SheetStatus.FAILED, status):
            self._change(now, [replace(sheet, status=status, thumbnail=thumbnail or sheet.thumbnail)])

    def resize(self, number: int, size: Page | SheetState, now: datetime) -> None:
        """Gives a sheet that is not ready another size, another resolution and other notes."""
        sheet = self._sheets[number]
        new = replace(sheet, width=size.width, height=size.height, dpi=size.dpi, scaled=size.scaled, notes=size.notes)
        if sheet.status is not SheetStatus.READY and new != sheet:
            self._change(now, [new])

    def mark_ready(self, records: Iterable[SheetRecord], now: datetime) -> None:
        """Shows that these sheets are committed; a repeated call changes nothing."""
        changed = []
        for record in records:
            sheet = self._sheets.get(record.number)
            if sheet is not None and sheet.status is not SheetStatus.READY:
                changed.append(ready_sheet(sheet, record))
        if changed:
            self._change(now, changed)

    def mark_failed(self, number: int, reason: str, detail: str, now: datetime) -> None:
        """Shows that the sheet failed for good; a late failure of a ready sheet is ignored."""
        sheet = self._sheets[number]
        if sheet.status not in (SheetStatus.READY, SheetStatus.FAILED):
            self._change(now, [replace(sheet, status=SheetStatus.FAILED, reason=reason, detail=cut(detail, DETAIL_BYTES))])

    def retry(self, numbers: Iterable[int], now: datetime) -> None:
        """Makes failed sheets pending again, on request, and reopens an upload that had ended.

        Args:
            numbers: Which sheets; no number means all failed sheets. A sheet whose page is unusable stays failed.
            now: The time of the change.
        """
        wanted = set(numbers)
        failed = [self._sheets[number] for number in self.sheets_in(SheetStatus.FAILED) if not wanted or number in wanted]
        again = [_pending_sheet(sheet) for sheet in failed if sheet.width is not None]
        if again or self.sheets_in(SheetStatus.PENDING):
            self._change(now, again, **self._processing_fields())

    def reconcile(self, committed: Iterable[SheetRecord], broken: Iterable[int], now: datetime) -> int:
        """Makes the sheets agree with the bucket; an upload that had ended goes on if a sheet changes.

        An upload that was cancelled or terminated with pending sheets stays so: only ``retry`` resumes it.

        Args:
            committed: Sheets that are whole in the bucket.
            broken: Sheets that are not whole in the bucket; a sheet among them that is not ready stays as it is.
            now: The time of the change.

        Returns:
            How many sheets the progress showed wrongly.
        """
        in_bucket = {record.number: record for record in committed}
        not_in_bucket = set(broken)
        was_stopped = self._head.status.is_final and bool(self.sheets_in(SheetStatus.PENDING))
        changed = []
        for sheet in by_number(self._sheets.values()):
            record = in_bucket.get(sheet.number)
            if record is not None and sheet.status in (SheetStatus.PENDING, SheetStatus.FAILED):
                changed.append(ready_sheet(sheet, record))
            elif record is None and sheet.number in not_in_bucket and sheet.status is SheetStatus.READY:
                changed.append(_pending_sheet(sheet))
        goes_on = bool(changed) and self._head.status.is_final and not was_stopped
        self._change(now, changed, **_reconciled_fields(now), **(self._processing_fields() if goes_on else {}))
        return len(changed)

    def finish(self, now: datetime) -> None:
        """Sets the final status, which follows from the sheets; a repeated call changes nothing.

        When every sheet is ready, this also removes a warning about single sheets.

        Raises:
            ValueError: A sheet is neither ready nor failed.
        """
        open_sheets = self.sheets_in(SheetStatus.PENDING, SheetStatus.TILING, SheetStatus.UPLOADING)
        if open_sheets:
            msg = f"{len(open_sheets)} sheets are not done, the first is {open_sheets[0]}"
            raise ValueError(msg)
        failure = self.first_failure
        if failure is None:
            if not self._is_not_reconciled:
                self.warn(None, now)
            ending: tuple[UploadStatus, str | None, str | None] = (UploadStatus.COMPLETE, None, None)
        elif self._head.completed_pages:
            ending = (UploadStatus.PARTIAL, None, None)
        else:
            ending = (UploadStatus.FAILED, failure.reason, failure.detail)
        if ending != (self._head.status, self._head.reason, self._head.detail):
            self._end(ending[0], now, *ending[1:])

    def fail(self, reason: str, detail: str, now: datetime) -> None:
        """Ends the upload as failed, because the document as a whole cannot be used."""
        self._end(UploadStatus.FAILED, now, reason, cut(detail, HEAD_TEXT_BYTES))

    def cancel(self, now: datetime) -> None:
        """Ends the upload as cancelled. No sheet is in flight, and unfinished sheets are pending."""
        self._end(UploadStatus.CANCELLED, now)

    def _end(self, status: UploadStatus, now: datetime, reason: str | None = None, detail: str | None = None) -> None:
        self._change(now, status=status, completed_at=timestamp(now), reason=reason, detail=detail)

    def _change(self, now: datetime, sheets: Iterable[SheetState] = (), **head: object) -> None:
        version = max(self._head.version + 1, milliseconds(now))
        sheets = tuple(sheets)
        became_ready = [sheet for sheet in sheets if sheet.status is SheetStatus.READY and not self._is_ready(sheet.number)]
        for sheet in sheets:
            self._put(replace(sheet, version=version))
        completed = len(self._numbers[SheetStatus.READY])
        worked = self._head.processing_seconds
        if self._head.status is UploadStatus.PROCESSING:
            worked = round(worked + (now - datetime.fromisoformat(self._head.updated_at)).total_seconds(), 3)
        self._head = replace(
            self._head,
            version=version,
            updated_at=timestamp(now),
            completed_pages=completed,
            progress=percentage(completed, self._head.total_pages),
            sheet_puts=self._head.sheet_puts + sum(_puts(sheet) for sheet in became_ready),
            processing_seconds=worked,
            **head,  # type: ignore[arg-type] # each caller passes the fields by name
        )
        if self._head.status.is_final:
            self._head = replace(self._head, receipt=receipt(self._head, self._sheets.values()))

    def _is_ready(self, number: int) -> bool:
        return number in self._numbers[SheetStatus.READY]


def ready_sheet(sheet: SheetState, record: SheetRecord) -> SheetState:
    """The sheet as ready, with the size and the counts of its ``sheet.json``. It keeps its title: the count has cut it to fit."""
    return replace(
        sheet,
        status=SheetStatus.READY,
        width=record.width,
        height=record.height,
        dpi=record.dpi,
        scaled=record.scaled,
        tiles=record.tiles,
        bytes=record.bytes,
        reason=None,
        detail=None,
        notes=record.notes,
        layout=record.layout,
    )


def _puts(sheet: SheetState) -> int:
    """How many objects were written for a ready sheet, as far as is known: of a sheet of an earlier release, all tiles."""
    return sheet_objects(sheet.layout or Layout.EXPLODED, sheet.tiles or 0)


def _pending_sheet(sheet: SheetState) -> SheetState:
    """The sheet as pending, without the notes that rendering wrote: the next rendering writes them again if they still hold."""
    notes = tuple(note for note in sheet.notes if note.type in COUNTED_NOTES)
    return replace(sheet, status=SheetStatus.PENDING, tiles=None, bytes=None, layout=None, reason=None, detail=None, notes=notes)


def _reconciled_fields(now: datetime) -> dict[str, object]:
    return {"reconciled": True, "reconciled_at": timestamp(now)}
