"""The settings of the two ways in which R2 events come: pulled from a Cloudflare Queue, or pushed to the API."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from activities.environment import secret, whole_number
from api.addresses import is_loopback

CLOUDFLARE = "https://api.cloudflare.com/client/v4"

DEFAULT_ATTEMPTS = 5
MAX_ATTEMPTS = 100
"""A queue of Cloudflare delivers a message at most 101 times: https://developers.cloudflare.com/queues/platform/limits/."""

GATHER_S = 5.0

SHORTEST_SECRET = 16


@dataclass(frozen=True)
class PullSettings:
    """How to reach the Cloudflare Queue.

    Args:
        account: Cloudflare's id of the account.
        queue: Cloudflare's id of the queue, not its name.
        token: A token of Cloudflare's API with the permission Queues Edit.
        attempts: How often a message that is not an R2 event is delivered before it is kept aside.
        url: The address of Cloudflare's API.

    Raises:
        ValueError: A value cannot be used; the message names its variable and shows no secret.
    """

    account: str
    queue: str
    token: str = field(repr=False)
    attempts: int
    url: str = CLOUDFLARE

    def __post_init__(self) -> None:
        for name, value in (("SITELINK_EVENTS_ACCOUNT", self.account), ("SITELINK_EVENTS_QUEUE", self.queue)):
            if not (value.isascii() and value.isalnum()):
                msg = f"{name} is {value[:80]!r}; it must be the id of 32 letters and digits that Cloudflare shows"
                raise ValueError(msg)
        if not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            msg = "SITELINK_EVENTS_TOKEN has characters that cannot be in a token"
            raise ValueError(msg)
        parts = urlsplit(self.url)
        is_good = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
        if not is_good or not parts.hostname or "@" in parts.netloc:
            msg = f"SITELINK_EVENTS_API is not an address like {CLOUDFLARE}"
            raise ValueError(msg)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self | None:
        """Reads the environment.

        Returns:
            None when neither account, queue nor token is set, so that there is no queue.

        Raises:
            ValueError: Some of the three are missing, or a value cannot be used.
        """
        names = ("SITELINK_EVENTS_ACCOUNT", "SITELINK_EVENTS_QUEUE", "SITELINK_EVENTS_TOKEN")
        account, queue, token = values = [*(environ.get(name) or "" for name in names[:2]), secret(environ, names[2])]
        if not any(values):
            return None
        if missing := [name for name, value in zip(names, values, strict=True) if not value]:
            msg = f"{' and '.join(missing)} must be set, too, to take events from a queue"
            raise ValueError(msg)
        url = (environ.get("SITELINK_EVENTS_API") or CLOUDFLARE).rstrip("/")
        return cls(account, queue, token, _attempts(environ), url)


@dataclass(frozen=True)
class PushSettings:
    """Who may send R2 events to the API.

    Args:
        secrets: A request may be signed with any of them. Without a secret, the API has no route for R2 events.
        attempts: How often a message that is not an R2 event is delivered before it is kept aside.
        gather_s: How long the events of an upload are gathered, in seconds.

    Raises:
        ValueError: A value cannot be used; the message names its variable and shows no secret.
    """

    secrets: tuple[str, ...] = field(default=(), repr=False)
    attempts: int = DEFAULT_ATTEMPTS
    gather_s: float = GATHER_S

    def __post_init__(self) -> None:
        if any(len(secret) < SHORTEST_SECRET for secret in self.secrets):
            msg = f"a secret in SITELINK_EVENTS_SECRET has less than {SHORTEST_SECRET} characters"
            raise ValueError(msg)
        for text in self.secrets:
            try:
                base64.b64decode(text.removeprefix("whsec_") if text.startswith("whsec_") else "", validate=True)
            except ValueError as error:
                msg = "a secret in SITELINK_EVENTS_SECRET begins with whsec_, and the rest is not base64"
                raise ValueError(msg) from error

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Reads the environment."""
        secrets = map(str.strip, secret(environ, "SITELINK_EVENTS_SECRET").split(","))
        return cls(tuple(filter(None, secrets)), _attempts(environ))


def _attempts(environ: Mapping[str, str]) -> int:
    return whole_number(environ, "SITELINK_EVENTS_ATTEMPTS", DEFAULT_ATTEMPTS, high=MAX_ATTEMPTS, digits_only=True)
