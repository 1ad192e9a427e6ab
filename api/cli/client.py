"""The command line's half of the API: requests, a file that is sent, the event stream.

Oddities, all on purpose:

1. httpx is imported where it is used: ``sitelink --help`` must not wait for it. Nothing here imports Temporal.
2. The event stream is cut into lines here: httpx's own ``iter_lines`` also splits at U+2028 and others, which may stand in a sheet's title.
3. For a server on this machine, the environment's proxies are not asked.
"""

import codecs
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from activities.bucket.keys import PlanRef, UploadRef
from api.addresses import StackAddresses, is_loopback

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
CHUNK_BYTES = 256 * 1024
SILENCE_S = 45
"""Three of the server's heartbeats: a stream that is silent for longer is dead."""

PAGE = 200
"""Uploads that are asked for at once, the most that the server gives."""

VERIFY_SILENCE_S = 600
"""The server sends the report of each sheet when it has it; with many tiles to read back, one may take minutes."""


class CommandError(Exception):
    """Ends the command with one sentence on stderr."""


class WrongUse(CommandError):
    """The command cannot mean anything as it was given."""


class Refused(CommandError):
    """The server answered, and said no."""


class Unavailable(Refused):
    """The server answered that it cannot now."""


class NotReached(CommandError):
    """The server did not answer; ``connected`` says whether it had before the connection broke."""

    def __init__(self, message: str, *, connected: bool) -> None:
        super().__init__(message)
        self.connected = connected


class ServerEvent(NamedTuple):
    """One event of the stream."""

    event: str
    data: str


class EventParser:
    """Reads a ``text/event-stream``, in whatever pieces it comes.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    def __init__(self) -> None:
        self.last_event_id = ""
        """Of the last event that came whole: what a reconnect sends."""
        self.retry_s: float | None = None
        """The delay before a reconnect, when the server asked for one."""
        self.restart()

    def restart(self) -> None:
        """Forgets what was begun: the next bytes are those of a new connection."""
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._line, self._after_cr = "", False
        self._begin_event()

    def _begin_event(self) -> None:
        self._event, self._data = "", list[str]()
        self._id = self.last_event_id

    def feed(self, chunk: bytes) -> Iterator[ServerEvent]:
        """Yields the events that ``chunk`` completes."""
        text = self._decoder.decode(chunk)
        if not text:
            return
        # A CR ends its line at once; if the LF of a CRLF follows later, it ends none.
        after_cr, self._after_cr = self._after_cr, text.endswith("\r")
        if after_cr:
            text = text.removeprefix("\n")
        *lines, self._line = re.split(r"\r\n?|\n", self._line + text)
        for line in lines:
            if line:
                name, _, value = line.partition(":")
                self._field(name, value.removeprefix(" "))
                continue
            self.last_event_id = self._id
            if self._data:
                yield ServerEvent(self._event or "message", "\n".join(self._data))
            self._begin_event()

    def _field(self, name: str, value: str) -> None:
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_s = int(value) / 1000


class Patience:
    """How long to wait before the next try, and when to stop trying.

    Args:
        limit_s: Seconds without a sign of life after which there is no next try.
        clock: Seconds that only grow.
    """

    def __init__(self, limit_s: float = 60, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._clock = limit_s, clock
        self.alive()

    def alive(self) -> None:
        """The server gave a sign of life."""
        self._failures = 0
        self._alive_at = self._clock()

    def delay_s(self, first_s: float = 1) -> float | None:
        """Seconds to wait after one more failure, 1 to 10 and doubled each time; None when it is time to give up."""
        if self._clock() - self._alive_at >= self._limit_s:
            return None
        delay_s = min(10.0, max(1.0, first_s) * 2.0**self._failures)
        self._failures += 1
        return delay_s


@dataclass(frozen=True)
class LocalFile:
    """A file to send, with the size it had when it was looked at."""

    path: Path
    size_bytes: int

    @classmethod
    def at(cls, path: Path) -> Self:
        """Looks at a path.

        Raises:
            WrongUse: There is no readable file.
        """
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                msg = f"{path} is not a file"
                raise WrongUse(msg)
            path.open("rb").close()
        except OSError as error:
            msg = f"{path}: {error.strerror}"
            raise WrongUse(msg) from error
        return cls(path, status.st_size)

    @property
    def name(self) -> str:
        """Its name for the server; bytes that are no UTF-8 are replaced."""
        return os.fsencode(self.path.name).decode("utf-8", "replace")

    def chunks(self, sent: Callable[[int], None]) -> Iterator[bytes]:
        """Its bytes, as many as were promised; ``sent`` is told how many more have gone.

        Raises:
            WrongUse: It has become shorter, or cannot be read any more.
        """
        left = self.size_bytes
        try:
            with self.path.open("rb") as file:
                while left:
                    chunk = file.read(min(CHUNK_BYTES, left))
                    if not chunk:
                        msg = f"{self.path} became shorter while it was sent"
                        raise WrongUse(msg)
                    left -= len(chunk)
                    yield chunk
                    sent(len(chunk))
        except OSError as error:
            msg = f"{self.path}: {error.strerror}"
            raise WrongUse(msg) from error


class Server:
    """The API over HTTP: every failure leaves as a CommandError.

    Args:
        url: Its address.
        token: Sent as a bearer token, unless empty.

    Raises:
        WrongUse: The address is no HTTP address, or the token cannot be sent, or not to that address: others could read it.
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
        if token and address.scheme != "https" and not is_loopback(address.host):
            msg = f"SITELINK_TOKEN is only sent by https, or to this machine, and the server's address is {url!r}"
            raise WrongUse(msg)
        self._client = httpx.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(60, connect=10),
            trust_env=not is_loopback(address.host),
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """``SITELINK_URL``, else the running stack of the data directory, else the default port of this machine.

        Raises:
            WrongUse: As from ``Server``; or there is a token and no ``SITELINK_URL``, for the data directory may be anybody's.
        """
        url, token = environ.get("SITELINK_URL"), environ.get("SITELINK_TOKEN", "")
        if url:
            return cls(url, token)
        if token:
            msg = "SITELINK_TOKEN is only sent to the server that SITELINK_URL names: set that, too, or unset SITELINK_TOKEN"
            raise WrongUse(msg)
        stack = StackAddresses.read(Path(environ.get("SITELINK_DATA_DIR") or "var"))
        return cls(stack.api if stack else DEFAULT_URL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def page(self, ref: UploadRef) -> str:
        """The address of the upload's page."""
        return f"{self.url}/?ref={ref}"

    def request(self, method: str, path: str, **params: bool | int | str) -> dict[str, Any]:
        """Sends a request without a body; the JSON object that answers it."""
        with self._named_errors():
            return self._answer(self._client.request(method, path, params=params))

    def uploads(self, plan: PlanRef) -> Iterator[dict[str, Any]]:
        """A plan's uploads, newest first, asked for page by page."""
        cursor = ""
        while True:
            answer = self.request("GET", uploads_path(plan), limit=PAGE, **({"cursor": cursor} if cursor else {}))
            yield from answer["uploads"]
            cursor = answer.get("nextCursor") or ""
            if not cursor:
                return

    def verify(self, ref: UploadRef, *, deep: bool) -> Iterator[dict[str, Any]]:
        """Asks whether the bucket holds all that it should: the report of each sheet, then the upload's."""
        return self._reports("GET", f"{upload_path(ref)}/verify", {"deep": deep})

    def dry_run(self, ref: UploadRef, *, deep: bool) -> Iterator[dict[str, Any]]:
        """Asks what a reconcile would do: the same reports, each sheet's with its ``repair``."""
        return self._reports("POST", f"{upload_path(ref)}/reconcile", {"deep": deep, "dryRun": True})

    def _reports(self, method: str, path: str, params: Mapping[str, bool]) -> Iterator[dict[str, Any]]:
        with self._named_errors():
            document = self._answer(self._client.request(method, path, params=params, timeout=VERIFY_SILENCE_S))
        sheets = document.pop("sheets", None)
        if not isinstance(sheets, list) or "verified" not in document:
            raise self._foreign()
        yield from sheets
        yield document

    def upload(self, plan: PlanRef, file: LocalFile, options: Mapping[str, int], key: str, sent: Callable[[int], None]) -> dict[str, Any]:
        """Sends a file in constant memory; ``key`` is the same for every try of one upload."""
        with self._named_errors():
            response = self._client.post(
                uploads_path(plan),
                params={"filename": file.name, **options},
                headers={"Content-Type": "application/pdf", "Content-Length": str(file.size_bytes), "Idempotency-Key": key},
                content=file.chunks(sent),
                timeout=300,  # the answer comes when the bucket has it all
            )
            return self._answer(response)

    @contextmanager
    def events(self, ref: UploadRef, last_event_id: str) -> Iterator[Iterator[bytes] | None]:
        """The bytes of the event stream, as they come; None when the server says that nothing follows ``last_event_id``."""
        import httpx

        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_event_id} if last_event_id else {})}
        timeout = httpx.Timeout(10, read=SILENCE_S)
        with self._named_errors(), self._client.stream("GET", f"{upload_path(ref)}/events", headers=headers, timeout=timeout) as response:
            if response.status_code == httpx.codes.NO_CONTENT:
                yield None
                return
            if not response.is_success:
                response.read()
                raise _refusal(response)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise self._foreign()
            yield response.iter_bytes()

    def progress(self, data: str) -> dict[str, Any]:
        """The snapshot or change that an event holds."""
        document = self._document(data)
        if "sheets" not in document:
            raise self._foreign()
        return document

    def _answer(self, response: "httpx.Response") -> dict[str, Any]:
        if not response.is_success:
            raise _refusal(response)
        return self._document(response.text)

    def _document(self, text: str) -> dict[str, Any]:
        try:
            document = json.loads(text)
        except ValueError as error:
            raise self._foreign() from error
        if not isinstance(document, dict):
            raise self._foreign()
        return document

    def _foreign(self) -> Refused:
        return Refused(f"what answers at {self.url} is no SiteLink server")

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.TransportError as error:
            reason = _reason(error)
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
                hint = "`make run` starts a server here, SITELINK_URL names another"
                msg = f"server not reached: nothing answers at {self.url} ({reason}). {hint}"
                raise NotReached(msg, connected=False) from error
            msg = f"the connection to {self.url} broke ({reason})"
            raise NotReached(msg, connected=True) from error


def _reason(error: BaseException) -> str:
    """Why a connection failed, in the system's words where it has some; a library's own are not for people."""
    causes, cause = list[BaseException](), error.__cause__ or error.__context__
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    said = [getattr(cause, "verify_message", None) or cause.strerror for cause in causes if isinstance(cause, OSError)]
    silent = "Timeout" in type(error).__name__
    return next(filter(None, said), "no answer in time" if silent else "it ended early")


def plan_path(plan: PlanRef) -> str:
    """The address of a plan."""
    return f"/v1/organizations/{plan.organization}/projects/{plan.project}/plans/{plan.plan}"


def uploads_path(plan: PlanRef) -> str:
    """The address of a plan's uploads."""
    return f"{plan_path(plan)}/uploads"


def upload_path(ref: UploadRef) -> str:
    """The address of one upload."""
    return f"{uploads_path(ref.plan_ref)}/{ref.upload}"


def named(*parts: str | None) -> str:
    """``NotAPdf: sentence``, or as much of it as there is."""
    return ": ".join(part for part in parts if part)


def _refusal(response: "httpx.Response") -> CommandError:
    """The error that an answer stands for: ``NotAPdf: sentence`` when it is a problem document (RFC 9457)."""
    try:
        problem = response.json()
        sentence = named(problem["type"], problem.get("detail") or problem.get("title"))
    except (ValueError, KeyError, TypeError, AttributeError):
        sentence = f"HTTP {response.status_code} {response.reason_phrase}"
    if response.status_code == 429 or response.status_code >= 500:
        return Unavailable(sentence)
    return WrongUse(sentence) if response.status_code == 400 else Refused(sentence)
