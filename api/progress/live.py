"""The progress of an upload while it changes: plain Python."""

from dataclasses import replace

from activities.bucket.changes import SheetsByChange, by_number
from activities.bucket.records import Snapshot
from api.progress.remaining import seconds_left, with_estimate


class LiveProgress:
    """Takes changes, and estimates how long the upload will still take.

    Args:
        snapshot: The whole progress.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        snapshot = with_estimate(snapshot)
        self.head = replace(snapshot, sheets=())
        """The progress without its sheets."""
        self._sheets = SheetsByChange(snapshot.sheets)
        self._snapshot: Snapshot | None = snapshot

    @property
    def snapshot(self) -> Snapshot:
        """The whole progress, with the sheets by number."""
        if self._snapshot is None:
            self._snapshot = replace(self.head, sheets=by_number(self._sheets.values()))
        return self._snapshot

    def apply(self, change: Snapshot) -> None:
        """Takes the counters and the changed sheets over."""
        if change.total_pages != self.head.total_pages:
            self._sheets = SheetsByChange(sheet for sheet in self._sheets.values() if sheet.number <= change.total_pages)
        for sheet in sorted(change.sheets, key=lambda sheet: sheet.version):
            self._sheets.put(sheet)
        self.head = replace(change, sheets=(), seconds_left=seconds_left(change, self._sheets.values()))
        self._snapshot = None

    def changes_since(self, version: int) -> tuple[int, Snapshot]:
        """The counters with the sheets that changed after a version.

        Returns:
            The newest version of the other sheets, and the change. For all versions with the same first value, the change is the same.
        """
        newest_known, changed = self._sheets.since(version)
        return newest_known, replace(self.head, sheets=changed)
