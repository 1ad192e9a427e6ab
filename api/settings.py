"""The settings of the API process."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from activities.bucket.storage import BucketSettings
from api.addresses import is_loopback

DEFAULT_MAX_FILE_BYTES = 2 << 30
DEFAULT_EVENTS_ATTEMPTS = 5
EVENTS_GATHER_S = 5.0
SHORTEST_SECRET = 16


@dataclass(frozen=True)
class ApiSettings:
    """What the API is told once, when it starts.

    Args:
        bucket: Where the objects are.
        host: Address to listen on; only of this machine's loopback, for there is no authentication.
        port: 0 picks a free one.
        max_file_bytes: The largest PDF that is accepted.
        events_secrets: Any of them may sign R2's events; without one there is no address for these.
        events_attempts: How often a message that is no event is delivered before it is kept aside.
        events_gather_s: How long the events of an upload are gathered.

    Raises:
        ValueError: A value cannot be used; the message names its variable.
    """

    bucket: BucketSettings
    host: str = "127.0.0.1"
    port: int = 8000
    max_file_bytes: int = DEFAULT_MAX_FILE_BYTES
    events_secrets: tuple[str, ...] = field(default=(), repr=False)
    events_attempts: int = DEFAULT_EVENTS_ATTEMPTS
    events_gather_s: float = EVENTS_GATHER_S

    def __post_init__(self) -> None:
        if not is_loopback(self.host):
            msg = (
                f"SITELINK_HOST is {self.host!r}: without authentication the API listens on this machine only, "
                "127.0.0.1, ::1 or localhost. To reach it from elsewhere, tunnel to it, for example by ssh -L"
            )
            raise ValueError(msg)
        if any(len(secret) < SHORTEST_SECRET for secret in self.events_secrets):
            msg = f"a secret in SITELINK_EVENTS_SECRET has less than {SHORTEST_SECRET} characters"
            raise ValueError(msg)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Reads the API's variables and the bucket's."""
        return cls(
            bucket=BucketSettings.from_env(environ),
            host=environ.get("SITELINK_HOST") or cls.host,
            port=_whole_number(environ, "SITELINK_PORT", cls.port, 0, 65_535),
            max_file_bytes=_whole_number(environ, "SITELINK_MAX_FILE_BYTES", cls.max_file_bytes, 1, 1 << 42),
            events_secrets=tuple(filter(None, map(str.strip, (environ.get("SITELINK_EVENTS_SECRET") or "").split(",")))),
            events_attempts=events_attempts(environ),
        )


def events_attempts(environ: Mapping[str, str]) -> int:
    """Reads ``SITELINK_EVENTS_ATTEMPTS``, which every process that takes events obeys; raises like ``ApiSettings``.

    A queue of Cloudflare delivers a message at most 101 times: https://developers.cloudflare.com/queues/platform/limits/
    """
    return _whole_number(environ, "SITELINK_EVENTS_ATTEMPTS", DEFAULT_EVENTS_ATTEMPTS, 1, 100)


def _whole_number(environ: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        msg = f"{name} is {text!r}, it must be a whole number from {low:,} to {high:,}"
        raise ValueError(msg)
    return int(text)
