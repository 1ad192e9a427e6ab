"""ASGI middleware: every request passes through these layers before it comes to a route."""

import asyncio
import re
import uuid
from collections.abc import Callable, Collection, Sequence
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from activities.errors import ForeignHost, ForeignOrigin, InvalidRequest, SiteLinkError
from activities.logs import set_log_context
from api.addresses import is_from_another_site, is_loopback
from api.http.problems import PROBLEM_TYPE, for_event_source, named_problem, status_problem, unexpected_problem
from api.paths import UPLOAD, V1

_ID = r"([\w-]{1,64})"
_SHEET = r"(?:/sheets/(?:sheet-)?(\d{1,9})\b)?"
_UPLOAD = re.compile(UPLOAD.format(organization=_ID, project=_ID, plan=_ID, upload=_ID) + rf"(?=/|$){_SHEET}", re.ASCII)

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


REQUEST_ID = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")
"""The request ids that are taken from a client. In place of any other id, the server makes one."""


READING = ("GET", "HEAD")


class AboutRequests:
    """Names a request: in the log lines the upload and the sheet of its path; in the log lines and the answer its ``X-Request-ID``.

    The id comes from the client, or from the proxy before this server, so that one id finds the request in the logs of both.

    Args:
        app: The named application.
        on_answer: Called when an answer begins, with the request's scope and the status.
    """

    def __init__(self, app: ASGIApp, on_answer: Callable[[Scope, int], None] = lambda *_: None) -> None:
        self._app = app
        self._on_answer = on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] == "http":
            # A path without an upload clears the upload, because the server may serve a request in the context of the previous request.
            *ids, sheet = found.groups() if (found := _UPLOAD.match(scope["path"])) else (None,)
            request_id = _request_id(Headers(scope=scope).get("x-request-id", ""))
            set_log_context("/".join(ids) if ids else None, int(sheet) if sheet else None, request_id)
            send = self._naming_answer(request_id, scope, send)
        await self._app(scope, receive, send)

    def _naming_answer(self, request_id: str, scope: Scope, send: Send) -> Send:
        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
                self._on_answer(scope, message["status"])
            await send(message)

        return send_named


def _request_id(given: str) -> str:
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


class ProblemAnswers:
    """Makes every refusal a problem document, whoever refuses: a library that answers in plain text, or an error that nobody expected.

    It stands inside the layers that add headers, so that also the answer to an unexpected error has them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = replaced = False

        async def send_problem(message: Message) -> None:
            nonlocal began, replaced
            if message["type"] == "http.response.start":
                began = True
                headers = Headers(raw=message["headers"])
                if message["status"] >= HTTPStatus.BAD_REQUEST and headers.get("content-type") != PROBLEM_TYPE:
                    replaced = True
                    await status_problem(message["status"], scope["path"], headers)(scope, receive, send)
            if not replaced:
                await send(message)

        try:
            await self._app(scope, receive, send_problem)
        except asyncio.CancelledError:
            # uvicorn cancels the requests that are still open some seconds after SIGTERM.
            if not began:
                stops = status_problem(HTTPStatus.SERVICE_UNAVAILABLE, scope["path"], {"Retry-After": "1"}, "the server stops")
                await for_event_source(stops, "the server stops", scope)(scope, receive, send)
            raise
        except Exception:
            if not began:
                await unexpected_problem(scope["path"])(scope, receive, send)
            raise  # uvicorn writes the traceback to the log


class Guard:
    """Refuses requests that a browser sends for a page of another site, and tells browsers what our own page may do.

    A page of another site, open in a browser that reaches this server, must not use it: neither under a host name of the other site that
    leads to this address (DNS rebinding), nor by a request of the API. A GET shows that page nothing, but it would start the workflow of
    an accepted upload, or a verification. Programs other than browsers send neither ``Origin`` nor ``Sec-Fetch-Site``, so they pass.

    An image of another site's page sends no ``Origin``. Where the server checks credentials, it passes with a ticket in its address: who
    was given the ticket may read, and the browser has added nothing of its own to the request.

    Args:
        app: The guarded application.
        hosts: The host names under which the server is reached, in lower case; first, the one in its address.
        origins: Other origins whose pages may send requests.
        unguarded: Paths that answer under any host name or none: the health checks, and R2's push, which is signed.
        is_no_forgery: Whether a request has a credential that will be checked and that a browser does not add by itself; None where
            nobody checks credentials.
        parts_origin: The other origin to which our own page may send the parts of an upload; None if they go to this server.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Sequence[str],
        origins: Collection[str] = (),
        unguarded: Collection[str] = (),
        is_no_forgery: Callable[[Scope], bool] | None = None,
        parts_origin: str | None = None,
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins
        self._unguarded = unguarded
        self._is_no_forgery = is_no_forgery or (lambda _: False)
        own = "connect-src 'self'"
        self._content_policy = CONTENT_SECURITY_POLICY.replace(own, f"{own} {parts_origin}" if parts_origin else own)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers with a problem."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        is_no_forgery = scope["method"] in READING and scope["path"].startswith(V1) and self._is_no_forgery(scope)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", self._content_policy)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "same-origin")
                headers.setdefault("Cross-Origin-Resource-Policy", "cross-origin" if is_no_forgery else "same-origin")
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        error = (
            None if scope["path"] in self._unguarded else self._refusal(scope["method"], scope["path"], Headers(scope=scope), is_no_forgery)
        )
        app: ASGIApp = self._app if error is None else named_problem(error, scope["path"])
        await app(scope, receive, send_guarded)

    def _refusal(self, method: str, path: str, headers: Headers, is_no_forgery: bool) -> SiteLinkError | None:
        host = headers.get("host", "")
        name = _host_name(host)
        if name not in self._hosts and not is_loopback(name):
            return ForeignHost(f"this server is not {host[:200]!r}, it is reached as {self._hosts[-1]}")
        reads = method in READING
        if reads and not path.startswith(V1):
            return None
        origin = headers.get("origin")
        is_foreign = is_from_another_site(headers) or (origin is not None and _authority(origin) != host)
        if is_foreign and origin not in self._origins and not (is_no_forgery and origin is None):
            return ForeignOrigin(f"a page of {(origin or 'another site')[:200]} may not ask for anything here")
        if reads and (headers.get("content-length", "0") != "0" or "transfer-encoding" in headers):
            # Nobody would read it, and uvicorn would hold its beginning for as long as the answer takes.
            return InvalidRequest(f"a {method} has no body")
        return None


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
