"""Shows an upload while it runs: as JSON for programs, or as plain lines for people. ``terminal`` has the view with a progress bar."""
# ruff: noqa: T201 - talks to a terminal

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Any, Self

from activities.bucket.records import SCHEMA
from api.cli.errors import Refused, join_by_colon
from api.cli.words import (
    change_line,
    duration_range,
    file_size,
    operations_cost,
    print_json,
    say,
    sheet_count,
    sheet_name,
    sheet_notes,
    size_range,
)

RUNNING = ("queued", "processing")


class Tally:
    """The progress of an upload, put together from its events."""

    def __init__(self) -> None:
        self.head: Mapping[str, Any] = {}
        """The data of the last event, which may hold only the sheets that changed."""
        self._sheets: dict[int, Mapping[str, Any]] = {}

    def apply(self, document: Mapping[str, Any]) -> list[tuple[str | None, Mapping[str, Any]]]:
        """Takes in a snapshot or a change.

        Returns:
            The sheets whose status changed, each with its previous status: None for a new sheet.

        Raises:
            Refused: The server sends a newer schema than this release can read.
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
    def ready_count(self) -> str:
        """How many sheets are ready: ``17 of 37 sheets``."""
        return f"{self.head['completedPages']:,} of {sheet_count(self.head['totalPages'])}"

    @property
    def forecast(self) -> str | None:
        """The forecast in one line; None before the pages are counted."""
        expected = self.head.get("forecast")
        if expected is None:
            return None
        size = size_range(expected["bytesLow"], expected["bytesHigh"])
        seconds = expected["seconds"]
        time = duration_range(expected.get("secondsLow") or seconds, expected.get("secondsHigh") or seconds)
        parts = (f"{expected['tiles']:,} tiles", size, time, operations_cost(expected["dollars"]))
        return f"forecast: {', '.join(parts)}"

    def summary(self) -> str:
        """The state in one line: status, sheets, tiles, bytes, seconds and, at the end, dollars."""
        head = self.head
        reason = join_by_colon(head["reason"], head["detail"])
        if not head["totalPages"]:
            return join_by_colon(head["status"], reason)
        ready = self.sheets_in("ready")
        parts = [
            sheet_count(head["totalPages"]) if head["completedPages"] == head["totalPages"] else self.ready_count,
            f"{sum(sheet['tiles'] for sheet in ready):,} tiles",
            file_size(sum(sheet["bytes"] for sheet in ready)),
        ]
        if head["startedAt"] and head["completedAt"]:
            if receipt := head.get("receipt"):
                parts += [f"{receipt['seconds']:,.1f} s", operations_cost(receipt["dollars"])]
            else:
                took = datetime.fromisoformat(head["completedAt"]) - datetime.fromisoformat(head["startedAt"])
                parts.append(f"{took.total_seconds():,.1f} s")
        if noted := sum(bool(sheet.get("notes")) for sheet in ready):
            parts.append(f"{sheet_count(noted)} with notes")
        return f"{head['status']}: {', '.join(parts)}{f'; {reason}' if reason else ''}"


class View(ABC):
    """Tells a person or a program how an upload goes."""

    def __init__(self) -> None:
        self.progress = Tally()

    def sending(self, size_bytes: int) -> AbstractContextManager[Callable[[int], None]]:
        """Surrounds one try to send a file. It gives a function, to call with the number of bytes sent since the last call."""
        return nullcontext(lambda _: None)

    def show_accepted(self, answer: Mapping[str, Any], page: str) -> None:
        """Shows the REF and the page's address of an accepted upload, each on a line of its own."""
        print(answer["ref"])
        print(page)

    def new_forecast(self, before: Mapping[str, Any]) -> str | None:
        """The forecast, if the last event was the first to have it and the upload still runs; ``before`` is the previous event."""
        return self.progress.forecast if self.progress.head["status"] in RUNNING and not before.get("forecast") else None

    @abstractmethod
    def show_event(self, name: str, document: Mapping[str, Any]) -> None:
        """Shows an event of the stream: ``snapshot``, ``change`` or ``end``."""

    def show_trouble(self, sentence: str) -> None:
        """Shows why the connection is lost; an empty sentence means that it is back."""
        say(sentence or "connected again", sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027 - only a terminal has something to restore
        """Leaves the terminal as it was found."""


class JsonView(View):
    """One JSON object a line, with the server's own data."""

    def show_accepted(self, answer: Mapping[str, Any], page: str) -> None:
        """Prints the server's answer."""
        print_json("accepted", answer)

    def show_event(self, name: str, document: Mapping[str, Any]) -> None:
        """Prints the event's name and data."""
        self.progress.apply(document)
        print_json(name, document)


class LinesView(View):
    """One plain line for each change that a person should see."""

    def show_event(self, name: str, document: Mapping[str, Any]) -> None:
        """Prints a new status, the forecast, sheets that became ready or failed, and a new warning."""
        before, ready = self.progress.head, len(self.progress.sheets_in("ready"))
        changes = self.progress.apply(document)
        status, total, warning = document["status"], document["totalPages"], document["warning"]
        if status in RUNNING and status != before.get("status"):
            say(f"{status}: {self.progress.ready_count} ready" if total else status)
        if line := self.new_forecast(before):
            say(line)
        for status_before, sheet in changes:
            ready += (sheet["status"] == "ready") - (status_before == "ready")
            if line := change_line(status_before, sheet):
                say(line)
            elif sheet["status"] == "ready" and before:  # the first snapshot's sheets are in the count above
                say(f"{sheet_name(sheet)}: ready, {ready:,} of {total:,}")
                for line in sheet_notes(sheet):
                    say(line)
        if warning and _without_attempt(warning) != _without_attempt(before.get("warning")):
            say(f"warning: {warning}")


def _without_attempt(warning: str | None) -> str:
    """A warning without its ``(attempt 7)``, because a further attempt is no reason to print it again."""
    return re.sub(r" \(attempt \d+\)", "", warning or "")
