"""Where R2's event notifications come from: a queue of Cloudflare."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from api.addresses import is_loopback
from api.settings import events_attempts

CLOUDFLARE = "https://api.cloudflare.com/client/v4"


@dataclass(frozen=True)
class EventsSettings:
    """Where the queue is.

    Args:
        account: Cloudflare's id of the account.
        queue: Cloudflare's id of the queue, not its name.
        token: Of the API, with the permission Queues Edit.
        attempts: How often a message that is no event is delivered before it is kept aside.
        url: The API's address.

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
                msg = f"{name} is {value[:80]!r}; the 32 letters and digits are wanted that Cloudflare shows as its id"
                raise ValueError(msg)
        if not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            msg = "SITELINK_EVENTS_TOKEN has characters that no token has"
            raise ValueError(msg)
        parts = urlsplit(self.url)
        is_good = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
        if not is_good or not parts.hostname or "@" in parts.netloc:
            msg = f"SITELINK_EVENTS_API is not an address of the kind {CLOUDFLARE}"
            raise ValueError(msg)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self | None:
        """Reads the environment.

        Returns:
            None when nothing of it is set: there is no such role then.

        Raises:
            ValueError: Only a part is set, or a value cannot be used.
        """
        names = ("SITELINK_EVENTS_ACCOUNT", "SITELINK_EVENTS_QUEUE", "SITELINK_EVENTS_TOKEN")
        account, queue, token = values = [environ.get(name) or "" for name in names]
        if not any(values):
            return None
        if missing := [name for name, value in zip(names, values, strict=True) if not value]:
            msg = f"{' and '.join(missing)} must be set, too, to take events from a queue"
            raise ValueError(msg)
        url = (environ.get("SITELINK_EVENTS_API") or CLOUDFLARE).rstrip("/")
        return cls(account, queue, token, events_attempts(environ), url)
