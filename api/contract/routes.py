"""``GET /openapi.json`` and ``GET /docs``."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from api.access.routes import GuardedRoute
from api.contract.document import DescribedRoute, build_document
from api.contract.page import build_page
from api.http.caching import body_etag, cacheable


class Contract:
    """Answers both routes. What they answer is built at the first request and kept.

    Args:
        routes: Gives all routes of the server.
    """

    def __init__(self, routes: Callable[[], Iterable[BaseRoute]]) -> None:
        self._routes = routes

    async def document(self, request: Request) -> Response:
        """The OpenAPI document."""
        return _answer(request, self._bodies[0], "application/json")

    async def page(self, request: Request) -> Response:
        """The document as a page for people."""
        return _answer(request, self._bodies[1], "text/html")

    @cached_property
    def _bodies(self) -> tuple[bytes, bytes]:
        document = build_document(described_routes(self._routes()))
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(), build_page(document).encode()


def described_routes(routes: Iterable[BaseRoute]) -> Iterator[DescribedRoute]:
    """Every route, with its path as OpenAPI spells it. HEAD is left out, because each GET route answers it."""
    for route in routes:
        if isinstance(route, GuardedRoute):
            for method in sorted((route.methods or set()) - {"HEAD"}):
                yield DescribedRoute(method, re.sub(r":\w+}", "}", route.path), route.policy)


def _answer(request: Request, body: bytes, media_type: str) -> Response:
    return cacheable(request, body, etag=body_etag(body), media_type=media_type, cache_control="no-cache")
