"""A whole stack with access control, which pages of one other site may use."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from playwright._impl._api_structures import SetCookieParam

from activities.bucket.keys import UploadRef
from api.access.credentials import SESSION_COOKIE
from api.access.principal import Principal, Scope
from api.access.tokens import SKEW_S, OwnTokens, sign
from deploy.process import free_port
from deploy.stack import Stack

SECRET = "a secret of one's own backend for the tests"  # noqa: S105 - for tests

PUBLIC_HOST = "plans.example.com"


@dataclass(frozen=True)
class Guarded:
    """A stack with access control.

    Args:
        url: The address of the API.
        site_port: Where the other site must be served. To a browser, ``localhost`` is another site than ``127.0.0.1``.
        bucket: The address of the bucket.
    """

    url: str
    site_port: int
    bucket: str = ""

    @property
    def site_url(self) -> str:
        """The origin of the other site."""
        return f"http://localhost:{self.site_port}"

    def token(self, scope: str = "read write operate", *, left_s: float = 3600, **claims: object) -> str:
        """A token for the organization ``acme`` that the server accepts for so many more seconds."""
        named = {name: value for name, value in {"sub": "jo", "org": "acme", "scope": scope, **claims}.items() if value is not None}
        return sign(SECRET.encode(), named, issuer="sitelink", audience="sitelink", expires_at=_expiry(left_s))

    def ticket(self, ref: str, *, left_s: float = 600) -> str:
        """A ticket for an upload that the server accepts for so many more seconds."""
        upload = UploadRef.parse(ref)
        reader = Principal("jo", upload.organization, 0, upload.project, upload.plan, upload.upload, frozenset({Scope.READ}))
        return OwnTokens("ticket", (SECRET,)).make(reader, _expiry(left_s))

    def session_cookie(self, *, left_s: float) -> SetCookieParam:
        """The cookie of a session that the server accepts for so many more seconds."""
        text = OwnTokens("session", (SECRET,)).make(Principal("jo", "acme", 0, scopes=frozenset(Scope)), _expiry(left_s))
        return {
            "name": SESSION_COOKIE,
            "value": text,
            "url": self.url.replace("http:", "https:"),
            "secure": True,
            "httpOnly": True,
            "sameSite": "Strict",
        }


def _expiry(left_s: float) -> int:
    return int(time.time() + left_s) - SKEW_S + 1


@pytest.fixture(scope="session")
def guarded(new_stack_of_session: Callable[..., Stack]) -> Guarded:
    """One stack with access control, for the tests that kill nothing."""
    port = free_port()
    origins = f"http://localhost:{port}"
    access = {"SITELINK_ACCESS": "jwt", "SITELINK_JWT_SECRET": SECRET, "SITELINK_PUBLIC_HOSTS": PUBLIC_HOST}
    stack = new_stack_of_session(**access, SITELINK_CORS_ORIGINS=origins)
    return Guarded(stack.api_url, port, (stack.data_dir / "bucket").as_uri())
