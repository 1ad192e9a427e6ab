"""The settings of the API process."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from activities.storage import BucketSettings

DEFAULT_MAX_FILE_BYTES = 2 << 30


@dataclass(frozen=True)
class ApiSettings:
    """What the API is told once, when it starts.

    Args:
        bucket: Where the objects are.
        host: Address to listen on; only of this machine's loopback, for there is no authentication.
        port: 0 picks a free one.
        max_file_bytes: The largest PDF that is accepted.

    Raises:
        ValueError: A value cannot be used; the message names its variable.
    """

    bucket: BucketSettings
    host: str = "127.0.0.1"
    port: int = 8000
    max_file_bytes: int = DEFAULT_MAX_FILE_BYTES

    def __post_init__(self) -> None:
        if not is_loopback(self.host):
            msg = (
                f"SITELINK_HOST is {self.host!r}: without authentication the API listens on this machine only, "
                "127.0.0.1, ::1 or localhost. To reach it from elsewhere, tunnel to it, for example by ssh -L"
            )
            raise ValueError(msg)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Reads ``SITELINK_HOST``, ``SITELINK_PORT``, ``SITELINK_MAX_FILE_BYTES`` and the bucket's variables."""
        return cls(
            bucket=BucketSettings.from_env(environ),
            host=environ.get("SITELINK_HOST") or cls.host,
            port=_whole_number(environ, "SITELINK_PORT", cls.port, 0, 65_535),
            max_file_bytes=_whole_number(environ, "SITELINK_MAX_FILE_BYTES", cls.max_file_bytes, 1, 1 << 42),
        )


def is_loopback(host: str) -> bool:
    """Whether ``host``, a name or an address without port, is this machine seen from itself."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _whole_number(environ: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        msg = f"{name} is {text!r}, it must be a whole number from {low:,} to {high:,}"
        raise ValueError(msg)
    return int(text)
