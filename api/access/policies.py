"""The policies of routes. A policy says which credential and which scope a request needs."""

from dataclasses import dataclass
from enum import Enum, auto

from starlette.datastructures import Headers, QueryParams

from api.access.principal import Scope


class Needs(Enum):
    """The kinds of senders that a route can answer."""

    NOTHING = auto()
    """Every sender. Some of these routes check a signature of their own."""
    TOKEN = auto()
    """A sender with a token in ``Authorization``; no cookie and no ticket."""
    CREDENTIAL = auto()
    """A sender with any credential, whatever it allows."""
    SCOPE = auto()
    """A sender who may see what the path names and has the scope."""
    SYSTEM = auto()
    """A sender who may see what belongs to no organization."""


@dataclass(frozen=True)
class Policy:
    """The credential and the scope that the requests of one route need.

    Args:
        needs: The kind of sender.
        scope: The scope that the sender needs; for ``Needs.SCOPE`` only.
        deep_scope: The scope of a request with ``?deep=true``, which costs much more; None where it is the same.
        waits: Whether the answer tells of changes to come, such as an event stream. It ends when the credential expires.
        action: The name of the request in the audit log; None for requests that change nothing.
        header_scope: A header, in lower case, and the scope that a request with this header needs, too.
    """

    needs: Needs
    scope: Scope | None = None
    deep_scope: Scope | None = None
    waits: bool = False
    action: str | None = None
    header_scope: tuple[str, Scope] | None = None

    def __post_init__(self) -> None:
        if (self.needs is Needs.SCOPE) != (self.scope is not None):
            msg = "a policy has a scope if, and only if, it needs one"
            raise ValueError(msg)

    def scope_for(self, query: bytes) -> Scope | None:
        """The scope that a request with this query string needs."""
        if self.deep_scope is not None and any(value not in ("0", "false") for value in QueryParams(query).getlist("deep")):
            return self.deep_scope
        return self.scope

    def further_scope(self, headers: Headers) -> Scope | None:
        """The scope that a request with these headers needs, too."""
        if self.header_scope is not None and self.header_scope[0] in headers:
            return self.header_scope[1]
        return None


PUBLIC = Policy(Needs.NOTHING)
SYSTEM = Policy(Needs.SYSTEM)


def scoped(
    scope: Scope,
    *,
    deep: Scope | None = None,
    waits: bool = False,
    action: str | None = None,
    with_header: tuple[str, Scope] | None = None,
) -> Policy:
    """The policy of a route about an organization's plans and uploads."""
    return Policy(Needs.SCOPE, scope, deep, waits, action, with_header)
