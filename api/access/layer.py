"""The one place that decides about a request: by its credential, the route's policy and the parameters in the path.

It decides before the handler runs, so before any I/O for the request and before the body is read. What the sender may not see is answered
like what does not exist, in the same time, because neither is looked up.
"""

import time
from collections.abc import Callable, Mapping
from http import HTTPMethod
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from activities.errors import CredentialRequired, ForeignOrigin, NotAllowed, PlanNotFound, SiteLinkError, UploadNotFound
from api.access.audit import Audited, log_refusal
from api.access.credentials import Carrier, Credential, find_credential
from api.access.expiry import serve_for
from api.access.policies import Needs, Policy
from api.access.principal import Principal
from api.access.public_keys import FetchedKeys
from api.access.settings import AccessSettings, Mode
from api.access.tokens import OwnTokens, TokenReader
from api.addresses import is_from_another_site, is_loopback
from api.http.problems import named_problem

READING = (HTTPMethod.GET, HTTPMethod.HEAD)


class Access:
    """Verifies credentials and decides about requests.

    Args:
        settings: What proves who sends a request.
        now: Tells the time in seconds since 1970.
    """

    def __init__(self, settings: AccessSettings, *, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self.checks = settings.mode is Mode.JWT
        """Whether requests need a credential."""
        self._keys = FetchedKeys(settings.public_keys) if self.checks and settings.public_keys else None
        self._tokens = TokenReader(settings.secrets, self._keys, issuer=settings.issuer, audience=settings.audience)
        # Without access control nobody checks a ticket, so that any secret will do.
        secrets = settings.ticket_secrets or ("not checked by anybody",)
        self.tickets = OwnTokens("ticket", secrets)
        self.sessions = OwnTokens("session", secrets)

    async def start(self) -> None:
        """Fetches the public keys, if there are any."""
        if self._keys is not None:
            await self._keys.refresh()

    async def close(self) -> None:
        """Ends what runs in the background."""
        if self._keys is not None:
            await self._keys.close()

    async def identify(self, policy: Policy, scope: Scope) -> Principal | None:
        """The sender of a request; None where the policy or the server does not ask.

        Raises:
            CredentialRequired: There is no credential, or one that is not accepted.
            ForeignOrigin: The credential is a cookie, and a page of another site may have sent the request.
            KeysUnavailable: The public keys are not known yet.
        """
        if not self.checks or policy.needs is Needs.NOTHING:
            return None
        credential = find_credential(scope)
        if credential is None:
            msg = "this request needs a credential: a bearer token, a ticket or a session"
            raise CredentialRequired(msg)
        if policy.needs is Needs.TOKEN and credential.carrier is not Carrier.AUTHORIZATION:
            msg = "this request needs a token in Authorization"
            raise CredentialRequired(msg)
        if credential.carrier is Carrier.AUTHORIZATION and not credential.text:
            msg = "Authorization is not 'Bearer' and a token"
            raise CredentialRequired(msg)
        return await self._verify(credential, scope)

    async def _verify(self, credential: Credential, scope: Scope) -> Principal:
        match credential.carrier:
            case Carrier.AUTHORIZATION:
                return await self._tokens.read(credential.text)
            case Carrier.TICKET:
                if scope["method"] not in READING:
                    msg = "a ticket is only for requests that read"
                    raise CredentialRequired(msg)
                return self.tickets.read(credential.text)
            case Carrier.COOKIE:
                _check_own_page(scope["method"], Headers(scope=scope))
                return self.sessions.read(credential.text)

    def authorize(self, policy: Policy, principal: Principal | None, path: Mapping[str, str], query: bytes, headers: Headers) -> None:
        """Returns if the sender may do what the request asks for.

        Args:
            policy: What the route needs.
            principal: The sender.
            path: The parameters of the route.
            query: The query string.
            headers: The headers of the request.

        Raises:
            UploadNotFound: The sender may not see the upload that the path names.
            PlanNotFound: The sender may not see the plan that the path names.
            NotAllowed: The sender's credential lacks the scope.
        """
        if principal is None or policy.needs in (Needs.TOKEN, Needs.CREDENTIAL):
            return
        if policy.needs is Needs.SYSTEM:
            if not principal.is_system:
                msg = "this request needs a token with 'system': true"
                raise NotAllowed(msg)
            return
        if not principal.may_see(path):
            raise _not_found(path)
        for needed in filter(None, (policy.scope_for(query), policy.further_scope(headers))):
            if needed in principal.scopes:
                continue
            msg = f"this request needs the scope {needed!s:.20}; the credential has {' '.join(sorted(principal.scopes)) or 'none'}"
            raise NotAllowed(msg)


class AccessLayer:
    """Serves the requests of one route that its policy allows, and answers all others with a problem.

    Args:
        app: Answers the allowed requests.
        policy: What a request needs.
        access: Decides.
    """

    def __init__(self, app: ASGIApp, policy: Policy, access: Access) -> None:
        self._app, self._policy, self._access = app, policy, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        policy, access = self._policy, self._access
        principal = None
        try:
            principal = await access.identify(policy, scope)
            access.authorize(policy, principal, scope["path_params"], scope["query_string"], Headers(scope=scope))
        except SiteLinkError as error:
            log_refusal(scope, policy, principal, error)
            await named_problem(error, scope["path"])(scope, receive, send)
            return
        scope["principal"] = principal
        if policy.waits and principal is not None:
            await serve_for(principal.expires_at - access.now(), self._app, scope, receive, send)
        elif policy.action is None:
            await self._app(scope, receive, send)
        else:
            audited = Audited(send)
            try:
                await self._app(scope, receive, audited)
            finally:
                audited.log(policy, principal)


def principal_of(request: Request) -> Principal | None:
    """The sender of a request; None where the server does not ask who sends requests."""
    principal: Principal | None = request.scope.get("principal")
    return principal


def _not_found(path: Mapping[str, str]) -> SiteLinkError:
    names = [path[name][:80] for name in ("organization", "project", "plan", "upload") if name in path]
    if "upload" in path:
        return UploadNotFound(f"there is no upload {'/'.join(names)}")
    return PlanNotFound(f"there is no plan {'/'.join(names)}")


def _check_own_page(method: str, headers: Headers) -> None:
    """Returns if a page of this server sent a request with a cookie. Browsers also send the cookie for pages of sibling host names."""
    origin = headers.get("origin")
    if is_from_another_site(headers) or (origin is None and method not in READING):
        msg = "a request with a cookie must come from a page of this server"
        raise ForeignOrigin(msg)
    if origin is not None and not _is_origin_of(origin, headers.get("host", "")):
        msg = f"a page of {origin[:200]} may not use the session of this server"
        raise ForeignOrigin(msg)


def _is_origin_of(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
        is_safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    except ValueError:
        return False
    return is_safe and parts.netloc == host.lower()
