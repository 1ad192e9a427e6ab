"""The sheets of an upload in the order of their last change. Pure."""

from collections.abc import Iterable

from activities.bucket.records import SheetState

NO_SHEET = -1
"""Older than every version."""


class SheetsByChange(dict[int, SheetState]):
    """Sheets by number. To find the changes since a version costs as much as there are changes, and not as there are sheets.

    Args:
        sheets: The sheets, in any order.
    """

    def __init__(self, sheets: Iterable[SheetState] = ()) -> None:
        super().__init__()
        for sheet in sorted(sheets, key=lambda sheet: sheet.version):
            self.put(sheet)

    def put(self, sheet: SheetState) -> SheetState | None:
        """Takes over a sheet that has just changed; returns its earlier state."""
        earlier = self.pop(sheet.number, None)
        self[sheet.number] = sheet
        return earlier

    def since(self, version: int) -> tuple[int, tuple[SheetState, ...]]:
        """The sheets that changed after a version.

        Returns:
            The newest version of the other sheets, and the changed sheets by number. For all versions with the same first value, the
            changed sheets are the same.
        """
        changed: list[SheetState] = []
        for sheet in reversed(self.values()):
            if sheet.version <= version:
                return sheet.version, by_number(changed)
            changed.append(sheet)
        return NO_SHEET, by_number(changed)


def by_number(sheets: Iterable[SheetState]) -> tuple[SheetState, ...]:
    """The sheets in the order of their numbers."""
    return tuple(sorted(sheets, key=lambda sheet: sheet.number))
