"""Which pages of other origins may use the API from a browser.

They send a token or a ticket. The cookie of a session is for our own pages only, so no answer allows credentials of the browser.
"""

from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

METHODS = ("GET", "HEAD", "POST", "DELETE")
REQUEST_HEADERS = (
    "Authorization",
    "Content-Disposition",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "Last-Event-ID",
    "SiteLink-Ticket",
    "X-Request-ID",
)
ANSWER_HEADERS = ("ETag", "Link", "Location", "Retry-After", "X-Request-ID")
MAX_AGE_S = 600


def cors(origins: Sequence[str]) -> list[Middleware]:
    """The layer that lets pages of these origins use the API; nothing without an origin."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=REQUEST_HEADERS,
            expose_headers=ANSWER_HEADERS,
            max_age=MAX_AGE_S,
        )
    ]
