"""ASGI middleware: every request passes through these layers before it comes to a route."""

import re
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from activities.errors import ForeignHost, ForeignOrigin, InvalidRequest, SiteLinkError
from activities.logs import set_log_context
from api.addresses import is_loopback
from api.http.problems import named_problem
from api.paths import UPLOAD, V1

_ID = r"([\w-]{1,64})"
_SHEET = r"(?:/sheets/(?:sheet-)?(\d{1,9})\b)?"
_UPLOAD = re.compile(UPLOAD.format(organization=_ID, project=_ID, plan=_ID, upload=_ID) + rf"(?=/|$){_SHEET}", re.ASCII)

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class AboutRequests:
    """Makes the log lines of a request show the upload and the sheet that its path names."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] == "http":
            # A path without an upload clears the upload, because the server may serve a request in the context of the previous request.
            *ids, sheet = found.groups() if (found := _UPLOAD.match(scope["path"])) else (None,)
            set_log_context("/".join(ids) if ids else None, int(sheet) if sheet else None)
        await self._app(scope, receive, send)


class Guard:
    """Refuses requests that a browser sends for a page of another site, and tells browsers what our own page may do.

    A page of another site, open in a browser that reaches this server, must not use it: neither under a host name of the other site that
    leads to this address (DNS rebinding), nor by a request of the API. A GET shows that page nothing, but it would start the workflow of
    an accepted upload, or a verification. Programs other than browsers send neither ``Origin`` nor ``Sec-Fetch-Site``, so they pass.

    Args:
        app: The guarded application.
        hosts: The host names under which the server is reached, in lower case; first, the one in its address.
        origins: Other origins whose pages may send requests.
        unguarded: Paths that answer under any host name or none: the health checks, and R2's push, which is signed.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str], origins: Collection[str] = (), unguarded: Collection[str] = ()) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins
        self._unguarded = unguarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers with a problem."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "same-origin")
                headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        error = None if scope["path"] in self._unguarded else self._refusal(scope["method"], scope["path"], Headers(scope=scope))
        app: ASGIApp = self._app if error is None else named_problem(error, scope["path"])
        await app(scope, receive, send_guarded)

    def _refusal(self, method: str, path: str, headers: Headers) -> SiteLinkError | None:
        host = headers.get("host", "")
        name = _host_name(host)
        if name not in self._hosts and not is_loopback(name):
            return ForeignHost(f"this server is not {host[:200]!r}, it is reached as {self._hosts[-1]}")
        reads = method in ("GET", "HEAD")
        if reads and not path.startswith(V1):
            return None
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        is_foreign = site not in (None, "same-origin", "none") or (origin is not None and _authority(origin) != host)
        if is_foreign and origin not in self._origins:
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
