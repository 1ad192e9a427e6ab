"""The command line's client of the API.

Oddities, all on purpose:

1. httpx2 is imported where it is used, so that ``sitelink --help`` does not wait for it. Nothing here imports Temporal.
2. ``event_stream`` gives bytes, not lines: httpx2's own ``iter_lines`` also splits at U+2028 and other characters that a sheet's title may
   contain.
3. The environment's proxies are not used for a server on this machine.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from activities.bucket.keys import PlanRef, UploadRef
from activities.environment import secret
from api.addresses import StackAddresses, is_loopback
from api.cli.errors import CommandError, NotReached, Refused, Unavailable, WrongUse, join_by_colon
from api.paths import page_path, upload_path, uploads_path

if TYPE_CHECKING:
    import httpx2

DEFAULT_URL = "http://127.0.0.1:8000"
CHUNK_BYTES = 256 * 1024
SILENCE_S = 45
"""Three times the pause between the server's pings: a stream that is silent for longer is dead."""

PAGE_LIMIT = 200
"""How many uploads one request asks for: the most that the server gives."""

VERIFY_SILENCE_S = 600
"""The longest silence while the server verifies. It sends each sheet's report when it is done; to read back many tiles takes minutes."""


@dataclass(frozen=True)
class LocalFile:
    """A file to send, with the size it had when the command began."""

    path: Path
    size_bytes: int

    @classmethod
    def at(cls, path: Path) -> Self:
        """The file at a path.

        Raises:
            WrongUse: There is no readable regular file at the path.
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
        """The file's name for the server. Bytes that are not UTF-8 are replaced."""
        return os.fsencode(self.path.name).decode("utf-8", "replace")

    def chunks(self, sent: Callable[[int], None], begin: int = 0, size_bytes: int | None = None) -> Iterator[bytes]:
        """The file's bytes, or ``size_bytes`` of them from ``begin``. After each chunk, ``sent`` is called with the chunk's length.

        Raises:
            WrongUse: The file has become shorter, or cannot be read any more.
        """
        left = self.size_bytes if size_bytes is None else size_bytes
        try:
            with self.path.open("rb") as file:
                file.seek(begin)
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
    """The API over HTTP. Every failure becomes a CommandError.

    Args:
        url: The server's address.
        token: Sent as a bearer token, unless empty.

    Raises:
        WrongUse: The address is not an HTTP address, or the token has characters that cannot be sent, or others could read it on its way.
    """

    def __init__(self, url: str, token: str = "") -> None:
        import httpx2

        self.url = url.rstrip("/")
        try:
            address = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            msg = f"the server's address {url!r} cannot be read: {error}"
            raise WrongUse(msg) from error
        if address.scheme not in ("http", "https") or not address.host:
            msg = f"the server's address {url!r} does not begin with http://host or https://host"
            raise WrongUse(msg)
        if not re.fullmatch(r"[!-~]*", token):
            # Checked here, because httpx2 would show the token in its error message.
            msg = "SITELINK_TOKEN has characters that cannot be in a token"
            raise WrongUse(msg)
        if token and address.scheme != "https" and not is_loopback(address.host):
            msg = f"SITELINK_TOKEN is only sent by https, or to this machine, and the server's address is {url!r}"
            raise WrongUse(msg)
        self._password: dict[str, str] = {}
        self._client = httpx2.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx2.Timeout(60, connect=10),
            trust_env=not is_loopback(address.host),
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """``SITELINK_URL``, else the running stack of the data directory, else the default port of this machine.

        Raises:
            WrongUse: ``Server`` refuses the values; or there is a token but no ``SITELINK_URL``, and anybody may own the data directory.
        """
        url = environ.get("SITELINK_URL")
        try:
            token = secret(environ, "SITELINK_TOKEN")
        except ValueError as error:
            raise WrongUse(str(error)) from error
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

    def use_password(self, password: str) -> None:
        """Sends the password of a PDF with every POST of the API.

        Raises:
            WrongUse: It would go over a network in clear.
        """
        if password and self._client.base_url.scheme != "https" and not is_loopback(self._client.base_url.host):
            msg = f"a password is only sent by https, or to this machine, and the server's address is {self.url!r}"
            raise WrongUse(msg)
        self._password = {"Document-Password": quote(password)} if password else {}

    def page(self, ref: UploadRef) -> str:
        """The address of the upload's page."""
        return f"{self.url}{page_path(ref)}"

    def request(self, method: str, path: str, **params: bool | int | str) -> dict[str, Any]:
        """Sends a request without a body; returns the JSON object of the answer."""
        with self._named_errors():
            headers = self._password if method == "POST" else {}
            return self._read_answer(self._client.request(method, path, params=params, headers=headers))

    def send_json(
        self, path: str, body: Mapping[str, Any], *, params: Mapping[str, int | str] | None = None, key: str = ""
    ) -> dict[str, Any]:
        """Sends a POST with a JSON body, and with ``key`` as ``Idempotency-Key``; returns the JSON object of the answer."""
        with self._named_errors():
            headers = {**self._password, **({"Idempotency-Key": key} if key else {})}
            # The answer to the last of these requests comes when the bucket has joined the parts.
            return self._read_answer(self._client.post(path, json=body, params=params, headers=headers, timeout=300))

    def abort(self, ref: str) -> None:
        """Forgets an upload that was begun, and its parts. It is no error if it is not there."""
        with self._named_errors():
            self._client.delete(f"{upload_path(UploadRef.parse(ref))}/parts")

    @contextmanager
    def part_sender(self) -> "Iterator[Callable[[str, int, Iterable[bytes]], None]]":
        """Gives a function for many threads, which sends one part: to a signed URL, with its size in bytes and its chunks.

        The URL may be of the bucket, so the token is not sent to it; and it is a credential itself, so no error shows it.
        """
        import httpx2

        here = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))

        def send(url: str, size_bytes: int, chunks: Iterable[bytes]) -> None:
            address = httpx2.URL(url)
            with self._named_errors(f"{address.scheme}://{address.netloc.decode()}"):
                answer = client.put(address, content=chunks, headers={"Content-Length": str(size_bytes)})
            if answer.status_code == httpx2.codes.FORBIDDEN:
                # The URL has expired, or one of the clocks is wrong: another URL may be better.
                msg = f"{address.host} refuses the part"
                raise Unavailable(msg)
            if not answer.is_success:
                raise _refusal(answer)

        with httpx2.Client(timeout=httpx2.Timeout(60, connect=10), mounts=here) as client:
            yield send

    def uploads(self, plan: PlanRef) -> Iterator[dict[str, Any]]:
        """A plan's uploads, newest first, requested page by page."""
        cursor = ""
        while True:
            answer = self.request("GET", uploads_path(plan), limit=PAGE_LIMIT, **({"cursor": cursor} if cursor else {}))
            yield from answer["uploads"]
            cursor = answer.get("nextCursor") or ""
            if not cursor:
                return

    def verify(self, ref: UploadRef, *, deep: bool) -> Iterator[dict[str, Any]]:
        """Verifies an upload: gives the report of each sheet, then the report of the upload."""
        return self._reports("GET", f"{upload_path(ref)}/verify", {"deep": deep})

    def dry_run(self, ref: UploadRef, *, deep: bool) -> Iterator[dict[str, Any]]:
        """Asks what a reconcile would do: gives the same reports as ``verify``, and the ``repair`` of each sheet names the repair."""
        return self._reports("POST", f"{upload_path(ref)}/reconcile", {"deep": deep, "dryRun": True})

    def _reports(self, method: str, path: str, params: Mapping[str, bool]) -> Iterator[dict[str, Any]]:
        with self._named_errors():
            document = self._read_answer(self._client.request(method, path, params=params, timeout=VERIFY_SILENCE_S))
        sheets = document.pop("sheets", None)
        if not isinstance(sheets, list) or "verified" not in document:
            raise self._not_sitelink()
        yield from sheets
        yield document

    def upload(
        self, plan: PlanRef, file: LocalFile, options: Mapping[str, int | str], key: str, sent: Callable[[int], None]
    ) -> dict[str, Any]:
        """Sends a file, in constant memory. Every try to send the same upload must use the same ``key``."""
        with self._named_errors():
            response = self._client.post(
                uploads_path(plan),
                params={"filename": file.name, **options},
                headers={
                    "Content-Type": "application/pdf",
                    "Content-Length": str(file.size_bytes),
                    "Idempotency-Key": key,
                    **self._password,
                },
                content=file.chunks(sent),
                timeout=300,  # the answer comes when the bucket has the whole file
            )
            return self._read_answer(response)

    @contextmanager
    def event_stream(self, ref: UploadRef, last_event_id: str) -> Iterator[Iterator[bytes] | None]:
        """The bytes of the event stream, as they arrive; None when the server says that no event follows ``last_event_id``."""
        import httpx2

        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_event_id} if last_event_id else {})}
        timeout = httpx2.Timeout(10, read=SILENCE_S)
        with self._named_errors(), self._client.stream("GET", f"{upload_path(ref)}/events", headers=headers, timeout=timeout) as response:
            if response.status_code == httpx2.codes.NO_CONTENT:
                yield None
                return
            if not response.is_success:
                response.read()
                raise _refusal(response)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise self._not_sitelink()
            yield response.iter_bytes()

    def progress(self, data: str) -> dict[str, Any]:
        """The snapshot or change that an event holds."""
        document = self._read_object(data)
        if "sheets" not in document:
            raise self._not_sitelink()
        return document

    def _read_answer(self, response: "httpx2.Response") -> dict[str, Any]:
        if not response.is_success:
            raise _refusal(response)
        return self._read_object(response.text)

    def _read_object(self, text: str) -> dict[str, Any]:
        try:
            document = json.loads(text)
        except ValueError as error:
            raise self._not_sitelink() from error
        if not isinstance(document, dict):
            raise self._not_sitelink()
        return document

    def _not_sitelink(self) -> Refused:
        return Refused(f"the server at {self.url} is not a SiteLink server")

    @contextmanager
    def _named_errors(self, url: str = "") -> Iterator[None]:
        import httpx2

        url = url or self.url

        try:
            yield
        except httpx2.TransportError as error:
            reason = _failure_reason(error)
            if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
                hint = "`make run` starts a server here; SITELINK_URL names another server"
                msg = f"server not reached: nothing answers at {url} ({reason}). {hint}"
                raise NotReached(msg, connected=False) from error
            msg = f"the connection to {url} broke ({reason})"
            raise NotReached(msg, connected=True) from error


def _failure_reason(error: BaseException) -> str:
    """Why a connection failed, in the system's words if there are any, because a library's messages are not for people."""
    causes, cause = list[BaseException](), error.__cause__ or error.__context__
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    sentences = [getattr(cause, "verify_message", None) or cause.strerror for cause in causes if isinstance(cause, OSError)]
    silent = "Timeout" in type(error).__name__
    return next(filter(None, sentences), "no answer in time" if silent else "it ended early")


def _refusal(response: "httpx2.Response") -> CommandError:
    """The error for an answer that is not a success. A problem document (RFC 9457) gives ``NotAPdf: sentence``."""
    try:
        problem = response.json()
        sentence = join_by_colon(problem["type"], problem.get("detail") or problem.get("title"))
    except (ValueError, KeyError, TypeError, AttributeError):
        sentence = f"HTTP {response.status_code} {response.reason_phrase}"
    if response.status_code == 429 or response.status_code >= 500:
        return Unavailable(sentence)
    return WrongUse(sentence) if response.status_code == 400 else Refused(sentence)
