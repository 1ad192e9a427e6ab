"""Shows an upload while it runs: as JSON for programs, as plain lines for people. ``terminal`` has the view with a progress bar."""
# ruff: noqa: T201 - talks to a terminal

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Any, Self

from activities.bucket.records import SCHEMA
from api.cli.errors import Refused, named
from api.cli.words import duration, file_size, notable, operations, print_json, say, sheet_count, sheet_name, sheet_notes, size_range

RUNNING = ("queued", "processing")


class Tally:
    """The progress of an upload, put together from its events."""

    def __init__(self) -> None:
        self.head: Mapping[str, Any] = {}
        """The last event; it holds only the sheets that changed."""
        self._sheets: dict[int, Mapping[str, Any]] = {}

    def apply(self, document: Mapping[str, Any]) -> list[tuple[str | None, Mapping[str, Any]]]:
        """Takes in a snapshot or a change.

        Returns:
            The sheets whose status changed, each with its status before, which is None for a sheet that is new here.

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
        return f"{self.head['completedPages']:,} of {sheet_count(self.head['totalPages'])}"

    @property
    def forecast(self) -> str | None:
        """The forecast in one line, once there is one."""
        expected = self.head.get("forecast")
        if expected is None:
            return None
        size = size_range(expected["bytesLow"], expected["bytesHigh"])
        parts = (f"{expected['tiles']:,} tiles", size, f"about {duration(expected['seconds'])}", operations(expected["dollars"]))
        return f"forecast: {', '.join(parts)}"

    def summary(self) -> str:
        """The state in one line: status, sheets, tiles, bytes, seconds and, at the end, dollars."""
        head = self.head
        reason = named(head["reason"], head["detail"])
        if not head["totalPages"]:
            return named(head["status"], reason)
        ready = self.sheets_in("ready")
        parts = [
            sheet_count(head["totalPages"]) if head["completedPages"] == head["totalPages"] else self.counted,
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
            parts.append(f"{sheet_count(noted)} with notes")
        return f"{head['status']}: {', '.join(parts)}{f'; {reason}' if reason else ''}"


class View(ABC):
    """Tells a person or a program how an upload goes."""

    def __init__(self) -> None:
        self.progress = Tally()

    def sending(self, size_bytes: int) -> AbstractContextManager[Callable[[int], None]]:
        """Surrounds one try to send a file; the function it gives is called with the number of bytes sent since the last call."""
        return nullcontext(lambda _: None)

    def accepted(self, answer: Mapping[str, Any], page: str) -> None:
        """The server took a file: shows its REF, then the page's address, each on a line of its own."""
        print(answer["ref"])
        print(page)

    def new_forecast(self, before: Mapping[str, Any]) -> str | None:
        """The forecast, when the last event has brought it and the upload still runs; ``before`` is the event before the last."""
        return self.progress.forecast if self.progress.head["status"] in RUNNING and not before.get("forecast") else None

    @abstractmethod
    def event(self, name: str, document: Mapping[str, Any]) -> None:
        """Shows an event of the stream: ``snapshot``, ``change`` or ``end``."""

    def trouble(self, sentence: str) -> None:
        """Says that the connection is lost; an empty sentence says that it is back."""
        say(sentence or "connected again", sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027 - only a terminal has something to restore
        """Leaves the terminal as it was found."""


class JsonView(View):
    """One JSON object a line, with the server's own data."""

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
        """Prints the changes: of the status, sheets that are ready or failed, a warning."""
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
            elif sheet["status"] == "ready" and before:  # the sheets of the first snapshot are in the count above
                say(f"{sheet_name(sheet)}: ready, {ready:,} of {total:,}")
                for line in sheet_notes(sheet):
                    say(line)
        if warning and _but_attempt(warning) != _but_attempt(before.get("warning")):
            say(f"warning: {warning}")


def _but_attempt(warning: str | None) -> str:
    """A warning without its ``(attempt 7)``, for a further attempt is no news."""
    return re.sub(r" \(attempt \d+\)", "", warning or "")
