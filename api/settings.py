"""The settings of the API's server."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from activities.bucket.location import BucketSettings
from activities.environment import whole_number
from api.access.settings import AccessSettings, Mode
from api.addresses import is_loopback
from api.r2.settings import PushSettings

DEFAULT_MAX_FILE_BYTES = 2 << 30


@dataclass(frozen=True)
class ApiSettings:
    """The settings that the server reads once, when it starts.

    Args:
        bucket: Where the objects are.
        host: Address to listen on. Without access control it must be loopback.
        port: The port to listen on; 0 picks a free port.
        max_file_bytes: The largest PDF that is accepted.
        push: Who may send R2 events.
        access: Who may send all other requests.

    Raises:
        ValueError: A value cannot be used; the message names its variable.
    """

    bucket: BucketSettings
    host: str = "127.0.0.1"
    port: int = 8000
    max_file_bytes: int = DEFAULT_MAX_FILE_BYTES
    push: PushSettings = field(default_factory=PushSettings)
    access: AccessSettings = field(default_factory=AccessSettings)

    def __post_init__(self) -> None:
        if self.access.mode is Mode.LOOPBACK and not is_loopback(self.host):
            msg = (
                f"SITELINK_HOST is {self.host!r}: without SITELINK_ACCESS the API listens on this machine only, "
                "127.0.0.1, ::1 or localhost. To reach it from elsewhere, set SITELINK_ACCESS=jwt, or tunnel to it, for example by ssh -L"
            )
            raise ValueError(msg)
        if self.host in ("0.0.0.0", "::") and not self.access.public_hosts:  # noqa: S104 - compared, not bound
            msg = f"SITELINK_HOST is {self.host!r}: SITELINK_PUBLIC_HOSTS must say under which host names clients reach the server"
            raise ValueError(msg)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Reads the API's variables, the bucket's, the push endpoint's and those of access."""
        return cls(
            bucket=BucketSettings.from_env(environ),
            host=environ.get("SITELINK_HOST") or cls.host,
            port=whole_number(environ, "SITELINK_PORT", cls.port, low=0, high=65_535, digits_only=True),
            max_file_bytes=whole_number(environ, "SITELINK_MAX_FILE_BYTES", cls.max_file_bytes, high=1 << 42, digits_only=True),
            push=PushSettings.from_env(environ),
            access=AccessSettings.from_env(environ),
        )
