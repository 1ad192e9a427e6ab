"""Which pages of other origins may use the API from a browser.

They send a token or a ticket. The cookie of a session is for our own pages only, so no answer allows credentials of the browser.
"""

from collections.abc import Sequence
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from api.http.problems import status_problem

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
REQUEST_HEADERS = (
    "Authorization",
    "Content-Disposition",
    "Content-Type",
    "Content-Digest",
    "Document-Password",
    "Idempotency-Key",
    "If-None-Match",
    "If-Range",
    "Last-Event-ID",
    "Range",
    "Repr-Digest",
    "SiteLink-Ticket",
    "SiteLink-Webhook",
    "SiteLink-Webhook-Events",
    "X-Namespace",
    "X-Request-ID",
)
ANSWER_HEADERS = ("Accept-Ranges", "Content-Disposition", "Content-Range", "ETag", "Link", "Location", "Retry-After", "X-Request-ID")
MAX_AGE_S = 600


class _Cors(CORSMiddleware):
    """Starlette's layer, whose refusals are problem documents, too."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a preflight request."""
        response = super().preflight_response(request_headers)
        if response.status_code < HTTPStatus.BAD_REQUEST:
            return response
        problem = status_problem(response.status_code, "", response.headers, bytes(response.body).decode())
        problem.headers["Vary"] = response.headers["Vary"]
        return problem


def cors(origins: Sequence[str]) -> list[Middleware]:
    """The layer that lets pages of these origins use the API; nothing without an origin."""
    if not origins:
        return []
    return [
        Middleware(
            _Cors,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=REQUEST_HEADERS,
            expose_headers=ANSWER_HEADERS,
            max_age=MAX_AGE_S,
        )
    ]
