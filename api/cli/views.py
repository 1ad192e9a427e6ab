"""What the command line shows of an upload: the words, the view for programs, the one of plain lines. ``terminal`` has the third."""
# ruff: noqa: T201 - talks to a terminal

import json
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Any, Self, TextIO

from activities.bucket.records import SCHEMA
from api.cli.client import Refused, named

RUNNING = ("queued", "processing")


def printable(text: str) -> str:
    """``text`` without what could steer a terminal: a file name or a title may hold escape sequences."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def say(line: str, file: TextIO | None = None) -> None:
    """Prints a line for a person, by default on stdout."""
    print(printable(line), file=file)


def print_json(event: str, data: object) -> None:
    """Prints one line of ``--json``; ASCII, so that no locale can spoil it."""
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


def about(seconds: float) -> str:
    """An estimate of time for a person: ``50 s``, ``12 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:,.1f} h"


def size_range(low_bytes: int, high_bytes: int) -> str:
    """An estimate of bytes for a person: ``310 to 640 MB``."""
    low, high = (file_size(_two_digits(size)).replace(".0 ", " ") for size in (low_bytes, high_bytes))
    number, unit = low.rsplit(" ", 1)
    return high if low == high else f"{number if high.endswith(unit) else low} to {high}"


def _two_digits(number: int) -> int:
    return round(number, 2 - len(str(number)))


def money(dollars: float) -> str:
    """Dollars and cents."""
    return "less than $0.01" if 0 < dollars < 0.01 else f"${dollars:,.2f}"


def operations(dollars: float) -> str:
    """What a bucket's operations cost."""
    return f"{money(dollars)} of bucket operations"


def sheet_name(sheet: Mapping[str, Any]) -> str:
    """A sheet's number and, if it has one, its title."""
    return f"sheet-{sheet['number']} {sheet['title'] or ''}".rstrip()


def sheet_failure(sheet: Mapping[str, Any]) -> str:
    """Why a sheet failed."""
    return f"{sheet_name(sheet)}: failed, {named(sheet['reason'], sheet['detail'])}"


def sheet_notes(sheet: Mapping[str, Any]) -> Iterator[str]:
    """Why a sheet may differ from what its author drew, a line for each reason."""
    for note in sheet.get("notes") or ():
        yield f"{sheet_name(sheet)}: may differ from the PDF, {named(note['type'], note['message'])}"


def notable(before: str | None, sheet: Mapping[str, Any]) -> str | None:
    """What to say about a sheet that failed, or is not ready or failed any more; None about any other."""
    if sheet["status"] == "failed":
        return sheet_failure(sheet)
    if before in ("ready", "failed") and sheet["status"] != "ready":
        return f"{sheet_name(sheet)}: is done again"
    return None


def sheet_report(report: Mapping[str, Any]) -> Iterator[str]:
    """What was found of a sheet: a line, and one more for each thing that is wrong."""
    name, status = f"sheet-{report['number']}", report["status"]
    wrong = list(_findings(report))
    if status == "ready":
        yield f"{name}  {report['found']}/{report['expected']} tiles  {'ok' if report['verified'] else 'wrong'}"
    else:
        left = f"; {report['found']} tiles are there" if report["found"] else ""
        yield f"{name}  {named(status, report['reason'])}{left}"
    yield from wrong


REPAIRS = {"tile": "to be tiled again", "count": "whole, to be counted", "prune": "to be cleared of what no sheet owns"}


def repair_report(report: Mapping[str, Any]) -> Iterator[str]:
    """What a reconcile would do about a sheet, and why; nothing if it is as it should be."""
    if repair := REPAIRS.get(report["repair"] or ""):
        yield f"sheet-{report['number']}  {repair}"
        yield from _findings(report)


def upload_report(report: Mapping[str, Any]) -> Iterator[str]:
    """What was found of an upload."""
    yield from _findings({**report, "foreignCount": len(report["foreign"])})
    verified, wrong, sheets = report["verifiedSheets"], report["wrongSheets"], _sheets(report["totalSheets"])
    tiles = f"{report['found']}/{report['expected']} tiles"
    if not report["verified"]:
        whole = "the upload as a whole" if report["problems"] or report["foreign"] else ""
        blamed = " and ".join(part for part in (f"{wrong:,} of {sheets}" if wrong else "", whole) if part)
        yield f"wrong: {blamed}. Verified: {verified:,} of {sheets}, {tiles} found"
    elif verified:
        proof = "every tile read back" if report["deep"] else "every digest" if report["proof"] == "digest" else "names and sizes"
        others = "" if verified == report["totalSheets"] else "; the others are not ready"
        yield f"verified: {verified:,} of {sheets}, {tiles}, {proof}{others}"
    else:
        yield f"nothing to verify: none of {sheets} is ready" if report["totalSheets"] else "nothing to verify: there is no sheet yet"
    if report["proof"] == "names":
        yield "The bucket's ETags are no MD5s: the tiles' bytes are not proved, --deep reads them back."


def _findings(report: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("missing", "foreign", "empty"):
        names, count = report.get(kind, ()), report[f"{kind}Count"]
        if names:
            more = f" and {count - len(names):,} more" if count > len(names) else ""
            yield f"  {kind}: {', '.join(names)}{more}"
    for problem in report["problems"]:
        yield f"  {problem}"


class Tally:
    """The progress as the events so far tell it."""

    def __init__(self) -> None:
        self.head: Mapping[str, Any] = {}
        """The last event; its sheets are only those that changed."""
        self._sheets: dict[int, Mapping[str, Any]] = {}

    def apply(self, document: Mapping[str, Any]) -> list[tuple[str | None, Mapping[str, Any]]]:
        """Takes in a snapshot or a change.

        Returns:
            The sheets whose status it changed, each after the status that it had, or None if nothing was known of it.

        Raises:
            Refused: The server is of a newer release.
        """
        if document.get("schema", SCHEMA) > SCHEMA:
            msg = f"NewerSchema: the server sends schema {document['schema']}, this release reads up to {SCHEMA}"
            raise Refused(msg)
        changes = []
        for sheet in document["sheets"]:
            known = self._sheets.get(sheet["number"])
            before = known["status"] if known else None
            if before != sheet["status"]:
                changes.append((before, sheet))
            self._sheets[sheet["number"]] = sheet
        self.head = document
        return changes

    def sheets_in(self, *statuses: str) -> list[Mapping[str, Any]]:
        """The sheets in these states, by number."""
        return [sheet for _, sheet in sorted(self._sheets.items()) if sheet["status"] in statuses]

    @property
    def counted(self) -> str:
        """``17 of 37 sheets``."""
        return f"{self.head['completedPages']:,} of {_sheets(self.head['totalPages'])}"

    @property
    def forecast(self) -> str | None:
        """The forecast in one line, once there is one."""
        expected = self.head.get("forecast")
        if expected is None:
            return None
        size = size_range(expected["bytesLow"], expected["bytesHigh"])
        parts = (f"{expected['tiles']:,} tiles", size, f"about {about(expected['seconds'])}", operations(expected["dollars"]))
        return f"forecast: {', '.join(parts)}"

    def summary(self) -> str:
        """The state in one line: status, sheets, tiles, bytes, seconds and, at the end, dollars."""
        head = self.head
        reason = named(head["reason"], head["detail"])
        if not head["totalPages"]:
            return named(head["status"], reason)
        ready = self.sheets_in("ready")
        parts = [
            _sheets(head["totalPages"]) if head["completedPages"] == head["totalPages"] else self.counted,
            f"{sum(sheet['tiles'] for sheet in ready):,} tiles",
            file_size(sum(sheet["bytes"] for sheet in ready)),
        ]
        if head["startedAt"] and head["completedAt"]:
            if receipt := head.get("receipt"):
                parts += [f"{receipt['seconds']:,.1f} s", operations(receipt["dollars"])]
            else:
                took = datetime.fromisoformat(head["completedAt"]) - datetime.fromisoformat(head["startedAt"])
                parts.append(f"{took.total_seconds():,.1f} s")
        if noted := sum(bool(sheet.get("notes")) for sheet in ready):
            parts.append(f"{_sheets(noted)} with notes")
        return f"{head['status']}: {', '.join(parts)}{f'; {reason}' if reason else ''}"


def _sheets(count: int) -> str:
    return f"{count:,} sheet{'' if count == 1 else 's'}"


class View(ABC):
    """Tells a person or a program how an upload goes."""

    def __init__(self) -> None:
        self.progress = Tally()

    def sending(self, size_bytes: int) -> AbstractContextManager[Callable[[int], None]]:
        """Around one try to send a file; the function is told how many bytes more have gone."""
        return nullcontext(lambda _: None)

    def accepted(self, answer: Mapping[str, Any], page: str) -> None:
        """The server took a file: REF, then the page's address, alone on their lines."""
        print(answer["ref"])
        print(page)

    def new_forecast(self, before: Mapping[str, Any]) -> str | None:
        """The forecast, when the last event has brought it to an upload that runs; ``before`` is the event before that."""
        return self.progress.forecast if self.progress.head["status"] in RUNNING and not before.get("forecast") else None

    @abstractmethod
    def event(self, name: str, document: Mapping[str, Any]) -> None:
        """The stream brought ``snapshot``, ``change`` or ``end``."""

    def trouble(self, sentence: str) -> None:
        """The connection is lost; an empty sentence says that it is back."""
        say(sentence or "connected again", sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027 - only a terminal has something to restore
        """Leaves the terminal as it was found."""


class JsonView(View):
    """One JSON object a line, as the server said it."""

    def accepted(self, answer: Mapping[str, Any], page: str) -> None:
        """The 202 answer."""
        print_json("accepted", answer)

    def event(self, name: str, document: Mapping[str, Any]) -> None:
        """The event and its data."""
        self.progress.apply(document)
        print_json(name, document)


class LinesView(View):
    """One plain line for each change that means something."""

    def event(self, name: str, document: Mapping[str, Any]) -> None:
        """What it changed: the status, sheets that are ready or failed, a warning."""
        before, ready = self.progress.head, len(self.progress.sheets_in("ready"))
        changes = self.progress.apply(document)
        status, total, warning = document["status"], document["totalPages"], document["warning"]
        if status in RUNNING and status != before.get("status"):
            say(f"{status}: {self.progress.counted} ready" if total else status)
        if line := self.new_forecast(before):
            say(line)
        for status_before, sheet in changes:
            ready += (sheet["status"] == "ready") - (status_before == "ready")
            if line := notable(status_before, sheet):
                say(line)
            elif sheet["status"] == "ready" and before:  # those of the first snapshot are in the count above
                say(f"{sheet_name(sheet)}: ready, {ready:,} of {total:,}")
                for line in sheet_notes(sheet):
                    say(line)
        if warning and _but_attempt(warning) != _but_attempt(before.get("warning")):
            say(f"warning: {warning}")


def _but_attempt(warning: str | None) -> str:
    """A warning without its ``(attempt 7)``: one more attempt is no news."""
    return re.sub(r" \(attempt \d+\)", "", warning or "")
