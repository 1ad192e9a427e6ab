"""Turns sizes, times, amounts and sheets into words, and prints lines."""
# ruff: noqa: T201 - talks to a terminal

import json
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from api.cli.errors import join_by_colon


def printable(text: str) -> str:
    """``text`` without control characters: escape sequences in a file name or a title could steer the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def say(line: str, file: TextIO | None = None) -> None:
    """Prints a line for a person, by default on stdout."""
    print(printable(line), file=file)


def print_json(event: str, data: object) -> None:
    """Prints one line of ``--json``. It is ASCII, so that every locale can print it."""
    print(json.dumps({"event": event, "data": data}))


def file_size(size_bytes: int | None) -> str:
    """Bytes for a person: ``12.3 MB``."""
    if size_bytes is None:
        return "? bytes"
    if size_bytes < 1000:
        return f"{size_bytes} bytes"
    size, unit = size_bytes / 1000, "kB"
    for larger in ("MB", "GB"):
        if size >= 999.95:
            size, unit = size / 1000, larger
    return f"{size:,.1f} {unit}"


def duration(seconds: float) -> str:
    """An estimate of time for a person: ``50 s``, ``12 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:,.1f} h"


def duration_range(low_s: float, high_s: float) -> str:
    """An estimate of time for a person: ``3 to 8 s``, ``50 s to 2 min``, ``about 3 s``."""
    low, high = duration(low_s), duration(high_s)
    number, unit = low.rsplit(" ", 1)
    return f"about {high}" if low == high else f"{number if high.endswith(f' {unit}') else low} to {high}"


def size_range(low_bytes: int, high_bytes: int) -> str:
    """An estimate of bytes for a person: ``310 to 640 MB``."""
    low, high = (file_size(_two_digits(size)).replace(".0 ", " ") for size in (low_bytes, high_bytes))
    number, unit = low.rsplit(" ", 1)
    return high if low == high else f"{number if high.endswith(unit) else low} to {high}"


def _two_digits(number: int) -> int:
    return round(number, 2 - len(str(number)))


def money(dollars: float) -> str:
    """An amount in dollars and cents: ``$1.20``."""
    return "less than $0.01" if 0 < dollars < 0.01 else f"${dollars:,.2f}"


def operations_cost(dollars: float) -> str:
    """The cost of operations on the bucket, in words."""
    return f"{money(dollars)} of bucket operations"


def sheet_name(sheet: Mapping[str, Any]) -> str:
    """A sheet's number and, if it has one, its title."""
    return f"sheet-{sheet['number']} {sheet['title'] or ''}".rstrip()


def sheet_failure(sheet: Mapping[str, Any]) -> str:
    """Why a sheet failed."""
    return f"{sheet_name(sheet)}: failed, {join_by_colon(sheet['reason'], sheet['detail'])}"


def sheet_notes(sheet: Mapping[str, Any]) -> Iterator[str]:
    """Why a sheet may differ from what its author drew, a line for each reason."""
    for note in sheet.get("notes") or ():
        yield f"{sheet_name(sheet)}: may differ from the PDF, {join_by_colon(note['type'], note['message'])}"


def change_line(before: str | None, sheet: Mapping[str, Any]) -> str | None:
    """A line about a sheet that failed, or that is tiled again after it was ready or failed; None for any other change."""
    if sheet["status"] == "failed":
        return sheet_failure(sheet)
    if before in ("ready", "failed") and sheet["status"] != "ready":
        return f"{sheet_name(sheet)}: is tiled again"
    return None


def sheet_count(count: int) -> str:
    """``1 sheet``, ``2 sheets``."""
    return f"{count:,} sheet{'' if count == 1 else 's'}"
