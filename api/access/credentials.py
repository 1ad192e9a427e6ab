"""Finds the credential of a request. Only the first one that a request has counts: a bad one never falls back to the next."""

from dataclasses import dataclass
from enum import Enum, auto

from starlette.datastructures import Headers, QueryParams
from starlette.requests import cookie_parser
from starlette.types import Scope

SESSION_COOKIE = "__Host-sitelink"
"""A browser takes a cookie of such a name only by https, for the whole host, and from no other host.

https://developer.mozilla.org/en-US/docs/Web/HTTP/Reference/Headers/Set-Cookie#cookie_prefixes
"""
TICKET_HEADER, TICKET_PARAMETER = "sitelink-ticket", "ticket"
WEBHOOK_HEADER = "sitelink-webhook"
"""Names a receiver of webhooks. It is no credential, but a request with it needs a further scope."""


class Carrier(Enum):
    """The places in which a request can carry a credential."""

    AUTHORIZATION = auto()
    TICKET = auto()
    COOKIE = auto()


@dataclass(frozen=True)
class Credential:
    """A credential, not verified yet.

    Args:
        carrier: How the request carries it.
        text: The credential; empty if the carrier holds none in a form that is known.
    """

    carrier: Carrier
    text: str


def is_sent_on_purpose(scope: Scope) -> bool:
    """Whether the sender of an HTTP request holds its credential. A browser adds only the cookie by itself."""
    credential = find_credential(scope)
    return credential is not None and credential.carrier is not Carrier.COOKIE


def find_credential(scope: Scope) -> Credential | None:
    """The credential of an HTTP request; None for a request without one."""
    headers = Headers(scope=scope)
    if (authorization := headers.getlist("authorization")) != []:
        scheme, _, token = authorization[0].partition(" ")
        is_bearer = len(authorization) == 1 and scheme.lower() == "bearer"
        return Credential(Carrier.AUTHORIZATION, token.strip() if is_bearer else "")
    ticket = headers.get(TICKET_HEADER)
    # Nearly every query has no ticket, and need not be parsed.
    if ticket is None and b"ticket" in scope["query_string"]:
        ticket = QueryParams(scope["query_string"]).get(TICKET_PARAMETER)
    if ticket is not None:
        return Credential(Carrier.TICKET, ticket)
    if (cookies := headers.get("cookie")) and (session := cookie_parser(cookies).get(SESSION_COOKIE)) is not None:
        return Credential(Carrier.COOKIE, session)
    return None
