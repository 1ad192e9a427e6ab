"""The progress of an upload while it changes: plain Python."""

from collections.abc import Iterable
from dataclasses import replace

from activities.bucket.records import SheetState, Snapshot

NO_SHEET = -1
"""Older than every version."""


class LiveProgress:
    """Keeps the sheets in the order of their last change. So a change costs as much as it has sheets, and not as the upload has sheets.

    Args:
        snapshot: The whole progress.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.head = replace(snapshot, sheets=())
        """The progress without its sheets."""
        self._sheets: dict[int, SheetState] = {}
        self._put(snapshot.sheets)
        self._snapshot: Snapshot | None = snapshot

    @property
    def snapshot(self) -> Snapshot:
        """The whole progress, with the sheets by number."""
        if self._snapshot is None:
            self._snapshot = replace(self.head, sheets=_by_number(self._sheets.values()))
        return self._snapshot

    def apply(self, change: Snapshot) -> None:
        """Takes the counters and the changed sheets over."""
        if change.total_pages != self.head.total_pages:
            self._sheets = {number: sheet for number, sheet in self._sheets.items() if number <= change.total_pages}
        self.head = replace(change, sheets=())
        self._put(change.sheets)
        self._snapshot = None

    def changes_since(self, version: int) -> tuple[int, Snapshot]:
        """The counters, and the sheets that changed after a version.

        Returns:
            The newest version of a sheet that is not among them, and the change. For all versions with the same first value, the change
            is the same.
        """
        changed = []
        newest_known = NO_SHEET
        for sheet in reversed(self._sheets.values()):
            if sheet.version <= version:
                newest_known = sheet.version
                break
            changed.append(sheet)
        return newest_known, replace(self.head, sheets=_by_number(changed))

    def _put(self, sheets: Iterable[SheetState]) -> None:
        for sheet in sorted(sheets, key=lambda sheet: sheet.version):
            self._sheets.pop(sheet.number, None)
            self._sheets[sheet.number] = sheet


def _by_number(sheets: Iterable[SheetState]) -> tuple[SheetState, ...]:
    return tuple(sorted(sheets, key=lambda sheet: sheet.number))
