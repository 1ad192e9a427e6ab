"""The command line ``sitelink``: the API's client for people and scripts.

Oddities, all on purpose:

1. httpx and rich are imported where they are used: ``sitelink --help`` must not wait a second for them. Nothing here imports Temporal.
2. The event stream is cut into lines here: httpx's own ``iter_lines`` also splits at U+2028 and others, which may stand in a sheet's title.
3. Text from the server loses its unprintable characters before a terminal sees it: a file name may hold escape sequences.
4. For a server on this machine, the environment's proxies are not asked.
"""

import argparse
import json
import os
import re
import signal
import stat
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from activities.keys import PlanRef, UploadRef

if TYPE_CHECKING:
    import httpx
    from rich.console import Group

T = TypeVar("T")

COMPLETE, NOT_COMPLETE, WRONG_USE, NOT_REACHED, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 130, 141

DEFAULT_PLAN = "local/demo/plan"
DEFAULT_URL = "http://127.0.0.1:8000"
CHUNK_BYTES = 256 * 1024
SILENCE_S = 45
"""Three of the server's heartbeats: a stream that is silent for longer is dead."""
UPLOAD_TRIES = 5
SCHEMA = 1
RUNNING = ("queued", "processing")

HELP = """\
Sends construction plans to a SiteLink server and watches how they become Deep Zoom tiles.

REF is org/project/plan/upload, as `sitelink upload` and `sitelink list` print it.
"""
EXIT_CODES = """\
exit codes:
  0    the upload is complete. From status: complete, or still running; from list, cancel, reconcile and retry: the server agreed
  1    the upload is partial, failed or cancelled, or the server refused the file or the request
  2    wrong use: a malformed REF, a missing file, an option out of its range
  3    the server was not reached
  130  interrupted by Ctrl-C; an accepted upload goes on

environment:
  SITELINK_URL       the server; default: the stack of SITELINK_DATA_DIR (default `var`), else http://127.0.0.1:8000
  SITELINK_TOKEN     sent as a bearer token
"""


class CommandError(Exception):
    """Ends the command with one sentence on stderr."""

    exit_code = NOT_COMPLETE


class Refused(CommandError):
    """The server answered, and said no."""


class Unavailable(Refused):
    """The server answered that it cannot now."""


class WrongUse(CommandError):
    """The command cannot mean anything as it was given."""

    exit_code = WRONG_USE


class NotReached(CommandError):
    """The server did not answer, or cannot now.

    Args:
        message: A sentence.
        connected: Whether it had answered at all before the connection broke.
    """

    exit_code = NOT_REACHED

    def __init__(self, message: str, *, connected: bool) -> None:
        super().__init__(message)
        self.connected = connected


# The event stream


@dataclass(frozen=True)
class ServerEvent:
    """One event of the stream."""

    event: str
    data: str


class EventParser:
    """Reads a ``text/event-stream``, in whatever pieces it comes.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    _LINE_END = re.compile(rb"\r\n|\n|\r")

    def __init__(self) -> None:
        self.last_event_id = ""
        """Of the last event that came whole: what a reconnect sends."""
        self.retry_s: float | None = None
        """The delay before a reconnect, when the server asked for one."""
        self._pieces: list[bytes] = []
        self._after_cr = False
        self._first_line = True
        self._reset()

    def _reset(self) -> None:
        self._event, self._data = "", list[str]()
        self._id = self.last_event_id

    def restart(self) -> None:
        """Forgets what was begun: the next bytes are those of a new connection."""
        self._pieces.clear()
        self._after_cr, self._first_line = False, True
        self._reset()

    def feed(self, chunk: bytes) -> Iterator[ServerEvent]:
        """Yields the events that ``chunk`` completes."""
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if not chunk:
            return
        self._after_cr = chunk.endswith(b"\r")
        head, *lines = self._LINE_END.split(chunk)
        self._pieces.append(head)
        for line in lines:
            whole = b"".join(self._pieces)
            self._pieces = [line]
            if event := self._line(whole):
                yield event

    def _line(self, raw: bytes) -> ServerEvent | None:
        if self._first_line:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
            self._first_line = False
        if not raw:
            return self._dispatch()
        name, _, value = raw.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_s = int(value) / 1000
        return None

    def _dispatch(self) -> ServerEvent | None:
        self.last_event_id = self._id
        event = ServerEvent(self._event or "message", "\n".join(self._data)) if self._data else None
        self._reset()
        return event


class Patience:
    """How long to wait before the next try, and when to stop trying.

    Args:
        limit_s: Seconds without a sign of life after which there is no next try.
        clock: Seconds that only grow.
    """

    def __init__(self, limit_s: float = 60, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._clock = limit_s, clock
        self._failures = 0
        self._alive_at = clock()

    def alive(self) -> None:
        """The server gave a sign of life."""
        self._failures = 0
        self._alive_at = self._clock()

    def delay_s(self, first_s: float = 1) -> float | None:
        """Seconds to wait after one more failure, 1 to 10 and doubled each time; None when it is time to give up."""
        if self._clock() - self._alive_at >= self._limit_s:
            return None
        delay_s = min(10.0, max(1.0, first_s) * float(2**self._failures))
        self._failures += 1
        return delay_s


# The server


class Server:
    """The API over HTTP: every failure leaves as a CommandError.

    Args:
        url: Its address.
        token: Sent as a bearer token, unless empty.

    Raises:
        WrongUse: The address is no HTTP address, or the token cannot be sent.
    """

    def __init__(self, url: str, token: str = "") -> None:
        import httpx

        self.url = url.rstrip("/")
        try:
            address = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            msg = f"the server's address {url!r} cannot be read: {error}"
            raise WrongUse(msg) from error
        if address.scheme not in ("http", "https") or not address.host:
            msg = f"the server's address {url!r} does not begin with http://host or https://host"
            raise WrongUse(msg)
        if not re.fullmatch(r"[!-~]*", token):
            # Said here, for httpx would show the token in its message.
            msg = "SITELINK_TOKEN holds characters that no token has"
            raise WrongUse(msg)
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(60, connect=10),
            trust_env=address.host not in ("localhost", "127.0.0.1", "::1"),
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Server":
        """``SITELINK_URL``, else the running stack of the data directory, else the default port of this machine."""
        return cls(environ.get("SITELINK_URL") or _stack_url(environ) or DEFAULT_URL, environ.get("SITELINK_TOKEN", ""))

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def page(self, ref: UploadRef) -> str:
        """The address of the upload's page."""
        return f"{self.url}/?ref={ref}"

    def request(self, method: str, path: str) -> dict[str, Any]:
        """Sends a request without a body; the JSON object that answers it."""
        with self._named_errors():
            return self._document(self._client.request(method, self.url + path))

    def upload(self, plan: PlanRef, file: "LocalFile", query: Mapping[str, str], key: str, sent: Callable[[int], None]) -> dict[str, Any]:
        """Sends a file in constant memory.

        Args:
            plan: Where it goes.
            file: The file.
            query: Options of the upload.
            key: The same for every try of one upload.
            sent: Told how many bytes more have gone.
        """
        headers = {"Content-Type": "application/pdf", "Content-Length": str(file.size_bytes), "Idempotency-Key": key}
        with self._named_errors():
            response = self._client.post(
                self.url + _uploads_path(plan),
                params={"filename": file.name, **query},
                headers=headers,
                content=file.chunks(sent),
                timeout=300,  # the answer comes when the bucket has it all
            )
            return self._document(response)

    @contextmanager
    def events(self, ref: UploadRef, last_event_id: str) -> Iterator[Iterator[bytes] | None]:
        """The bytes of the event stream, as they come; None when the server says that nothing follows ``last_event_id``."""
        import httpx

        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Cache-Control": "no-store"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        timeout = httpx.Timeout(10, read=SILENCE_S)
        with (
            self._named_errors(),
            self._client.stream("GET", f"{self.url}{_upload_path(ref)}/events", headers=headers, timeout=timeout) as response,
        ):
            if response.status_code == httpx.codes.NO_CONTENT:
                yield None
                return
            if not response.is_success:
                response.read()
                raise _refusal(response)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise self.foreign()
            yield response.iter_bytes()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            msg = (
                f"server not reached: nothing answers at {self.url} ({_reason(error)}). "
                "`make run` starts a server here, SITELINK_URL names another"
            )
            raise NotReached(msg, connected=False) from error
        except httpx.TransportError as error:
            msg = f"the connection to {self.url} broke ({_reason(error)})"
            raise NotReached(msg, connected=True) from error

    def _document(self, response: "httpx.Response") -> dict[str, Any]:
        if not response.is_success:
            raise _refusal(response)
        try:
            document = response.json()
        except ValueError as error:
            raise self.foreign() from error
        if not isinstance(document, dict):
            raise self.foreign()
        return document

    def foreign(self) -> Refused:
        """The error that says that another kind of server answers."""
        return Refused(f"what answers at {self.url} is no SiteLink server")


def _stack_url(environ: Mapping[str, str]) -> str | None:
    file = Path(environ.get("SITELINK_DATA_DIR") or "var") / "stack.json"
    try:
        address = json.loads(file.read_bytes())["api"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no stack runs there
    return address if isinstance(address, str) else None


def _uploads_path(plan: PlanRef) -> str:
    return f"/v1/organizations/{plan.organization}/projects/{plan.project}/plans/{plan.plan}/uploads"


def _upload_path(ref: UploadRef) -> str:
    return f"{_uploads_path(ref.plan_ref)}/{ref.upload}"


def _reason(error: Exception) -> str:
    return printable(str(error)) or type(error).__name__


def _refusal(response: "httpx.Response") -> CommandError:
    """The error that an answer stands for: ``NotAPdf: sentence`` when it is a problem document (RFC 9457)."""
    sentence = f"HTTP {response.status_code} {response.reason_phrase}"
    try:
        problem = response.json()
        sentence = named(problem["type"], problem.get("detail") or problem.get("title"))
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # no problem document: the status line has to do
    if response.status_code == 429 or response.status_code >= 500:
        return Unavailable(sentence)
    return WrongUse(sentence) if response.status_code == 400 else Refused(sentence)


@dataclass(frozen=True)
class LocalFile:
    """A file to send.

    Args:
        path: Where it is.
        size_bytes: Its size when it was looked at.
    """

    path: Path
    size_bytes: int

    @classmethod
    def at(cls, path: Path) -> "LocalFile":
        """Looks at a path.

        Raises:
            WrongUse: There is no readable file.
        """
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                msg = f"{printable(str(path))} is not a file"
                raise WrongUse(msg)
            path.open("rb").close()
        except OSError as error:
            msg = f"{printable(str(path))}: {error.strerror}"
            raise WrongUse(msg) from error
        return cls(path, status.st_size)

    @property
    def name(self) -> str:
        """Its name for the server; bytes that are no UTF-8 are replaced."""
        return os.fsencode(self.path.name).decode("utf-8", "replace")

    def chunks(self, sent: Callable[[int], None]) -> Iterator[bytes]:
        """Its bytes, as many as were promised.

        Raises:
            WrongUse: It has become shorter.
        """
        left = self.size_bytes
        with self.path.open("rb") as file:
            while left:
                chunk = file.read(min(CHUNK_BYTES, left))
                if not chunk:
                    msg = f"{printable(str(self.path))} became shorter while it was sent"
                    raise WrongUse(msg)
                left -= len(chunk)
                yield chunk
                sent(len(chunk))


# What is shown


def printable(text: str) -> str:
    """``text`` without what could steer a terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def named(reason: str | None, detail: str | None) -> str:
    """``NotAPdf: sentence``, or as much of it as there is."""
    return printable(": ".join(part for part in (reason, detail) if part))


def file_size(size_bytes: int) -> str:
    """Bytes for a person: ``12.3 MB``."""
    if size_bytes < 1000:
        return f"{size_bytes} bytes"
    exponent, unit = next(
        ((exponent, unit) for exponent, unit in ((1, "kB"), (2, "MB")) if size_bytes < 999.95 * 1000**exponent), (3, "GB")
    )
    return f"{size_bytes / 1000**exponent:,.1f} {unit}"


def sheet_line(sheet: Mapping[str, Any]) -> str:
    """A sheet's number and, if it has one, its title."""
    title = printable(sheet.get("title") or "")
    return f"sheet-{sheet['number']} {title}".rstrip()


@dataclass(frozen=True)
class SheetChange:
    """A sheet that changed, and what it was before; None when nothing was known of it."""

    before: str | None
    sheet: Mapping[str, Any]


class Tally:
    """The progress as the events so far tell it."""

    def __init__(self) -> None:
        self.head: dict[str, Any] = {}
        """The last event without its sheets."""
        self.sheets: dict[int, dict[str, Any]] = {}

    def apply(self, document: Mapping[str, Any]) -> list[SheetChange]:
        """Takes in a snapshot or a change; the sheets whose status it changed.

        Raises:
            Refused: The server is of a newer release.
        """
        if document.get("schema", SCHEMA) > SCHEMA:
            msg = f"NewerSchema: the server sends schema {document['schema']}, this release reads up to {SCHEMA}"
            raise Refused(msg)
        changes = []
        for sheet in document["sheets"]:
            before = self.sheets.get(sheet["number"])
            self.sheets[sheet["number"]] = sheet
            if before is None or before["status"] != sheet["status"]:
                changes.append(SheetChange(before["status"] if before else None, sheet))
        self.head = {name: value for name, value in document.items() if name != "sheets"}
        return changes

    def sheets_in(self, *statuses: str) -> list[dict[str, Any]]:
        """The sheets in these states, by number."""
        return [sheet for _, sheet in sorted(self.sheets.items()) if sheet["status"] in statuses]

    @property
    def counted(self) -> str:
        """``17 of 37 sheets``."""
        return f"{self.head['completedPages']:,} of {_sheets(self.head['totalPages'])}"

    def summary(self) -> str:
        """The state in one line: status, sheets, tiles, bytes, seconds."""
        head = self.head
        if not head["totalPages"]:
            return f"{head['status']}{_prefixed(': ', named(head.get('reason'), head.get('detail')))}"
        ready = self.sheets_in("ready")
        parts = [
            _sheets(head["totalPages"]) if head["completedPages"] == head["totalPages"] else self.counted,
            f"{sum(sheet.get('tiles') or 0 for sheet in ready):,} tiles",
            file_size(sum(sheet.get("bytes") or 0 for sheet in ready)),
        ]
        if head.get("startedAt") and head.get("completedAt"):
            seconds = (datetime.fromisoformat(head["completedAt"]) - datetime.fromisoformat(head["startedAt"])).total_seconds()
            parts.append(f"{seconds:,.1f} s")
        return f"{head['status']}: {', '.join(parts)}{_prefixed('; ', named(head.get('reason'), head.get('detail')))}"


def _sheets(count: int) -> str:
    return f"{count:,} sheet{'' if count == 1 else 's'}"


def _prefixed(prefix: str, text: str) -> str:
    return f"{prefix}{text}" if text else ""


class View(ABC):
    """Tells a person or a program how an upload goes."""

    def __init__(self) -> None:
        self.progress = Tally()

    @abstractmethod
    def accepted(self, answer: Mapping[str, Any], page: str) -> None:
        """The server took a file."""

    @abstractmethod
    def event(self, name: str, document: dict[str, Any]) -> None:
        """The stream brought ``snapshot``, ``change`` or ``end``."""

    @abstractmethod
    def trouble(self, sentence: str) -> None:
        """The connection is lost; an empty sentence says that it is back."""

    def sending(self, file: LocalFile) -> AbstractContextManager[Callable[[int], None]]:
        """Around one try to send a file; the function is told how many bytes more have gone."""
        return nullcontext(lambda _: None)

    def __enter__(self) -> "View":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 - only a terminal has something to restore
        """Leaves the terminal as it was found."""


class JsonView(View):
    """One JSON object a line, as the server said it."""

    def accepted(self, answer: Mapping[str, Any], page: str) -> None:
        """The 202 answer."""
        print_json("accepted", answer)

    def event(self, name: str, document: dict[str, Any]) -> None:
        """The event and its data."""
        self.progress.apply(document)
        print_json(name, document)

    def trouble(self, sentence: str) -> None:
        """On stderr."""
        _print_trouble(sentence)


def print_json(event: str, data: object) -> None:
    """Prints one line of ``--json``; ASCII, so that no locale can spoil it."""
    print(json.dumps({"event": event, "data": data}))


def _print_trouble(sentence: str) -> None:
    print(sentence or "connected again", file=sys.stderr)


class LinesView(View):
    """One plain line for each change that means something."""

    def __init__(self) -> None:
        super().__init__()
        self._status = self._warning = ""

    def accepted(self, answer: Mapping[str, Any], page: str) -> None:
        """REF, then the page's address, alone on their lines."""
        print(answer["ref"])
        print(page)

    def event(self, name: str, document: dict[str, Any]) -> None:
        """What it changed: the status, sheets that are ready or failed, a warning."""
        progress = self.progress
        first = not progress.head
        changes = progress.apply(document)
        head = progress.head
        if head["status"] in RUNNING and head["status"] != self._status:
            print(f"{head['status']}: {progress.counted} ready" if head["totalPages"] else head["status"])
        self._status = head["status"]
        ready = len(progress.sheets_in("ready")) - sum(change.sheet["status"] == "ready" for change in changes)
        for change in changes:
            if change.sheet["status"] == "ready":
                ready += 1
                if not first:  # those that were ready before are in the count above
                    print(f"{sheet_line(change.sheet)}: ready, {ready:,} of {head['totalPages']:,}")
            elif line := notable(change):
                print(line)
        warning = printable(head.get("warning") or "")
        if warning and warning != self._warning:
            print(f"warning: {warning}")
        self._warning = warning

    def trouble(self, sentence: str) -> None:
        """On stderr."""
        _print_trouble(sentence)


def notable(change: SheetChange) -> str | None:
    """What to say about a sheet that failed, or is not ready or failed any more; None about any other."""
    sheet = change.sheet
    if sheet["status"] == "failed":
        return f"{sheet_line(sheet)}: failed, {named(sheet.get('reason'), sheet.get('detail'))}"
    if change.before in ("ready", "failed") and sheet["status"] != "ready":
        return f"{sheet_line(sheet)}: is done again"
    return None


class TerminalView(View):
    """A bar, the sheets in work below it, and above it a line for each sheet that fails."""

    _MOST_SHEETS = 8

    def __init__(self) -> None:
        super().__init__()
        self._trouble = self._warning = ""
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._console = Console(highlight=False, markup=False, emoji=False)
        self._bar = Bar(
            BarColumn(bar_width=32),
            TextColumn("{task.fields[words]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=self._console,
        )
        self._task = self._bar.add_task("", total=None, words="")
        self._live = Live(console=self._console, transient=True, refresh_per_second=4, get_renderable=self._render)

    def close(self) -> None:
        """Shows the cursor again."""
        self._live.stop()

    def accepted(self, answer: Mapping[str, Any], page: str) -> None:
        """REF, then the page's address, alone on their lines."""
        print(answer["ref"])
        print(page)

    @contextmanager
    def sending(self, file: LocalFile) -> Iterator[Callable[[int], None]]:
        """A bar of bytes."""
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bar

        with Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=32),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
        ) as bar:
            task = bar.add_task("sending", total=file.size_bytes)
            yield lambda size_bytes: bar.advance(task, size_bytes)

    def event(self, name: str, document: dict[str, Any]) -> None:
        """Moves the bar."""
        first = not self.progress.head
        changes = self.progress.apply(document)
        head = self.progress.head
        self._trouble = ""
        self._warning = printable(head.get("warning") or "")
        if first:
            # Only from here on does what completes say anything about the speed.
            self._bar.reset(self._task, total=head["totalPages"] or None, completed=head["completedPages"])
            self._live.start()
        for change in changes:
            if line := notable(change):
                self._console.print(line, style="red" if change.sheet["status"] == "failed" else "yellow")
        self._bar.update(self._task, total=head["totalPages"] or None, completed=head["completedPages"], words=self._words())

    def trouble(self, sentence: str) -> None:
        """Below the bar, while it lasts."""
        self._trouble = sentence
        if sentence and not self._live.is_started:
            print(sentence)

    def _words(self) -> str:
        head = self.progress.head
        if not head["totalPages"]:
            return "waiting for a worker" if head["status"] == "queued" else "counting the pages"
        speed = self._bar.tasks[0].speed
        return f"{head['progress']} %  {self.progress.counted}{f'  {speed:.1f} sheets/s' if speed else ''}"

    def _render(self) -> "Group":
        from rich.console import Group
        from rich.text import Text

        lines = [Text(f"  {sheet['status']:<9}  {sheet_line(sheet)}", style="dim") for sheet in self._in_work()]
        most = max(0, min(self._MOST_SHEETS, self._console.height - 5))
        if len(lines) > most:
            lines[most:] = [Text(f"  and {len(lines) - most} more", style="dim")]
        lines += [Text(line, style="yellow") for line in (self._warning, self._trouble) if line]
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(self._bar, *lines)

    def _in_work(self) -> list[dict[str, Any]]:
        return self.progress.sheets_in("uploading") + self.progress.sheets_in("tiling")


# The commands


def follow(server: Server, ref: UploadRef, view: View, patience: Patience, *, reached: bool = False) -> None:
    """Shows an upload's events until its end, through any lost connection.

    Args:
        server: The API.
        ref: The upload.
        view: What shows them.
        patience: When to give up.
        reached: Whether the server has answered already; if not, the first connection must succeed.

    Raises:
        NotReached: It did not, or patience came to its end.
        CommandError: The server refused.
    """
    parser = EventParser()
    lost = False
    while True:
        trouble = "the server ended the stream"
        try:
            with server.events(ref, parser.last_event_id) as chunks:
                reached = True
                if chunks is None:
                    document = server.request("GET", _upload_path(ref))
                    if document["status"] not in RUNNING:
                        view.event("end", document)
                        return
                if lost:
                    view.trouble("")
                    lost = False
                parser.restart()
                for chunk in chunks or ():
                    patience.alive()
                    for event in parser.feed(chunk):
                        if event.event in ("snapshot", "change", "end"):
                            view.event(event.event, _event_data(server, event))
                        if event.event == "end":
                            return
        except NotReached as error:
            if not reached and not error.connected:
                raise
            trouble = str(error)
        except Unavailable as error:
            trouble = f"the server answers {error}"
        delay_s = patience.delay_s(parser.retry_s or 1)
        if delay_s is None:
            msg = f"server not reached any more: {trouble}"
            raise NotReached(msg, connected=reached)
        view.trouble(f"trying again in {delay_s:.0f} s: {trouble}")
        lost = True
        time.sleep(delay_s)


def _event_data(server: Server, event: ServerEvent) -> dict[str, Any]:
    try:
        document = json.loads(event.data)
    except ValueError as error:
        raise server.foreign() from error
    if not isinstance(document, dict) or "sheets" not in document:
        raise server.foreign()
    return document


def send(server: Server, plan: PlanRef, file: LocalFile, query: Mapping[str, str], view: View) -> dict[str, Any]:
    """Sends a file, again if the connection breaks: the key makes it one upload all the same.

    Raises:
        CommandError: The server was not reached or refused.
    """
    key = str(uuid.uuid4())
    patience = Patience()
    tries = 0
    reached = False
    while True:
        try:
            with view.sending(file) as sent:
                return server.upload(plan, file, query, key, sent)
        except NotReached as error:
            reached = reached or error.connected
            tries += error.connected
            if error.connected:
                patience.alive()
            delay_s = patience.delay_s()
            if not reached or tries == UPLOAD_TRIES or delay_s is None:
                raise
            view.trouble(f"sending again in {delay_s:.0f} s: {error}")
            time.sleep(delay_s)


def watch(server: Server, ref: UploadRef, view: View, *, reached: bool = False) -> int:
    """Shows an upload until its end; the exit code is its outcome."""
    try:
        with view:
            follow(server, ref, view, Patience(), reached=reached)
    except KeyboardInterrupt:
        print(f"\nThe upload goes on. Watch it again: sitelink watch {ref}", file=sys.stderr)
        return INTERRUPTED
    if not isinstance(view, JsonView):
        print(view.progress.summary())
        print(server.page(ref))
    return outcome(view.progress.head["status"])


def outcome(status: str) -> int:
    """The exit code of an upload's status; one that still runs has not failed."""
    return COMPLETE if status == "complete" or status in RUNNING else NOT_COMPLETE


def choose_view(arguments: argparse.Namespace) -> View:
    """How to show an upload."""
    if arguments.json:
        return JsonView()
    return TerminalView() if arguments.terminal else LinesView()


def upload_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink upload``."""
    file = LocalFile.at(arguments.file)
    view = choose_view(arguments)
    query = {name: str(value) for name, value in vars(arguments).items() if name in OPTIONS.values() and value is not None}
    try:
        answer = send(server, arguments.to, file, query, view)
    except KeyboardInterrupt:
        print(f"\nInterrupted before the server's answer; `sitelink list {arguments.to}` shows what it has.", file=sys.stderr)
        return INTERRUPTED
    ref = UploadRef.parse(answer["ref"])
    view.accepted(answer, server.page(ref))
    return COMPLETE if arguments.no_watch else watch(server, ref, view, reached=True)


def watch_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink watch``."""
    return watch(server, arguments.ref, choose_view(arguments))


def status_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink status``."""
    document = server.request("GET", _upload_path(arguments.ref))
    if arguments.json:
        print_json("snapshot", document)
        return outcome(document["status"])
    progress = Tally()
    progress.apply(document)
    print(arguments.ref)
    print(f"  {printable(document['fileName'])}, {file_size(document['sizeBytes'])}, {document['createdAt']}")
    print(f"  {progress.summary()}")
    if document.get("warning"):
        print(f"  warning: {printable(document['warning'])}")
    for sheet in progress.sheets_in("tiling", "uploading"):
        print(f"  {sheet_line(sheet)}: {sheet['status']}")
    for sheet in progress.sheets_in("failed"):
        print(f"  {sheet_line(sheet)}: failed, {named(sheet.get('reason'), sheet.get('detail'))}")
    print(f"  {server.page(arguments.ref)}")
    return outcome(document["status"])


def ask_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink cancel`` and ``sitelink reconcile``."""
    answer = server.request("POST", f"{_upload_path(arguments.ref)}/{arguments.command}")
    _print_asked(arguments, answer)
    return COMPLETE


def retry_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink retry``: the sheets named, or every failed one."""
    sheets = arguments.sheets
    if not sheets:
        progress = Tally()
        progress.apply(server.request("GET", _upload_path(arguments.ref)))
        sheets = [sheet["number"] for sheet in progress.sheets_in("failed")]
    if not sheets:
        print("no sheet has failed", file=sys.stderr)
    for number in sheets:
        answer = server.request("POST", f"{_upload_path(arguments.ref)}/sheets/{number}/retry")
        _print_asked(arguments, answer, f" sheet-{number}")
    return COMPLETE


def _print_asked(arguments: argparse.Namespace, answer: Mapping[str, Any], what: str = "") -> None:
    if arguments.json:
        print_json("accepted", answer)
    else:
        print(f"asked to {arguments.command}{what}: sitelink watch {arguments.ref}")


def list_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink list``: newest first."""
    for upload in server.request("GET", _uploads_path(arguments.plan))["uploads"]:
        if arguments.json:
            print_json("upload", upload)
            continue
        counted = f"{upload['completedPages']:,}/{upload['totalPages']:,}"
        size = file_size(upload["sizeBytes"])
        print(f"{upload['ref']}  {upload['createdAt']}  {upload['status']:<10}  {counted:>9}  {size:>9}  {printable(upload['fileName'])}")
    return COMPLETE


# The arguments

Command = Callable[[Server, argparse.Namespace], int]

OPTIONS = {
    "--dpi": "dpi",
    "--tile-size": "tileSize",
    "--overlap": "overlap",
    "--quality": "quality",
    "--budget-bytes": "budgetBytes",
    "--window": "window",
}
"""The options of an upload, and their names in the API's query; their ranges are the server's."""

OPTION_HELP = {
    "dpi": "resolution of the tiles (300)",
    "tileSize": "pixels of a tile's side (256)",
    "overlap": "pixels that neighbouring tiles share (1)",
    "quality": "JPEG quality (85)",
    "budgetBytes": "most bytes of pixels a sheet may take before its resolution is lowered (1 GiB)",
    "window": "sheets in work at once (16)",
}


def build_parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    parser = argparse.ArgumentParser(
        prog="sitelink", description=HELP, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Command, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=summary, description=summary, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("--json", action="store_true", help='one {"event": ..., "data": ...} a line')
        command.set_defaults(run=run)
        return command

    upload = add("upload", upload_command, "send a PDF and watch it")
    upload.add_argument("file", type=Path, metavar="FILE")
    upload.add_argument("--to", type=_plan, default=DEFAULT_PLAN, metavar="ORG/PROJECT/PLAN", help=f"where it goes ({DEFAULT_PLAN})")
    upload.add_argument("--no-watch", action="store_true", help="leave when the server has accepted it")
    for flag, name in OPTIONS.items():
        upload.add_argument(flag, dest=name, type=int, metavar="N", help=OPTION_HELP[name])
    for name, run, summary in (
        ("watch", watch_command, "show an upload until its end"),
        ("status", status_command, "say how an upload stands now"),
        ("reconcile", ask_command, "compare the progress with what the bucket holds, and repair it"),
        ("cancel", ask_command, "stop an upload"),
        ("retry", retry_command, "try failed sheets again"),
    ):
        command = add(name, run, summary)
        command.add_argument("ref", type=_ref, metavar="REF")
        if name == "retry":
            command.add_argument("sheets", type=_sheet, nargs="*", metavar="SHEET", help="3 or sheet-3; every failed one if none is named")
    listing = add("list", list_command, "list a plan's uploads, newest first")
    listing.add_argument("plan", type=_plan, nargs="?", default=DEFAULT_PLAN, metavar="ORG/PROJECT/PLAN")
    return parser


def _argument(read: Callable[[str], T], text: str) -> T:
    try:
        return read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _plan(text: str) -> PlanRef:
    return _argument(PlanRef.parse, text)


def _ref(text: str) -> UploadRef:
    return _argument(UploadRef.parse, text)


def _sheet(text: str) -> int:
    number = text.removeprefix("sheet-")
    if not (number.isascii() and number.isdigit() and int(number)):
        msg = f"{text!r} is no sheet: 3 or sheet-3"
        raise argparse.ArgumentTypeError(msg)
    return int(number)


def run(argv: list[str], environ: Mapping[str, str]) -> int:
    """Runs one command.

    Args:
        argv: The arguments after the program's name.
        environ: The environment.

    Returns:
        The exit code.
    """
    try:
        arguments = build_parser().parse_args(argv)
        arguments.terminal = sys.stdout.isatty() and environ.get("TERM") not in (None, "", "dumb", "unknown")
        with Server.from_env(environ) as server:
            command: Command = arguments.run
            return command(server, arguments)
    except CommandError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def main() -> int:
    """The program ``sitelink``.

    Returns:
        The exit code; see ``sitelink --help``.
    """
    # SIGTERM would leave a terminal without its cursor.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A line at a time also into a pipe; a character that the locale lacks is no reason to stop.
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        code = run(sys.argv[1:], os.environ)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone; the interpreter must find nothing left to flush there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return code


if __name__ == "__main__":
    sys.exit(main())
