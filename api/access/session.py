"""``/v1/session``: exchanges a bearer token for a cookie, so that pages of this server need no token in JavaScript.

The cookie is a session token of its own, which lasts as long as the bearer token does.
"""

from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from api.access.credentials import SESSION_COOKIE
from api.access.layer import Access, principal_of
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

    async def end(self, _: Request) -> Response:
        """Removes the cookie."""
        response = _no_content()
        _set(response, "", 0)
        return response


def _no_content() -> Response:
    return Response(status_code=HTTPStatus.NO_CONTENT, headers={"Cache-Control": "no-store"})


def _set(response: Response, value: str, max_age_s: int) -> None:
    response.set_cookie(SESSION_COOKIE, value, max_age=max_age_s, path="/", secure=True, httponly=True, samesite="strict")
