"""``/v1/session``: exchanges a bearer token for a cookie, so that pages of this server need no token in JavaScript.

The cookie is a session token of its own, which lasts as long as the bearer token does. JavaScript cannot read it, so the server tells a
page what its session allows.
"""

from datetime import UTC, datetime
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from activities.bucket.records import timestamp
from api.access.credentials import SESSION_COOKIE
from api.access.layer import Access, principal_of
from api.access.principal import Principal, Scope
from api.access.tokens import SKEW_S


class Sessions:
    """The handlers.

    Args:
        access: Signs sessions.
    """

    def __init__(self, access: Access) -> None:
        self._access = access

    async def begin(self, request: Request) -> Response:
        """Sets the cookie. Without access control there is nothing to set."""
        response = _no_content()
        principal = principal_of(request)
        if principal is not None:
            expires_at = int(principal.expires_at) - SKEW_S
            lifetime_s = max(0, expires_at - int(self._access.now()))
            _set(response, self._access.sessions.make(principal, expires_at), lifetime_s)
        return response

    async def show(self, request: Request) -> Response:
        """Who the sender is, and what the credential allows. Without access control, everybody may do everything."""
        return JSONResponse(_document(principal_of(request)), headers={"Cache-Control": "no-store"})

    async def end(self, _: Request) -> Response:
        """Removes the cookie."""
        response = _no_content()
        _set(response, "", 0)
        return response


def _document(principal: Principal | None) -> dict[str, object]:
    everybody = Principal("", None, 0, scopes=frozenset(Scope), is_system=True)
    allowed = principal or everybody
    expires_at = datetime.fromtimestamp(int(allowed.expires_at) - SKEW_S, UTC)
    return {
        "checked": principal is not None,
        "subject": allowed.subject or None,
        "organization": allowed.organization,
        "project": allowed.project,
        "plan": allowed.plan,
        "upload": allowed.upload,
        "scopes": [scope for scope in Scope if scope in allowed.scopes],
        "system": allowed.is_system,
        "expiresAt": timestamp(expires_at) if principal else None,
    }


def _no_content() -> Response:
    return Response(status_code=HTTPStatus.NO_CONTENT, headers={"Cache-Control": "no-store"})


def _set(response: Response, value: str, max_age_s: int) -> None:
    response.set_cookie(SESSION_COOKIE, value, max_age=max_age_s, path="/", secure=True, httponly=True, samesite="strict")
