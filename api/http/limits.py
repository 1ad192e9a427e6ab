"""How many requests an address, and an organization, may send.

An address is checked before anything else is done for a request. An organization is checked once the sender is known: a stranger must not
use up what another organization may send.

The counters are this process's own, or those of a store that several processes share. While that store does not answer, nobody is refused.
"""

import ipaddress
import logging
import time
from collections.abc import Awaitable, Collection, Sequence
from datetime import timedelta

from limits import RateLimitItem, parse_many
from limits.aio.storage import Storage
from limits.aio.strategies import FixedWindowRateLimiter
from limits.errors import ConfigurationError
from limits.storage import storage_from_string
from starlette.types import ASGIApp, Receive, Scope, Send

from activities.bucket.keys import ID_PATTERN
from activities.errors import TooManyRequests
from api.http.counters import MemoryCounters
from api.http.problems import refusal

logger = logging.getLogger(__name__)

OFF = "off"
IN_MEMORY = "memory://"


class RateLimits:
    """The limits, and where their counters are.

    Args:
        address: The limit of an address, such as ``200/second;6000/minute``, or ``off``.
        organization: The limit of an organization.
        storage: The address of the counters: ``memory://``, or another storage of the library ``limits``, whose client is installed.

    Raises:
        ValueError: One of them cannot be used; the message names its variable.
    """

    def __init__(self, address: str, organization: str, storage: str) -> None:
        self._address = _parse("SITELINK_LIMIT_ADDRESS", address)
        self._organization = _parse("SITELINK_LIMIT_ORGANIZATION", organization)
        self._storage = _open_storage(storage)
        self._limiter = FixedWindowRateLimiter(self._storage)

    async def check_address(self, address: str) -> None:
        """Counts a request of an IP address.

        Raises:
            TooManyRequests: It is one too many; the error says when the next is allowed.
        """
        await self._count(self._address, "address", _network(address))

    async def check_organization(self, organization: str) -> None:
        """Counts a request about an organization; raises as ``check_address`` does."""
        await self._count(self._organization, "organization", organization)

    async def _count(self, limits: Sequence[RateLimitItem], kind: str, name: str) -> None:
        try:
            for limit in limits:
                await self._hit(limit, kind, name)
        except self._storage.base_exceptions as error:  # the client's errors, which limits leaves as they are
            if isinstance(error, TooManyRequests):
                raise
            logger.warning("the counters of requests do not answer: %s", type(error).__name__)

    async def _hit(self, limit: RateLimitItem, kind: str, name: str) -> None:
        if await self._limiter.hit(limit, kind, name):
            return
        reset_time, _ = await self._limiter.get_window_stats(limit, kind, name)
        error = TooManyRequests(f"the {kind} {name} may send {limit}, try again later")
        error.retry_delay = timedelta(seconds=max(1.0, reset_time - time.time()))
        raise error


class LimitAddresses:
    """Middleware that refuses a request that is one too many of its address.

    Args:
        app: The application.
        limits: The limits.
        unlimited: Paths that are not counted.
    """

    def __init__(self, app: ASGIApp, limits: RateLimits, unlimited: Collection[str] = ()) -> None:
        self._app = app
        self._limits = limits
        self._unlimited = unlimited

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers it."""
        app = self._app
        if scope["type"] == "http" and scope["path"] not in self._unlimited:
            address = scope["client"][0] if scope["client"] else ""
            app = await _limited(app, self._limits.check_address(address), scope)
        await app(scope, receive, send)


class LimitOrganizations:
    """Middleware of a route that refuses a request that is one too many about the organization in its path.

    Args:
        app: The route.
        limits: The limits.
    """

    def __init__(self, app: ASGIApp, limits: RateLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers it."""
        app, organization = self._app, scope["path_params"].get("organization", "")
        if ID_PATTERN.fullmatch(organization):
            app = await _limited(app, self._limits.check_organization(organization), scope)
        await app(scope, receive, send)


async def _limited(app: ASGIApp, check: Awaitable[None], scope: Scope) -> ASGIApp:
    try:
        await check
    except TooManyRequests as error:
        return refusal(error, scope)
    return app


def _network(address: str) -> str:
    """The address; of IPv6 the network, because a client there has 2^64 addresses."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address


def _parse(name: str, text: str) -> list[RateLimitItem]:
    try:
        return [] if text == OFF else parse_many(text)
    except ValueError as error:
        msg = f"{name} is {text!r}; a limit such as 200/second;6000/minute, or {OFF}, is wanted"
        raise ValueError(msg) from error


def _open_storage(uri: str) -> Storage:
    if uri == IN_MEMORY:
        return MemoryCounters()
    scheme = uri.partition("://")[0]
    try:
        storage = storage_from_string(f"async+{uri}")
    except ConfigurationError as error:  # the address may hold a password, so only its scheme is shown
        msg = f"SITELINK_LIMITS_STORAGE begins with {scheme!r}: no such storage is known, or its client is not installed"
        raise ValueError(msg) from error
    assert isinstance(storage, Storage)  # noqa: S101 - "async+" makes it one
    return storage
