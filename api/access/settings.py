"""The settings of access: who may reach the server, and what proves it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from activities.environment import choice, secret
from api.addresses import is_loopback

SHORTEST_SECRET_BYTES = 32
"""HS256 needs a key as long as its hash: https://www.rfc-editor.org/rfc/rfc7518#section-3.2."""

_HOST = re.compile(r"(?!-)[a-z0-9-]+(\.[a-z0-9-]+)*|[0-9a-f:]*:[0-9a-f:.]*")


class Mode(Enum):
    """The ways in which the server decides about requests."""

    LOOPBACK = ""
    """Every program on this machine may do everything, and the server listens on this machine only."""
    JWT = "jwt"
    """A request needs a token."""
    OPEN = "open"
    """Everybody who reaches the server may do everything."""


@dataclass(frozen=True)
class AccessSettings:
    """The senders that the server answers, and the secrets and keys that prove who they are.

    Args:
        mode: How the server decides about requests.
        secrets: Secrets of tokens that are signed by HS256; the first signs, each is accepted.
        public_keys: URL or path of a JWKS; empty for none.
        issuer: Who must have issued a token.
        audience: For whom a token must have been issued.
        ticket_secrets: Sign tickets and sessions; the first signs, each is accepted.
        public_hosts: Further host names under which clients reach the server, in lower case and without a port.
        cors_origins: Origins whose pages may use the API from a browser.

    Raises:
        ValueError: A value cannot be used; the message names its variable and shows no secret.
    """

    mode: Mode = Mode.LOOPBACK
    secrets: tuple[str, ...] = field(default=(), repr=False)
    public_keys: str = ""
    issuer: str = "sitelink"
    audience: str = "sitelink"
    ticket_secrets: tuple[str, ...] = field(default=(), repr=False)
    public_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, secrets in (("SITELINK_JWT_SECRET", self.secrets), ("SITELINK_TICKET_SECRET", self.ticket_secrets)):
            if any(len(text.encode()) < SHORTEST_SECRET_BYTES for text in secrets):
                msg = f"a secret in {name} has less than {SHORTEST_SECRET_BYTES} bytes; `openssl rand -hex 32` makes a good one"
                raise ValueError(msg)
        if self.public_keys:
            _check_source(self.public_keys)
        for host in self.public_hosts:
            if not _HOST.fullmatch(host):
                msg = f"SITELINK_PUBLIC_HOSTS has {host[:80]!r}; names like plans.example.com are wanted, without scheme and port"
                raise ValueError(msg)
        for origin in self.cors_origins:
            _check_origin(origin)
        if self.mode is Mode.JWT:
            self._check_keys()
        elif self.mode is Mode.LOOPBACK and self.public_hosts:
            msg = "SITELINK_PUBLIC_HOSTS is set, but SITELINK_ACCESS is not: without access control, only this machine may reach the server"
            raise ValueError(msg)

    def _check_keys(self) -> None:
        if not self.secrets and not self.public_keys:
            msg = "SITELINK_ACCESS is jwt: set SITELINK_JWT_SECRET, or SITELINK_JWT_JWKS, or both"
            raise ValueError(msg)
        if not self.ticket_secrets:
            msg = "SITELINK_TICKET_SECRET must be set, too, because there is no SITELINK_JWT_SECRET to sign tickets and sessions"
            raise ValueError(msg)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Reads the environment."""
        secrets = _list(secret(environ, "SITELINK_JWT_SECRET"))
        public_keys = environ.get("SITELINK_JWT_JWKS") or ""
        issuer, audience = environ.get("SITELINK_JWT_ISSUER") or "", environ.get("SITELINK_JWT_AUDIENCE") or ""
        if public_keys and not (issuer and audience):
            msg = "SITELINK_JWT_JWKS needs SITELINK_JWT_ISSUER and SITELINK_JWT_AUDIENCE: such keys also sign tokens for other servers"
            raise ValueError(msg)
        return cls(
            mode=Mode(choice(environ, "SITELINK_ACCESS", [mode.value for mode in Mode])),
            secrets=secrets,
            public_keys=public_keys,
            issuer=issuer or cls.issuer,
            audience=audience or cls.audience,
            ticket_secrets=_list(secret(environ, "SITELINK_TICKET_SECRET")) or secrets,
            public_hosts=_list((environ.get("SITELINK_PUBLIC_HOSTS") or "").lower()),
            cors_origins=_list((environ.get("SITELINK_CORS_ORIGINS") or "").lower()),
        )


def _list(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))


def _check_source(source: str) -> None:
    parts = urlsplit(source)
    if parts.scheme in ("http", "https") or "://" in source:
        is_safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
        if not is_safe or not parts.hostname or "@" in parts.netloc:
            msg = "SITELINK_JWT_JWKS is neither the path of a file nor an address like https://login.example.com/jwks.json"
            raise ValueError(msg)
    elif not Path(source).is_file():
        msg = f"SITELINK_JWT_JWKS is {source!r}, and no file is there"
        raise ValueError(msg)


def _check_origin(origin: str) -> None:
    try:
        parts = urlsplit(origin)
        is_origin = parts.scheme in ("http", "https") and bool(parts.hostname) and origin == f"{parts.scheme}://{parts.netloc}"
        is_origin = is_origin and "@" not in parts.netloc and "*" not in origin and (parts.port or 1) > 0
    except ValueError:
        is_origin = False
    if not is_origin:
        msg = f"SITELINK_CORS_ORIGINS has {origin[:80]!r}; origins like https://app.example.com are wanted, without a path"
        raise ValueError(msg)
