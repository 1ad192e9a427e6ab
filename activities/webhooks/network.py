"""Sends a request to an address that a stranger chose, and never into a private network.

The name is resolved here, every answer is checked, and the connection goes to one of the checked answers: whoever changes the answers
between the check and the connection gains nothing. TLS still checks the certificate against the name. No redirect is followed, no proxy
is used, and of the answer only the status is read.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

import httpcore2

from activities.errors import WebhookForbidden, WebhookUnreachable

TIMEOUT_S = 15.0
"""For the whole request. Standard Webhooks recommends 15 to 30 seconds."""
MAX_URL_CHARACTERS = 2000

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolver = Callable[[str, int], Awaitable[list[str]]]

_EMBEDDING = ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48")
"""Networks whose addresses stand for IPv4 addresses: https://www.rfc-editor.org/rfc/rfc6052, https://www.rfc-editor.org/rfc/rfc8215."""


def check_url(url: str, networks: Sequence[Network]) -> None:
    """Returns if webhooks may be sent to a URL, as far as its text tells. Where its name leads is checked at each connection.

    Raises:
        ValueError: They may not. The message does not show the URL.
    """
    if len(url) > MAX_URL_CHARACTERS or not re.fullmatch(r"[!-~]+", url):
        msg = f"the address of a webhook has at most {MAX_URL_CHARACTERS:,} ASCII characters, and no space"
        raise ValueError(msg)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    schemes = ("https", "http") if networks else ("https",)
    if not host or port == 0 or parts.scheme not in schemes or parts.fragment or "\\" in url:
        msg = f"the address of a webhook must be an {' or '.join(schemes)} URL with a host, and without a fragment"
        raise ValueError(msg)
    if "@" in parts.netloc:
        msg = "the address of a webhook must not have a user name or a password"
        raise ValueError(msg)
    try:
        address = ip_address(host)
    except ValueError:
        return
    if not is_allowed(address, networks, plain=parts.scheme == "http"):
        msg = f"webhooks are not sent to {address}, which is not a public address"
        raise ValueError(msg)


def is_allowed(address: Address, networks: Iterable[Network], *, plain: bool = False) -> bool:
    """Whether webhooks may be sent to an address.

    Args:
        address: The address; one that stands for an IPv4 address is judged as that.
        networks: Private networks that are allowed.
        plain: Whether they are sent by http, which is allowed in ``networks`` only.
    """
    address = _without_disguise(address)
    if any(address in network for network in networks):
        return True
    return not plain and _is_public(address)


def _without_disguise(address: Address) -> Address:
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _EMBEDDING[0]:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and (address.is_site_local or address.teredo is not None or address in _EMBEDDING[1]):
        return False
    special = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback or address.is_link_local
    return address.is_global and not special


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system gives them.

    Raises:
        OSError: The name is not known, or the name server does not answer.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to allowed addresses only.

    Args:
        networks: Private networks that are allowed.
        resolver: Gives the addresses of a name.
        plain: Whether the connection is for http.
    """

    def __init__(self, networks: Sequence[Network], resolver: Resolver = resolve, *, plain: bool = False) -> None:
        self._networks = networks
        self._resolve = resolver
        self._plain = plain
        self._backend = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connects to the first address of the host that answers.

        Raises:
            WebhookForbidden: One of the addresses is not allowed.
            WebhookUnreachable: The name is not known.
            ConnectError: None of the addresses answers.
        """
        try:
            names = await self._resolve(host, port)
            addresses = [ip_address(name.partition("%")[0]) for name in names]
        except (OSError, ValueError, UnicodeError) as error:
            msg = "the name of the receiver is not known"
            raise WebhookUnreachable(msg) from error
        for address in addresses:
            if not is_allowed(address, self._networks, plain=self._plain):
                msg = "the address of the receiver is not public" + (", or is not one for http" if self._plain else "")
                raise WebhookForbidden(msg)
        failure: Exception = httpcore2.ConnectError("no address")
        for name in names:
            try:
                return await self._backend.connect_tcp(name, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)


async def post(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    networks: Sequence[Network],
    *,
    resolver: Resolver = resolve,
    timeout_s: float = TIMEOUT_S,
    tls: ssl.SSLContext | None = None,
) -> tuple[int, str]:
    """Sends a request, on a connection of its own.

    Args:
        url: The address.
        headers: The headers, beside those of HTTP itself.
        body: The body.
        networks: Private networks that are allowed, also by http.
        resolver: Gives the addresses of a name.
        timeout_s: For the whole request, in seconds.
        tls: Checks certificates; default: against the CA certificates of this machine, which are loaded for this request.

    Returns:
        The status of the answer, and its ``Retry-After``.

    Raises:
        WebhookForbidden: The address is not allowed.
        WebhookUnreachable: There is no answer within ``timeout_s``. The message does not show the address.
    """
    try:
        check_url(url, networks)
    except ValueError as error:
        raise WebhookForbidden(str(error)) from error
    backend = GuardedBackend(networks, resolver, plain=urlsplit(url).scheme == "http")
    try:
        async with (
            asyncio.timeout(timeout_s),
            httpcore2.AsyncConnectionPool(ssl_context=tls, network_backend=backend) as pool,
            pool.stream("POST", url, headers=[*headers.items(), ("Connection", "close")], content=body) as response,
        ):
            found = {name.lower(): value for name, value in response.headers}
            return response.status, found.get(b"retry-after", b"").decode("latin-1")
    except TimeoutError as error:
        msg = f"the receiver did not answer within {timeout_s:g} s"
        raise WebhookUnreachable(msg) from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException) as error:
        msg = f"the receiver did not answer: {type(error).__name__}"
        # The library's message may show the address, and Temporal keeps the cause of an error.
        raise WebhookUnreachable(msg) from None
