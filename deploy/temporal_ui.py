"""``python -m deploy.temporal_ui``: stands in front of the UI of the embedded Temporal server.

The server of the UI answers requests under any host name and from any page: a page of another site, open in a browser on this machine,
could read and end every workflow. So that server listens on a loopback address that nobody can guess (``deploy.temporal``), and this
process passes on to it only what a page of the UI itself asks for, or a program on this machine.

With ``SITELINK_CODEC_KEY`` it is also the UI's codec server, below ``/codec``.
"""

import argparse
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from activities.environment import secret
from api.addresses import is_from_another_site

CODEC_PATH = "/codec"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
OF_ONE_CONNECTION = frozenset({b"connection", b"host", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"})
"""Headers that are not passed on: https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1."""
TIMEOUT = httpx2.Timeout(5, read=None)
"""The UI waits for new events of a history for as long as its server lets it."""


class OwnPages:
    """Refuses requests under a foreign host name, and those of foreign pages. A link from another page to the UI works.

    Args:
        app: The guarded application.
        port: The port at which browsers reach it.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = (f"127.0.0.1:{port}", f"localhost:{port}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it."""
        app = self._app
        if scope["type"] == "http" and (refusal := self._refusal(scope["method"], Headers(scope=scope))):
            app = refusal
        await app(scope, receive, send)

    def _refusal(self, method: str, headers: Headers) -> Response | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if host not in self._hosts:
            return PlainTextResponse(f"This server is not {host[:200]!r}, it is {self._hosts[0]}.\n", 421)
        is_link = method == "GET" and origin is None and headers.get("sec-fetch-mode") == "navigate"
        if origin not in (None, f"http://{host}") or (is_from_another_site(headers) and not is_link):
            return PlainTextResponse("A page of another site may not ask for anything here.\n", 403)
        return None


class Upstream:
    """The UI's own server.

    Args:
        url: Its address.
    """

    def __init__(self, url: str) -> None:
        self._client = httpx2.AsyncClient(base_url=url, timeout=TIMEOUT, trust_env=False)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Closes the connections when this server stops."""
        async with self._client:
            yield

    async def pass_on(self, request: Request) -> Response:
        """The UI's answer."""
        url = httpx2.URL(raw_path=request.scope["raw_path"] + (b"?" + request.url.query.encode() if request.url.query else b""))
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        passed = self._client.build_request(
            request.method, url, headers=_passed(request.headers.raw), content=request.stream() if has_body else None
        )
        try:
            answer = await self._client.send(passed, stream=True)
        except httpx2.TransportError:
            return PlainTextResponse("Temporal's UI does not answer.\n", 502)
        response = StreamingResponse(answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose))
        response.raw_headers = _passed(answer.headers.raw)
        return response


def _passed(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in headers if name.lower() not in OF_ONE_CONNECTION]


def create_guard(port: int, upstream_url: str, keys: Sequence[bytes] = ()) -> Starlette:
    """The ASGI application.

    Args:
        port: The port at which browsers reach it.
        upstream_url: The address of the UI's own server.
        keys: As from ``workflows.codec.codec_keys``; without a key there is no codec server.
    """
    upstream = Upstream(upstream_url)
    routes = [Route("/{path:path}", upstream.pass_on, methods=METHODS)]
    if keys:
        from api.codec import CodecEndpoint  # imported here, because it loads Temporal's library

        codec = CodecEndpoint(keys)
        routes[:0] = [Route(f"{CODEC_PATH}/{name}", getattr(codec, name), methods=["POST"]) for name in ("decode", "encode")]
    return Starlette(routes=routes, middleware=[Middleware(OwnPages, port=port)], lifespan=upstream.lifespan)


def main() -> int:
    """Serves until SIGTERM or SIGINT. Returns the exit code: 2 for a key that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m deploy.temporal_ui", description="Stands in front of the embedded Temporal's UI.")
    parser.add_argument("port", type=int, help="the port at which browsers reach the UI")
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on; default: %(default)s. Another one is for a container"
    )
    parser.add_argument("upstream", help="the address of the UI's own server")
    arguments = parser.parse_args()
    keys: Sequence[bytes] = ()
    try:
        if secret(os.environ, "SITELINK_CODEC_KEY"):
            from workflows.codec import codec_keys

            keys = codec_keys(os.environ)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    app = create_guard(arguments.port, arguments.upstream, keys)
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning", access_log=False, server_header=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
